"""Translates HTTP and WebSocket messages to calls of the worker. It knows no models and no threads."""
