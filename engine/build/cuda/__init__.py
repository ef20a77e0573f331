"""Rewrites exported graphs for ONNX Runtime's CUDA provider with its fused operators. Needs onnx; no torch.

A step launches one kernel or more per node, and a kernel inside a CUDA graph costs 1.3 to 2.9 us however
small. So these graphs have as few nodes as ONNX Runtime's operators allow (docs/notes/gpu.md).
"""
