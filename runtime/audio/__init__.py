"""Waveforms: reading, writing, resampling, and the codec's graphs. Knows codes and samples, never text."""
