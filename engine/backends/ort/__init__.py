"""ONNX Runtime as a backend: sessions, execution providers, and the memory they use."""
