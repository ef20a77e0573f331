"""Device buffers and bound calls of a TensorRT engine: what happens at every step of a decode loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, Buffer
from valle2.engine.backends.trt.api import make_allocator
from valle2.engine.backends.trt.cuda import Cuda
from valle2.engine.errors import BackendError

if TYPE_CHECKING:
    from valle2.engine.backends.trt.backend import TrtBackend

Shape = tuple[int, ...]
ALIGNMENT = 256  # of every address that TensorRT is given
HOST_TYPES = {"bfloat16": "uint16"}  # numpy types of the same size, for what the host only carries


class TrtBuffer(Buffer):
    """Device memory, or a part of an owner's, whose memory it keeps alive."""

    def __init__(
        self,
        cuda: Cuda,
        shape: Shape,
        dtype: np.dtype[Any],
        owner: TrtBuffer | None = None,
        offset: int = 0,
    ) -> None:
        self.cuda, self.shape, self.dtype, self.owner = cuda, shape, dtype, owner
        self.size = int(np.prod(shape)) * dtype.itemsize
        self.address: int = owner.address + offset if owner else cuda.allocate(self.size)

    def read(self) -> Array:
        values = np.empty(self.shape, self.dtype)
        self.cuda.download(values.ctypes.data, self.address, self.size)
        return values

    def write(self, values: Array) -> None:
        if values.shape != self.shape or values.dtype != self.dtype:
            raise BackendError(
                f"values are {values.dtype} {values.shape}; expected {self.dtype} {self.shape} of the buffer"
            )
        whole = np.ascontiguousarray(values)
        self.cuda.upload(self.address, whole.ctypes.data, self.size)

    def rows(self, part: slice) -> TrtBuffer:
        row = self.size // max(1, self.shape[0])
        shape = (part.stop - part.start, *self.shape[1:])
        return TrtBuffer(self.cuda, shape, self.dtype, self, part.start * row)

    def view(self, shape: Shape) -> TrtBuffer:
        """The same memory from its start on under a smaller shape."""
        if int(np.prod(shape)) * self.dtype.itemsize > self.size:
            raise BackendError(
                f"a view of {shape} does not fit a buffer of {self.shape}; allocate a larger one"
            )
        return TrtBuffer(self.cuda, shape, self.dtype, self)

    def free(self) -> None:
        """Give the memory back; a view has none of its own."""
        if self.owner is None and self.address:
            self.cuda.free(self.address)
            self.address = 0

    def __del__(self) -> None:
        with suppress(BackendError, AttributeError):  # a driver that shuts down has taken the memory itself
            self.free()


