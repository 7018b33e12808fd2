"""`python -m dcml_tune.search`: from a command line to a verdict."""
