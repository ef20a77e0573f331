"""Metrics for Prometheus. Each worker has its own registry, so that one process can hold several."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from valle2.runtime.server.reply import Reply
from valle2.runtime.types import MAX_FRAMES

AUDIO_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RTF_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 5.0)
"""Upper bounds of the histograms' buckets: seconds, seconds, and a ratio."""


class Metrics:
    """Counters, gauges and histograms of one worker; names begin with `valle2_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue_depth = self.make_metric(Gauge, "queue_depth", "Requests that wait for a row")
        self.active_slots = self.make_metric(Gauge, "active_slots", "Rows that prefill or decode")
        self.first_audio = self.make_metric(
            Histogram, "first_audio_seconds", "Arrival to first audio", buckets=AUDIO_BUCKETS
        )
        self.chunk_gap = self.make_metric(
            Histogram, "chunk_gap_seconds", "Time between two pieces of audio", buckets=AUDIO_BUCKETS
        )
        self.step_seconds = self.make_metric(
            Histogram, "step_seconds", "One step of the engine", buckets=STEP_BUCKETS
        )
        self.cancel_seconds = self.make_metric(
            Histogram, "cancel_seconds", "Cancellation to free row", buckets=STEP_BUCKETS
        )
        self.rtf = self.make_metric(Histogram, "rtf", "Request time over audio time", buckets=RTF_BUCKETS)
        self.audio_seconds = self.make_metric(Counter, "audio_seconds", "Seconds of speech made")
        self.completed = self.make_metric(Counter, "completed", "Requests that ended without an error")
        self.cancelled = self.make_metric(Counter, "cancelled", "Requests whose client disconnected")
        self.rejected = self.make_metric(Counter, "rejected", "Requests refused because the queue was full")
        self.failed = self.make_metric(Counter, "failed", "Requests that ended with an error")
        self.max_frames = self.make_metric(
            Counter, "max_frames", "Requests that completed with speech cut off at its longest length"
        )
        self.restarts = self.make_metric(Counter, "worker_restarts", "Restarts of the engine thread")

    def make_metric(self, kind: Any, name: str, text: str, **more: Any) -> Any:
        """A metric of the registry. kind: Counter, Gauge or Histogram. more: arguments of the kind."""
        return kind(f"valle2_{name}", text, registry=self.registry, **more)

    def record_chunk(self, reply: Reply) -> None:
        """Observe a piece of audio that is about to be put into the reply."""
        now = time.perf_counter()
        if reply.first_at:
            self.chunk_gap.observe(now - reply.last_at)
        else:
            reply.first_at = now
            self.first_audio.observe(now - reply.arrived)
        reply.last_at = now

    def record_end(self, reply: Reply, error: Exception | None) -> None:
        """Count a request that has ended."""
        if reply.cancelled:
            self.cancelled.inc()
        elif error:
            self.failed.inc()
        else:
            self.completed.inc()
            if reply.finish_reason == MAX_FRAMES:
                self.max_frames.inc()

    def record_speech(self, reply: Reply, error: Exception | None, rate: int) -> None:
        """Observe the speech of a request that has ended. rate: Hz.

        Only a request that completed has a real-time factor.
        """
        seconds = reply.samples / rate
        self.audio_seconds.inc(seconds)
        if seconds and not reply.cancelled and not error:
            self.rtf.observe((time.perf_counter() - reply.arrived) / seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return bytes(generate_latest(self.registry))
