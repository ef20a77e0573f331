"""TensorRT and TensorRT-RTX as backends. Loads engine files and never builds them."""
