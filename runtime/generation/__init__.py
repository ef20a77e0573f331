"""Token ids to codes and audio: scheduling, the AR and NAR loops, sampling. Knows no text and no files."""

from valle2.runtime.generation.engine import (
    AudioChunk,
    Done,
    EncodedRequest,
    Event,
    Failed,
    RequestId,
    Stats,
    SynthesisEngine,
)

__all__ = [
    "AudioChunk",
    "Done",
    "EncodedRequest",
    "Event",
    "Failed",
    "RequestId",
    "Stats",
    "SynthesisEngine",
]
