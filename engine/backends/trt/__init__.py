"""TensorRT and TensorRT-RTX as a backend. It loads engine files and never builds them."""
