"""A call of a TensorRT engine with fixed buffers: what runs at every step of a decode loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from valle2.engine.backends.base import Array, Buffer
from valle2.engine.backends.trt.api import make_allocator
from valle2.engine.backends.trt.buffers import Shape, TrtBuffer, as_trt_buffer, host_type
from valle2.engine.backends.trt.loaded import LoadedEngine
from valle2.engine.errors import BackendError

ALIGNMENT = 256
"""Bytes; TensorRT takes no address that is not a multiple of it."""


class BoundCall:
    """One execution context with its profile, shapes and addresses; calling it runs the engine once.

    The first call is enqueued. With capture, the second is captured as a CUDA graph while it is enqueued, and
    later calls replay the capture. TensorRT cannot use every buffer where it lies: an address may be off its
    alignment, or an output that it does not update in place may share its input's buffer. Such a tensor goes
    through a buffer of this call, which is copied on the device before or after the engine runs.

    Closing the call, or dropping its last reference, frees the capture and returns the context to the engine.
    Buffers live as long as their owners.

    Args:
        inputs: a buffer for every input. outputs: buffers by name; the call allocates the others.
        capture: whether to replay calls as a CUDA graph.

    Raises:
        BackendError: an input is missing, no profile takes the shapes, or TensorRT refuses a buffer.
    """

    def __init__(
        self,
        engine: LoadedEngine,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        capture: bool,
    ) -> None:
        self.engine, self.cuda, self.spec = engine, engine.cuda, engine.spec
        self.capture = capture
        self.graph: Any = None
        self.context: Any = None
        self.calls = 0
        self.copies_in: list[tuple[TrtBuffer, TrtBuffer]] = []
        self.copies_out: list[tuple[TrtBuffer, TrtBuffer]] = []
        self.shapes: dict[str, Shape] = {}
        self.allocators: dict[str, Any] = {}
        self.given = {name: as_trt_buffer(buffer) for name, buffer in inputs.items()}
        missing = sorted({tensor.name for tensor in self.spec.inputs} - set(inputs))
        if missing:
            raise BackendError(f"{self.spec.file}: inputs {missing} are not bound; bind them all")
        self.profile = engine.profile_for({name: buffer.shape for name, buffer in inputs.items()})
        self.context = self.open_context()
        self.inputs = {name: self.bind_input(name, buffer) for name, buffer in self.given.items()}
        unknown: Sequence[str] = self.context.infer_shapes()
        if unknown:
            raise BackendError(
                f"{self.spec.file}: the shapes of {list(unknown)} are unknown; build the engine again"
            )
        self.outputs = {t.name: self.choose_output(t.name, outputs.get(t.name)) for t in self.spec.outputs}
        for name, buffer in self.outputs.items():
            self.set_address(name, buffer)

    def open_context(self) -> Any:
        """A context that is set to the profile."""
        known, found = self.engine.take_context(self.profile)
        context = self.engine.checked(found, "has no memory for a context")
        if known != self.profile:
            changed = context.set_optimization_profile_async(self.profile, self.cuda.stream)
            self.engine.checked(changed, "refuses its profile")
            self.cuda.synchronize()
        return context

    def bind_input(self, name: str, given: TrtBuffer) -> TrtBuffer:
        """Set the shape and address of an input; returns the buffer that TensorRT reads."""
        used = given
        if given.address % ALIGNMENT:
            used = TrtBuffer(self.cuda, given.shape, given.dtype)
            self.copies_in.append((used, given))
        accepted = self.context.set_input_shape(name, given.shape)
        self.engine.checked(accepted, f"refuses {name} {given.shape}")
        self.set_address(name, used)
        return used

    def set_address(self, name: str, buffer: TrtBuffer) -> None:
        accepted = self.context.set_tensor_address(name, buffer.address)
        self.engine.checked(accepted, f"refuses the address of {name}")

    def choose_output(self, name: str, given: Buffer | None) -> TrtBuffer:
        """The buffer that TensorRT writes: the one given, that of its aliased input, or a new one."""
        alias = self.engine.alias_of(name)
        target = None if given is None else as_trt_buffer(given)
        if alias and target is not None and target.address != self.given[alias].address:
            raise BackendError(f"{name} is updated in place; bind it to the buffer of {alias}")
        read = {buffer.address for buffer in self.inputs.values()}
        if target is not None and not alias and not target.address % ALIGNMENT and target.address not in read:
            return target
        used = self.inputs[alias] if alias else self.new_output(name)
        if target is not None and target.address != used.address:
            self.copies_out.append((target, used))
        return used

    def new_output(self, name: str) -> TrtBuffer:
        """A buffer of the greatest size that an output can have."""
        spec = next(tensor for tensor in self.spec.outputs if tensor.name == name)
        dtype = host_type(spec.dtype)
        shape = tuple(self.context.get_tensor_shape(name))
        if min(shape, default=1) >= 0:
            return TrtBuffer(self.cuda, shape, dtype)
        largest = TrtBuffer(self.cuda, (self.context.get_max_output_size(name) // dtype.itemsize,), dtype)
        allocator = make_allocator(self.engine.trt, largest.address, self.shapes.__setitem__)
        accepted = self.context.set_output_allocator(name, allocator)
        self.engine.checked(accepted, f"refuses an allocator for {name}")
        self.allocators[name] = allocator
        return largest

    def result(self, name: str) -> Array:
        """An output of the last call. A shape that depends on values was reported while it ran."""
        self.cuda.synchronize()
        shape = self.shapes.get(name) or tuple(self.context.get_tensor_shape(name))
        return self.outputs[name].view(shape).read()

    def __call__(self) -> None:
        if self.graph is not None:
            self.cuda.launch(self.graph)
            return
        if self.capture and self.calls and self.can_be_captured():
            self.capture_and_run()
            return
        self.enqueue()
        self.calls += 1

    def can_be_captured(self) -> bool:
        """Newer releases answer; with older ones the attempt decides."""
        ask = getattr(self.context, "is_stream_capturable", None)
        self.capture = bool(ask(self.cuda.stream)) if ask else True
        return self.capture

    def capture_and_run(self) -> None:
        """Capture one call and run it. A call that cannot be captured is enqueued from now on."""
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
        """Enqueue the engine and the copies around it."""
        for target, source in self.copies_in:
            self.cuda.copy(target.address, source.address, target.size)
        messages = self.engine.messages
        messages.clear()
        if not self.context.execute_async_v3(self.cuda.stream):
            raise BackendError(f"{self.spec.file} failed: {messages.reason()}")
        for target, source in self.copies_out:
            self.cuda.copy(target.address, source.address, target.size)

    def close(self) -> None:
        """Free the capture and return the context; the call cannot be used afterwards."""
        graph, context, self.graph, self.context = self.graph, self.context, None, None
        if context is not None:
            self.cuda.synchronize()
            for name in self.allocators:
                context.set_output_allocator(name, None)
            self.engine.return_context(self.profile, context)
        if graph is not None:
            self.cuda.free_graph(graph)

    def __del__(self) -> None:
        with suppress(BackendError, AttributeError):  # the driver may be gone, or __init__ may have failed
            self.close()
