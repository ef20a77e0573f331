"""Reads weight files without running code that stands in them. Knows tensors, never models."""
