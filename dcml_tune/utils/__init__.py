"""Files, checkpoints and signals: nothing here knows the field."""
