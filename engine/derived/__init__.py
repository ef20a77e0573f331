"""8-bit weights made from the stored ones when they are first used, without onnx. It opens no graph."""
