"""Latency, throughput and memory of a model, against eager PyTorch and the limits of the hardware."""
