"""`python -m dcml_tune.search`: search the settings of a data set, confirm the best one and score it."""
