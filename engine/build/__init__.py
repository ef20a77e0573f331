"""Makes other graphs and engine files from a bundle. Needs onnx; the runtime never imports it."""
