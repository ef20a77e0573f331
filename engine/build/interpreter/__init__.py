"""Evaluates a parsed TensorRT network in numpy, so that its values can be compared without a GPU.

It follows TensorRT's documentation of each layer and TensorRT's attributes. It never reads the ONNX graph.
"""

from valle2.engine.build.interpreter.backend import InterpretedBackend, interpret_graph
from valle2.engine.build.interpreter.network import InterpretedNetwork

__all__ = ["InterpretedBackend", "InterpretedNetwork", "interpret_graph"]
