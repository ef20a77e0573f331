"""Measurements of speed, quality and serving. The engine, export and runtime do not import it."""
