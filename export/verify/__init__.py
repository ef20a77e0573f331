"""Compares exported graphs with the eager modules, on logits and on codes."""
