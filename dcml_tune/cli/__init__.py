"""The command line: flags, exit codes, output that may fail."""