class BoundCall:
    """One execution context with its profile, shapes and addresses; calling it runs the engine once.

    It ends with its last reference: the recording is dropped, the context goes back to the backend for the
    next call, buffers live as long as their owners.

    The first call is enqueued and, if capture is on, the second is recorded while it is queued; all later
    ones replay the recording. What TensorRT cannot use where it lies (an address off its alignment, an output
    that is not updated in place but shares its input's buffer) goes through a buffer of our own, copied on
    the device before or behind the call.
    """

    def __init__(
        self,
        backend: TrtBackend,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        capture: bool | None = None,
    ) -> None:
        self.backend, self.cuda = backend, backend.cuda
        self.capture = backend.capture if capture is None else capture
        self.graph: Any = None
        self.context: Any = None
        self.calls = 0
        self.before: list[tuple[TrtBuffer, TrtBuffer]] = []
        self.behind: list[tuple[TrtBuffer, TrtBuffer]] = []
        self.shapes: dict[str, Shape] = {}
        self.allocators: dict[str, Any] = {}
        self.given = {name: trt_buffer(buffer) for name, buffer in inputs.items()}
        missing = sorted({spec.name for spec in backend.spec.inputs} - set(inputs))
        if missing:
            raise BackendError(f"{backend.spec.file}: inputs {missing} are not bound; bind them all")
        self.profile = backend.profile_for({name: buffer.shape for name, buffer in inputs.items()})
        self.context = self.prepared()
        self.inputs = {name: self.input(name, buffer) for name, buffer in self.given.items()}
        unclear: Sequence[str] = self.context.infer_shapes()
        if unclear:
            raise BackendError(f"{backend.spec.file}: the shapes of {list(unclear)} are open; build it again")
        self.outputs = {
            spec.name: self.output(spec.name, outputs.get(spec.name)) for spec in backend.spec.outputs
        }
        for name, buffer in self.outputs.items():
            self.set_address(name, buffer)

    def prepared(self) -> Any:
        """A context that is set to the profile."""
        known, found = self.backend.take_context(self.profile)
        context = self.checked(found, "has no room for a context")
        if known != self.profile:
            changed = context.set_optimization_profile_async(self.profile, self.cuda.stream)
            self.checked(changed, "refuses its profile")
            self.cuda.synchronize()
        return context

    def input(self, name: str, given: TrtBuffer) -> TrtBuffer:
        """Set shape and address of an input; the buffer that TensorRT reads."""
        used = given
        if given.address % ALIGNMENT:
            used = TrtBuffer(self.cuda, given.shape, given.dtype)
            self.before.append((used, given))
        self.checked(self.context.set_input_shape(name, given.shape), f"refuses {name} {given.shape}")
        self.set_address(name, used)
        return used

    def set_address(self, name: str, buffer: TrtBuffer) -> None:
        self.checked(self.context.set_tensor_address(name, buffer.address), f"refuses the address of {name}")

    def output(self, name: str, given: Buffer | None) -> TrtBuffer:
        """The buffer that TensorRT writes: the one given, its alias's, or one of our own."""
        engine = self.backend.engine
        alias = engine.get_aliased_input_tensor(name) if has_aliases(engine) else None
        target = None if given is None else trt_buffer(given)
        if alias and target is not None and target.address != self.given[alias].address:
            raise BackendError(f"{name} is updated in place; bind it to the buffer of {alias}")
        taken = {buffer.address for buffer in self.inputs.values()}
        if (
            target is not None
            and not alias
            and not target.address % ALIGNMENT
            and target.address not in taken
        ):
            return target
        used = self.inputs[alias] if alias else self.fresh(name)
        if target is not None and target.address != used.address:
            self.behind.append((target, used))
        return used

    def fresh(self, name: str) -> TrtBuffer:
        """A buffer of the greatest size that an output can have."""
        spec = next(tensor for tensor in self.backend.spec.outputs if tensor.name == name)
        kind = host_type(spec.dtype)
        shape = tuple(self.context.get_tensor_shape(name))
        if min(shape, default=1) >= 0:
            return self.backend.buffer(shape, kind)
        most = self.backend.buffer((self.context.get_max_output_size(name) // kind.itemsize,), kind)
        allocator = make_allocator(self.backend.trt, most.address, self.shapes.__setitem__)
        self.checked(self.context.set_output_allocator(name, allocator), f"refuses to size {name}")
        self.allocators[name] = allocator
        return most

    def result(self, name: str) -> Array:
        """An output of the last call; a shape that depends on values was told while it ran."""
        self.cuda.synchronize()
        shape = self.shapes.get(name) or tuple(self.context.get_tensor_shape(name))
        return self.outputs[name].view(shape).read()

    def __call__(self) -> None:
        if self.graph is not None:
            self.cuda.launch(self.graph)
            return
        if self.capture and self.calls and self.capturable():
            self.record()
            return
        self.enqueue()
        self.calls += 1

    def capturable(self) -> bool:
        """Newer releases say whether a call can be captured; older ones can if no value decides a shape."""
        ask = getattr(self.context, "is_stream_capturable", None)
        self.capture = bool(ask(self.cuda.stream)) if ask else True
        return self.capture

    def record(self) -> None:
        """Capture one call and run it; a call that cannot be captured is enqueued from now on."""
        self.cuda.begin_capture()
        try:
            self.enqueue()
        except BackendError:
            self.capture = False
        try:
            graph = self.cuda.end_capture()
        except BackendError:
            self.capture = False
        if self.capture:
            self.graph = graph
            self.cuda.launch(graph)
        else:
            self.enqueue()

    def enqueue(self) -> None:
        """Queue the engine and the copies around it."""
        for target, source in self.before:
            self.cuda.copy(target.address, source.address, target.size)
        messages = self.backend.messages
        messages.clear()
        if not self.context.execute_async_v3(self.cuda.stream):
            raise BackendError(f"{self.backend.spec.file} failed: {messages.reason()}")
        for target, source in self.behind:
            self.cuda.copy(target.address, source.address, target.size)

    def checked(self, value: Any, text: str) -> Any:
        """Pass a result on, or say what TensorRT refused."""
        if value is None or value is False:
            reason = self.backend.messages.reason()
            raise BackendError(f"{self.backend.spec.file}: the engine {text}: {reason}")
        return value

    def close(self) -> None:
        """Give the context back and free the recording; the call cannot be used afterwards."""
        graph, context, self.graph, self.context = self.graph, self.context, None, None
        if context is not None:
            self.cuda.synchronize()
            for name in self.allocators:
                context.set_output_allocator(name, None)
            self.backend.contexts.append((self.profile, context))
        if graph is not None:
            self.cuda.drop(graph)

    def __del__(self) -> None:
        with suppress(BackendError, AttributeError):  # the driver may be gone, or the call never was whole
            self.close()


def has_aliases(engine: Any) -> bool:
    """TensorRT before 10.15 updates nothing in place and does not know the question."""
    return hasattr(engine, "get_aliased_input_tensor")


def host_type(dtype: DTypeLike) -> np.dtype[Any]:
    """The numpy type with a tensor's memory layout; numpy has no bfloat16."""
    return np.dtype(HOST_TYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)


def trt_buffer(buffer: Buffer) -> TrtBuffer:
    """One of our own buffers."""
    assert isinstance(buffer, TrtBuffer), "buffer of another backend"
    return buffer
