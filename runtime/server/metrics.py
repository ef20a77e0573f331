"""Metrics for Prometheus. Each worker has its own registry, so that one process can hold several."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from valle2.runtime.server.keys import Key
from valle2.runtime.server.limits import RefusedError, TooLongError
from valle2.runtime.server.reply import Reply
from valle2.runtime.types import MAX_FRAMES, REPETITION

AUDIO_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RTF_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 5.0)
"""Upper bounds of the histograms' buckets: seconds, seconds, and a ratio."""


KEY = ("key",)
"""The label of what is counted for each API key: its name, one of those in the file of keys."""


class Metrics:
    """Counters, gauges and histograms of one worker; names begin with `valle2_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue_depth = self.make_metric(Gauge, "queue_depth", "Requests that wait for a row")
        self.active_slots = self.make_metric(Gauge, "active_slots", "Rows that prefill or decode")
        self.backlog_seconds = self.make_metric(
            Gauge, "backlog_seconds", "Seconds of speech that are still to be made, as estimated"
        )
        self.speed = self.make_metric(Gauge, "speed", "Seconds of speech made in a second of work")
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
        self.rejected = self.make_metric(
            Counter, "rejected", "Requests refused: too many waiting, too long, or over a limit"
        )
        self.key_requests = self.make_metric(Counter, "key_requests", "Requests of each key", labelnames=KEY)
        self.key_characters = self.make_metric(
            Counter, "key_characters", "Characters of the requests of each key", labelnames=KEY
        )
        self.key_audio_seconds = self.make_metric(
            Counter, "key_audio_seconds", "Seconds of speech made for each key", labelnames=KEY
        )
        self.key_rejected = self.make_metric(
            Counter, "key_rejected", "Requests of each key that were refused", labelnames=KEY
        )
        self.failed = self.make_metric(Counter, "failed", "Requests that ended with an error")
        self.cut_off = {
            MAX_FRAMES: self.make_metric(
                Counter, "max_frames", "Requests that completed with speech cut off at its longest length"
            ),
            REPETITION: self.make_metric(
                Counter,
                "repetition",
                "Requests that completed with speech cut off as it repeated itself",
            ),
        }
        self.retries = self.make_metric(Counter, "retries", "Sentences that were made again after a failure")
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
        elif isinstance(error, RefusedError | TooLongError):
            self.record_refusal(reply.client.key)
        elif error:
            self.failed.inc()
        else:
            self.completed.inc()
            self.retries.inc(reply.timings.retries)
            if reply.finish_reason in self.cut_off:
                self.cut_off[reply.finish_reason].inc()

    def record_begin(self, key: Key, characters: int) -> None:
        """Count a request that was taken for its key."""
        if key.name:
            self.key_requests.labels(key=key.name).inc()
            self.key_characters.labels(key=key.name).inc(characters)

    def record_refusal(self, key: Key | None) -> None:
        """Count a request that was refused, for its key as well."""
        self.rejected.inc()
        if key:
            key.rejected += 1
            if key.name:
                self.key_rejected.labels(key=key.name).inc()

    def record_speech(self, reply: Reply, error: Exception | None, rate: int) -> None:
        """Observe the speech of a request that has ended. rate: Hz.

        Only a request that completed has a real-time factor.
        """
        seconds, key = reply.samples / rate, reply.client.key
        self.audio_seconds.inc(seconds)
        if key and key.name:
            self.key_audio_seconds.labels(key=key.name).inc(seconds)
        if seconds and not reply.cancelled and not error:
            self.rtf.observe((time.perf_counter() - reply.arrived) / seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return bytes(generate_latest(self.registry))
