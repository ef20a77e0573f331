"""Weights of other code bases as valle2 checkpoints. Knows their tensor names and settings."""
