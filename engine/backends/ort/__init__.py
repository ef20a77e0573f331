"""ONNX Runtime as a backend: sessions, execution providers, its memory."""
