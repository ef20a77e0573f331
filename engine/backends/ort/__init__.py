"""ONNX Runtime as a backend: sessions, execution providers, and the memory they use.

ONNX Runtime 1.32 collects telemetry unless a variable says no: it keeps files in the user's cache folder
and knows an address to send to. Who runs valle2 has not agreed to that.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
