"""Benchmarks: terms defined, warmed up, medians of several, ratios within one run."""
