"""The folder of an exported model: its manifest, graphs and builds. Reads and checks; executes nothing."""
