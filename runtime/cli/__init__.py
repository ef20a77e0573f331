"""The command line of the runtime. Parses options, prints results, holds no logic of its own."""
