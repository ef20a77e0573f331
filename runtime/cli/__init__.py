"""The command line. Each command is a module that parses options and prints results; logic lies elsewhere."""
