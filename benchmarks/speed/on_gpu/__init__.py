"""Everything a GPU can show in eight minutes, by one command: `python -m valle2.benchmarks.speed.on_gpu`.

It knows no graph and no kernel: it runs the other benchmarks and compares graphs with eager PyTorch.
"""
