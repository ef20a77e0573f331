"""Both editions of TensorRT through one interface; `TARGETS` holds what differs between them.

It imports them only when they are used, and turns their log into exceptions. It knows neither bundles nor
devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from valle2.engine.errors import BackendError


@dataclass(frozen=True, slots=True)
class Target:
    """An edition of TensorRT.

    Args:
        module: its Python module. extra: the extra of valle2 that installs it.
        gpus: compute capabilities that it builds for on any machine; empty if it builds only for the GPU that
            it runs on.
        timings: whether it measures kernels and can keep the measurements. RTX compiles without measuring.
        fused_since: the first release with `Attention` and `TensorScatter`. Earlier ones take only the
            lowering "primitive".
    """

    module: str
    extra: str
    gpus: tuple[str, ...]
    timings: bool
    fused_since: tuple[int, int] = (0, 0)

    def lowerings(self, version: str) -> tuple[str, ...]:
        """The lowerings that a release takes, best first."""
        older = release(version) < self.fused_since
        return ("primitive",) if older else ("portable", "primitive")


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


TARGETS = {
    "tensorrt": Target("tensorrt", "tensorrt", (), timings=True, fused_since=(10, 15)),
    "tensorrt-rtx": Target(
        "tensorrt_rtx",
        "tensorrt-rtx",
        ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
        timings=False,
    ),
}


def target_named(name: str) -> Target:
    """The edition of a name.

    Raises:
        BackendError: there is none of that name.
    """
    if name not in TARGETS:
        raise BackendError(f"unknown target {name!r}; expected one of {', '.join(TARGETS)}")
    return TARGETS[name]


def load(name: str) -> Any:
    """Import an edition's module.

    Raises:
        BackendError: it is not installed, or its libraries do not load.
    """
    target = target_named(name)
    try:
        return import_module(target.module)
    except ImportError as error:
        raise BackendError(
            f"{name} is not available ({error}); install it with: pip install 'valle2[{target.extra}]'"
        ) from None


class Messages:
    """The errors that TensorRT reported since the last `clear`, in order."""

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.logger = make_logger(trt, self.take)

    def take(self, level: str, text: str) -> None:
        if level in ("INTERNAL_ERROR", "ERROR"):
            self.errors.append(text)

    def clear(self) -> None:
        """Forget earlier errors, before a new operation."""
        self.errors.clear()

    def reason(self) -> str:
        """The first error, which caused the others."""
        return " ".join(self.errors[0].split()) if self.errors else "no reason given"


@cache
def messages_of(trt: Any) -> Messages:
    """The one listener of this process: TensorRT keeps the first logger that it is given."""
    return Messages(trt)


def make_logger(trt: Any, take: Callable[[str, str], None]) -> Any:
    """A TensorRT logger that calls `take(level, text)`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            take(severity.name, msg)

    return Logger()


def make_allocator(trt: Any, address: int, note: Callable[[str, tuple[int, ...]], None]) -> Any:
    """An allocator that puts an output at `address` and calls `note(name, shape)` with its shape."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, name: str, memory: Any, size: int, alignment: int) -> int:
            return address

        def reallocate_output_async(
            self, name: str, memory: Any, size: int, alignment: int, stream: int
        ) -> int:
            return address

        def notify_shape(self, name: str, shape: Any) -> None:
            note(name, tuple(shape))

    return Allocator()


@dataclass(frozen=True, slots=True)
class Parsed:
    """A network, and the TensorRT objects that keep it alive."""

    trt: Any
    messages: Messages
    builder: Any
    network: Any
    parser: Any


def lowerings_here(name: str) -> tuple[str, ...]:
    """The lowerings that the installed release of an edition takes, best first.

    Raises:
        BackendError: as `load`.
    """
    return target_named(name).lowerings(str(load(name).__version__))


@contextmanager
def parsed(trt: Any, path: Path) -> Iterator[Parsed]:
    """Parse an ONNX file into a strongly typed network.

    Raises:
        BackendError: the parser refuses the file; the message names the nodes.
    """
    messages = messages_of(trt)
    messages.clear()
    builder = trt.Builder(messages.logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(path)):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        text = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found)
        raise BackendError(f"{path.name}: TensorRT's parser refuses {text or messages.reason()}")
    yield Parsed(trt, messages, builder, network, parser)


def layers(network: Any) -> Iterator[Any]:
    """Every layer of a network."""
    return (network.get_layer(index) for index in range(network.num_layers))


def attention_of(trt: Any, layer: Any) -> Any:
    """The attention that an ATTENTION_INPUT layer belongs to; `get_layer` returns the base class."""
    layer.__class__ = trt.IAttentionInputLayer
    return layer.attention


def input_tensors(layer: Any) -> list[Any]:
    """A layer's input tensors, without absent optional ones."""
    found = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in found if tensor is not None]


def output_tensors(layer: Any) -> list[Any]:
    """A layer's output tensors."""
    return [layer.get_output(index) for index in range(layer.num_outputs)]
