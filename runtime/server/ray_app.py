"""Several replicas behind one address, with Ray Serve: `serve run deploy/ray-serve.yaml`.

A replica is the app of `valle2 serve` with its own `Worker`. Ray starts replicas, routes each request to a
less loaded one, and adds replicas when requests pile up. A replica gets requests only after its warm-up. Ray
exports the metrics as `ray_valle2_*`, labelled by replica.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from valle2.runtime.errors import ModelError, SettingsError
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.keys import Keys, read_keys
from valle2.runtime.server.limits import VOICES_DIR, Limits, expand_home
from valle2.runtime.server.metrics import Metrics
from valle2.runtime.server.store import VoiceStore, read_aliases
from valle2.runtime.server.worker import Worker, WorkerState
from valle2.runtime.tts import Valle2

try:
    from ray import serve
    from ray.serve import metrics as ray_metrics
except ImportError:
    raise ModelError("ray is not installed; install with: pip install 'valle2[ray]'") from None

LOAD_ARGUMENTS = ("model", "device", "precision", "threads", "engine")
"""Arguments of `Valle2.load` that a config file may give."""
SPARE_REQUESTS = 8
"""Requests that Ray sends to a replica beyond what its worker holds; the worker refuses them with 429."""
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a replica.

    Args:
        load: arguments of `Valle2.load`. limits: bounds on the requests of one replica.
        voices: folder of uploaded voices, the same for all replicas.
        key_file: file with the API keys, present on every node. Without one, a replica answers only to this
            machine's own names.
        aliases_file: JSON file with further names of voices, present on every node.
    """

    load: dict[str, Any]
    limits: Limits
    voices: Path
    key_file: Path | None
    aliases_file: Path | None = None

    @classmethod
    def from_args(cls, args: dict[str, Any]) -> Options:
        """Read the `args` of a config file: `LOAD_ARGUMENTS`, `limits`, `voices_dir`, `voice_aliases`,
        `api_key_file`.

        Raises:
            SettingsError: a name is unknown, a limit is out of range, or `~` is unknown.
        """
        limits = args.get("limits", {})
        check_names("args", args, (*LOAD_ARGUMENTS, "limits", "voices_dir", "voice_aliases", "api_key_file"))
        check_names("limits", limits, tuple(entry.name for entry in fields(Limits)))
        key_file, aliases = args.get("api_key_file"), args.get("voice_aliases")
        return cls(
            {name: args[name] for name in LOAD_ARGUMENTS if name in args},
            Limits(**limits),
            expand_home(Path(args.get("voices_dir", VOICES_DIR))),
            Path(key_file) if key_file else None,
            Path(aliases) if aliases else None,
        )


def check_names(place: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse unknown names in a part of a config file."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise SettingsError(
            f"{place} of the config file has {', '.join(unknown)}; expected only {', '.join(known)}"
        )


class Replica:
    """One replica. Ray calls these methods and sends requests to the app."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.worker = Worker(self.load, options.limits, ReplicaMetrics())

    def load(self, slots: int) -> Valle2:
        return Valle2.load(**self.options.load, slots=slots)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        keys = read_keys(self.options.key_file) if self.options.key_file else Keys()
        aliases = read_aliases(self.options.aliases_file) if self.options.aliases_file else {}
        store = VoiceStore(self.options.voices, aliases)
        store.prepare()
        app = make_app(self.worker, store, keys)
        return ReplicaApp(app, self.worker, serve.get_replica_context().replica_id.unique_id)

    def check_health(self) -> None:
        """Ray replaces a replica whose check raises.

        Raises:
            ModelError: the engine thread is dead or stuck.
        """
        if not self.worker.healthy:
            raise ModelError(f"the engine thread is dead or stuck; its last error: {self.worker.last_error}")


class ReplicaApp:
    """Wraps an app: its startup waits for the worker, and its responses name the replica (`X-Replica`)."""

    def __init__(self, app: ASGIApp, worker: Worker, replica: str) -> None:
        self.app, self.worker, self.replica = app, worker, replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_name(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self.wait_loaded()
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-replica", self.replica.encode())]
            await send(message)

        await self.app(scope, receive, send_with_name)

    async def wait_loaded(self) -> None:
        """Wait until the worker has loaded the model and spoken once.

        Raises:
            ModelError: the model does not load.
        """
        while self.worker.state in (WorkerState.LOADING, WorkerState.FAILED):
            if self.worker.failure:
                raise ModelError(f"the model does not load: {self.worker.last_error}")
            await asyncio.sleep(POLL_SECONDS)


class ReplicaCounter(ray_metrics.Counter):  # type: ignore[misc, unused-ignore]
    """A counter with the methods of Prometheus's own. An increment of 0 is ignored; Ray's raises an error."""

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        if value > 0:
            super().inc(value, tags)

    def labels(self, **tags: str) -> LabelledCounter:
        """The counter of these tags."""
        return LabelledCounter(self, tags)


@dataclass(frozen=True, slots=True)
class LabelledCounter:
    """A counter of some tags."""

    counter: ReplicaCounter
    tags: dict[str, str]

    def inc(self, value: float = 1.0) -> None:
        """Add to the counter."""
        self.counter.inc(value, self.tags)


class ReplicaMetrics(Metrics):
    """The server's metrics in Ray's exporter, which labels them by replica."""

    def make_metric(self, kind: Any, name: str, text: str, **more: Any) -> Any:
        if kind.__name__ == "Histogram":
            return ray_metrics.Histogram(f"valle2_{name}", text, boundaries=list(more["buckets"]))
        kinds = {"Counter": ReplicaCounter, "Gauge": ray_metrics.Gauge}
        return kinds[kind.__name__](f"valle2_{name}", text, tag_keys=more.get("labelnames"))

    def text(self) -> bytes:
        return b"# Ray's exporter on each node has these metrics as ray_valle2_*, labelled by replica\n"


def application(args: dict[str, Any]) -> Any:
    """The application that a Ray Serve config file imports: one deployment, `Speech`.

    Args:
        args: of the config file; see `Options.from_args`.

    Raises:
        SettingsError: a name is unknown, or a limit is out of range.
    """
    options = Options.from_args(args)
    limits = options.limits
    deployment = serve.deployment(
        serve.ingress(None)(Replica),
        name="Speech",
        max_ongoing_requests=limits.slots + limits.queue + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=limits.drain_seconds,
    )
    return deployment.bind(options)
