"""The HTTP and WebSocket interface. Translates requests and replies; the worker does the work."""
