"""Serves one loaded model over HTTP and WebSocket. It knows requests and audio, not how codes are made."""
