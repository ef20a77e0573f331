"""Latency, throughput and memory of a model, against eager PyTorch and the hardware's limits."""
