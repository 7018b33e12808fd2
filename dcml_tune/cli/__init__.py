"""The command line: flags, exit codes, and standard output that never ends a command."""
