"""The supported data sets, one module each."""
