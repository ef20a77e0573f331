"""Several engines behind one address, with Ray Serve: `serve run deploy/ray-serve.yaml`.

A replica is one `Worker` with the app of `valle2 serve` around it; nothing of the endpoint is written twice.
Ray starts replicas, routes each request to a less loaded one and adds replicas as requests pile up. It takes
a request only after the replica has spoken once; its metrics leave by Ray's own exporter as `ray_valle2_*`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from valle2.runtime.errors import ModelError, SettingsError
from valle2.runtime.server.cli import VOICES_DIR
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.http.guard import App, Message, Receive, Send, read_key
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.metrics import Metrics
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import State, Worker
from valle2.runtime.tts import Valle2

try:
    from ray import serve
    from ray.serve import metrics as ray_metrics
except ImportError:
    raise ModelError("ray is not installed; install with: pip install 'valle2[ray]'") from None

LOAD = ("model", "device", "precision", "threads", "engine")
SPARE = 8
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Options:
    """What a replica is made from.

    Args:
        load: arguments of `Valle2.load`. limits: bounds of one replica. voices: folder of uploaded voices,
            which all replicas must see. key_file: file with the API key, on every node; None lets in whoever
            calls the address by one of this machine's own names.
    """

    load: dict[str, Any]
    limits: Limits
    voices: Path
    key_file: Path | None

    @classmethod
    def of(cls, args: dict[str, Any]) -> Options:
        """From the `args` of a config file: those of `Valle2.load`, `limits`, `voices_dir`, `api_key_file`.

        Raises:
            SettingsError: an unknown name, or a limit out of range.
        """
        limits = args.get("limits", {})
        check_names("args", args, (*LOAD, "limits", "voices_dir", "api_key_file"))
        check_names("limits", limits, tuple(entry.name for entry in fields(Limits)))
        key_file = args.get("api_key_file")
        return cls(
            {name: args[name] for name in LOAD if name in args},
            Limits(**limits),
            Path(args.get("voices_dir", VOICES_DIR)).expanduser(),
            Path(key_file) if key_file else None,
        )


def check_names(place: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise SettingsError(f"{place} has {', '.join(unknown)}; expected some of {', '.join(known)}")


class Replica:
    """One engine. Ray calls the methods; requests go to the app."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.worker = Worker(self.load, options.limits, ReplicaMetrics())

    def load(self, slots: int) -> Valle2:
        return Valle2.load(**self.options.load, slots=slots)

    def __serve_build_asgi_app__(self) -> App:
        key = read_key(self.options.key_file) if self.options.key_file else ""
        app = make_app(self.worker, VoiceStore(self.options.voices), key)
        return Named(app, self.worker, serve.get_replica_context().replica_id.unique_id)

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self.worker.healthy:
            raise ModelError(f"the engine thread is dead or hangs; its last error: {self.worker.last_error}")


class Named:
    """An app that is up when its worker is, and whose responses name their replica."""

    def __init__(self, app: App, worker: Worker, name: str) -> None:
        self.app, self.worker, self.name = app, worker, name

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self.warm()
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-replica", self.name.encode())]
            await send(message)

        await self.app(scope, receive, told)

    async def warm(self) -> None:
        """Wait until the worker has loaded and spoken.

        Raises:
            ModelError: it could not.
        """
        while self.worker.state is State.LOADING:
            if self.worker.restarts:
                raise ModelError(f"the model does not load: {self.worker.last_error}")
            await asyncio.sleep(POLL_SECONDS)


class Total(ray_metrics.Counter):  # type: ignore[misc, unused-ignore]
    """A counter to which nothing may be added."""

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        if value > 0:
            super().inc(value, tags)


class ReplicaMetrics(Metrics):
    """The server's metrics, labelled by replica, in Ray's exporter."""

    def make(self, kind: Any, name: str, text: str, **more: Any) -> Any:
        if kind.__name__ == "Histogram":
            return ray_metrics.Histogram(f"valle2_{name}", text, boundaries=list(more["buckets"]))
        return {"Counter": Total, "Gauge": ray_metrics.Gauge}[kind.__name__](f"valle2_{name}", text)

    def text(self) -> bytes:
        return b"# each node's Ray exporter has these as ray_valle2_*, labelled by replica\n"


def application(args: dict[str, Any]) -> Any:
    """What a Ray Serve config file imports: the deployment `Speech`, one replica unless the file says more.

    A replica takes more than its engine holds: it is the engine that refuses, with 429 and Retry-After.

    Raises:
        SettingsError: an unknown argument.
    """
    options = Options.of(args)
    limits = options.limits
    deployment = serve.deployment(
        serve.ingress(None)(Replica),
        name="Speech",
        max_ongoing_requests=limits.slots + limits.queue + SPARE,
        graceful_shutdown_timeout_s=limits.drain_seconds,
    )
    return deployment.bind(options)
