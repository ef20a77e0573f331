"""Reads checkpoints of other code bases. Knows their tensor names and settings, never graphs.

`read_any` recognises a checkpoint and loads it. `find_files` finds its files on this machine or on the hub.
"""

from valle2.export.importers.locate import find_files
from valle2.export.importers.registry import is_own, read_any

__all__ = ["find_files", "is_own", "read_any"]
