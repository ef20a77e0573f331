"""What Prometheus reads. Each server has its own registry, so that two can live in one process."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from valle2.runtime.server.http.reply import Reply

FAST = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SHORT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RATIO = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 5.0)


class Metrics:
    """Counters, gauges and histograms of one worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue_depth = self.make(Gauge, "queue_depth", "Requests that wait for a slot")
        self.active_slots = self.make(Gauge, "active_slots", "Rows being decoded or prefilled")
        self.first_audio = self.make(Histogram, "first_audio_seconds", "Arrival to first audio", buckets=FAST)
        self.chunk_gap = self.make(
            Histogram, "chunk_gap_seconds", "Between two pieces of audio", buckets=FAST
        )
        self.step_seconds = self.make(
            Histogram, "step_seconds", "One scheduler step with its work", buckets=SHORT
        )
        self.cancel_seconds = self.make(
            Histogram, "cancel_seconds", "Cancellation to free slot", buckets=SHORT
        )
        self.rtf = self.make(Histogram, "rtf", "Request time over audio time", buckets=RATIO)
        self.audio_seconds = self.make(Counter, "audio_seconds", "Speech made")
        self.completed = self.make(Counter, "completed", "Requests that ended well")
        self.cancelled = self.make(Counter, "cancelled", "Requests whose client went away")
        self.rejected = self.make(Counter, "rejected", "Requests refused because the queue was full")
        self.failed = self.make(Counter, "failed", "Requests that ended with an error")
        self.restarts = self.make(Counter, "worker_restarts", "Times the engine thread was started again")

    def make(self, kind: Any, name: str, text: str, **more: Any) -> Any:
        return kind(f"valle2_{name}", text, registry=self.registry, **more)

    def chunk(self, reply: Reply) -> None:
        """One piece of audio was handed out."""
        now = time.perf_counter()
        if reply.first_at:
            self.chunk_gap.observe(now - reply.last_at)
        else:
            reply.first_at = now
            self.first_audio.observe(now - reply.arrived)
        reply.last_at = now

    def ended(self, reply: Reply, error: Exception | None) -> None:
        """A request is over."""
        if reply.cancelled:
            self.cancelled.inc()
        elif error:
            self.failed.inc()
        else:
            self.completed.inc()

    def spoke(self, reply: Reply, error: Exception | None, rate: int) -> None:
        """A request is over; only one that ended well has a real-time factor."""
        seconds = reply.samples / rate
        self.audio_seconds.inc(seconds)
        if seconds and not reply.cancelled and not error:
            self.rtf.observe((time.perf_counter() - reply.arrived) / seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return bytes(generate_latest(self.registry))
