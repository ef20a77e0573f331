"""Makes other graphs and engine files from a bundle. Needs onnx.

The runtime imports it only in the commands that build or inspect.
"""
