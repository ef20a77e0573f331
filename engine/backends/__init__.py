"""One interface over the runtimes that execute a graph. Knows arrays and devices, never text or audio."""
