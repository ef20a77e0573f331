"""The folder that holds an exported model: its manifest, graphs and build records. Executes nothing."""
