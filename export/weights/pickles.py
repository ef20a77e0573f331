"""Reads a pickle as data: a small stack machine that builds tensors, plain values and containers.

A pickle is a program, and Python's own machine calls the functions that the program names. This machine
calls no function of the file's choice. It knows the opcodes that build values. A name in the pickle must be
an entry of `valle2.export.weights.admitted`; other names are refused. Limits on the number of opcodes and on
the bytes of all values are checked before the work is done.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from valle2.engine.bundle.untrusted import shown

Bytes = bytes | memoryview

MAX_OPCODES, MAX_ARGUMENTS = 2_000_000, 64
MAX_DIGITS = 64
"""Bytes of a whole number. The states of random generators have 17."""
MAX_KEYS, MAX_TUPLE_KEYS, LONGEST_TUPLE_KEY = 20_000, 1000, 16
"""Most keys that are numbers, and most tuples among them. A file could choose such keys to collide."""
KEY_LIMIT = 1 << 60
"""Smaller whole numbers are their own hashes."""
MEMO_GAP = 8
"""How far the index of a memo entry may exceed the number of entries so far."""
OPCODE_COST, VALUE_COST, ENTRY_COST, MARK_COST = 16, 64, 100, 120
"""Bytes charged for an opcode, a small value, a dictionary's entry and a list."""


class PickleError(ValueError):
    """The bytes are not a pickle of torch.save. The message says why."""


class RefusedName(PickleError):
    """The pickle uses a name that is not admitted. The message is the quoted name."""

    def __init__(self, module: str, name: str) -> None:
        super().__init__(shown(f"{module}.{name}"))


class Budget:
    """How much memory the values of a file may still take. limit: bytes for all values."""

    def __init__(self, limit: int) -> None:
        self.limit = self.left = limit
        self.tuple_keys, self.number_keys = MAX_TUPLE_KEYS, MAX_KEYS

    def charge(self, size: int) -> None:
        """Count bytes before they are allocated.

        Raises:
            PickleError: the limit is exceeded.
        """
        self.left -= size
        if self.left < 0:
            raise PickleError(f"its values beside the tensors take more than {self.limit >> 20} MiB")

    def check_key(self, key: Any) -> None:
        """Check that a key cannot be chosen so that keys collide: no nested tuples, few tuples."""
        self.charge(ENTRY_COST)
        if type(key) is tuple:
            self.tuple_keys -= 1
            if self.tuple_keys < 0 or len(key) > LONGEST_TUPLE_KEY:
                raise PickleError("its pickle has too many keys that are tuples")
            for part in key:
                if type(part) is tuple:
                    raise PickleError("its pickle has a key that is a nested tuple")
                self.check_key(part)
            return
        if type(key) in (str, bytes, bool, type(None)):
            return
        self.number_keys -= 1
        whole = type(key) is int and abs(key) < KEY_LIMIT
        if not (whole or type(key) is float) or self.number_keys < 0:
            raise PickleError(
                f"its pickle has a key that is a {type(key).__name__}, or too many numbers as keys"
            )

    def keys(self, values: Iterable[Any]) -> list[Any]:
        """The values, each checked as a key."""
        found = list(values)
        for key in found:
            self.check_key(key)
        return found


class Named(Protocol):
    """Builds the value of an admitted name when the pickle calls it."""

    def __call__(self, budget: Budget, *arguments: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Global:
    """An admitted name as a value. call: its builder; None if it builds nothing."""

    name: str
    call: Named | None = None


ABSENT = object()
"""A memo entry without a value."""
Persistent = Callable[[Any], Any]
Names = Mapping[tuple[str, str], Any]
Builders = Mapping[type, Callable[[Budget, Any, Any], None]]
"""By type of a value: sets its state (the opcode BUILD), or raises PickleError."""


def no_storage(key: Any) -> Any:
    raise PickleError("its pickle refers to a tensor's storage where there is none")


class Machine:
    """Reads one pickle after another from the same bytes.

    Args:
        data: the bytes. names: the admitted names, by module and name: a `Global`, or a value.
        builders: the types that take a state. budget: limits the memory of all values.

    Attributes:
        persistent: makes a storage from a persistent id. at: where the next pickle begins.
    """

    def __init__(self, data: Bytes, names: Names, builders: Builders, budget: Budget) -> None:
        self.data, self.names, self.builders, self.budget = data, names, builders, budget
        self.at = 0
        self.persistent: Persistent = no_storage
        self.opcodes = MAX_OPCODES

    def load(self) -> Any:
        """Read the next pickle. Afterwards `at` is the byte after it.

        Raises:
            PickleError: damaged, too large, or with an opcode or a name that is not admitted.
        """
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        try:
            while True:
                code = self.data[self.at]
                self.at += 1
                self.opcodes -= 1
                if self.opcodes < 0:
                    raise PickleError(f"its pickle has more than {MAX_OPCODES} opcodes")
                self.budget.charge(OPCODE_COST)
                if code == STOP:
                    break
                step = STEPS.get(code)
                if step is None:
                    raise PickleError(f"its pickle has the opcode {code:#x}, which builds no plain value")
                step(self)
            (found,) = self.stack
        except (IndexError, struct.error):
            raise PickleError("its pickle is cut off, or uses values that it has not made") from None
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
            if isinstance(error, PickleError):
                raise
            raise PickleError(f"its pickle is malformed ({type(error).__name__} at byte {self.at})") from None
        if self.marks:
            raise PickleError("its pickle ends inside a container")
        return found

    # -- bytes ----------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        """The next bytes, copied and charged to the budget."""
        if self.at + size > len(self.data):
            raise PickleError("its pickle is cut off")
        self.budget.charge(VALUE_COST + size)
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def number(self, form: struct.Struct) -> int:
        """The next number in the given format."""
        found: int = form.unpack_from(self.data, self.at)[0]
        self.at += form.size
        return found

    def line(self) -> str:
        """Text up to the end of the line: a module or a name."""
        found = bytearray()
        while (byte := self.data[self.at]) != NEWLINE:
            found.append(byte)
            self.at += 1
            if len(found) > LONGEST_LINE:
                raise PickleError("its pickle has a name without an end")
        self.at += 1
        return found.decode("utf-8")

    def blob(self, form: struct.Struct) -> bytes:
        """Bytes with their length before them."""
        return self.take(self.number(form))

    def text(self, form: struct.Struct) -> None:
        """Text with its length before it. One wide character makes all characters take up to four bytes."""
        raw = self.blob(form)
        if not raw.isascii():
            top = int(np.frombuffer(raw, np.uint8).max())
            self.budget.charge(len(raw) * (1 if top < TWO_BYTES else 2 if top < FOUR_BYTES else 4))
        self.push(raw.decode("utf-8", "replace"))

    # -- stack ----------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.budget.charge(MARK_COST)
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Pop the values since the last mark, and the mark."""
        found, self.stack = self.stack, self.marks.pop()
        return found

    def put(self, index: int) -> None:
        self.budget.charge(ENTRY_COST)
        missing = index + 1 - len(self.memo)
        if missing > MEMO_GAP:
            raise PickleError(f"its pickle numbers a value {index} after {len(self.memo)} others")
        self.memo += [ABSENT] * missing
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Push a memo entry."""
        value = self.memo[index]
        if value is ABSENT:
            raise PickleError(f"its pickle uses the value {index} before it has made it")
        self.push(value)

    def named(self, module: str, name: str) -> None:
        """Push the value of an admitted name."""
        if (module, name) not in self.names:
            raise RefusedName(module, name)
        self.push(self.names[module, name])

    def tuple_of(self, items: list[Any]) -> None:
        self.budget.charge(VALUE_COST + 8 * len(items))
        self.push(tuple(items))

    def pair_of(self, size: int) -> None:
        """Push a tuple of the last one, two or three values."""
        items = self.stack[-size:]
        if len(items) != size:
            raise PickleError("its pickle uses values that it has not made")
        del self.stack[-size:]
        self.tuple_of(items)

    def call(self) -> None:
        """Let the builder of an admitted name make its value from a tuple of arguments."""
        arguments, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, Global) or target.call is None or type(arguments) is not tuple:
            called = target.name if isinstance(target, Global) else f"a {type(target).__name__}"
            raise PickleError(f"its pickle calls {called} with arguments that it does not take")
        if len(arguments) > MAX_ARGUMENTS:
            raise PickleError(f"its pickle calls {target.name} with {len(arguments)} values")
        self.budget.charge(VALUE_COST)
        self.push(target.call(self.budget, *arguments))

    def call_with_names(self) -> None:
        """The same with keyword arguments. There must be none."""
        names = self.stack.pop()
        if type(names) is not dict or names:
            raise PickleError("its pickle makes a value with keyword arguments")
        self.call()

    def build(self) -> None:
        """Set the state of a value."""
        state, target = self.stack.pop(), self.stack[-1]
        for kind, builder in self.builders.items():
            if isinstance(target, kind):
                return builder(self.budget, target, state)
        raise PickleError(f"its pickle sets the state of a {type(target).__name__}")

    # -- containers -----------------------------------------------------------------------------

    def extend(self, values: list[Any]) -> None:
        """Add values to a list or a deque."""
        target = self.stack[-1]
        if type(target) not in (list, deque):
            raise PickleError(f"its pickle appends to a {type(target).__name__}")
        self.budget.charge(10 * len(values))
        target.extend(values)

    def extend_set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise PickleError(f"its pickle adds to a {type(target).__name__}")
        target.update(self.budget.keys(values))

    def set_items(self, values: list[Any]) -> None:
        """Add keys and values to a dictionary."""
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise PickleError(f"its pickle sets items of a {type(target).__name__}")
        target.update(zip(self.budget.keys(values[::2]), values[1::2], strict=True))


STOP, NEWLINE, LONGEST_LINE = ord("."), ord("\n"), 1000
TWO_BYTES, FOUR_BYTES = 0xC4, 0xF0
"""First bytes in UTF-8 of characters that take two bytes of memory, and four."""
U8, U16, I32, U32, U64, F64 = map(struct.Struct, ("<B", "<H", "<i", "<I", "<Q", ">d"))
Step = Callable[[Machine], None]


def whole_number(machine: Machine, form: struct.Struct) -> None:
    size = machine.number(form)
    if size > MAX_DIGITS:
        raise PickleError(f"its pickle has a whole number of {size} bytes")
    machine.push(int.from_bytes(machine.take(size), "little", signed=True))


def byte_text(machine: Machine, form: struct.Struct) -> None:
    """A Python 2 string: text if it is ASCII, otherwise bytes."""
    raw = machine.blob(form)
    machine.push(raw.decode("ascii") if raw.isascii() else raw)


def protocol(machine: Machine) -> None:
    if machine.number(U8) > 5:
        raise PickleError("its pickle has a protocol above 5")


def frame(machine: Machine) -> None:
    if machine.number(U64) > len(machine.data) - machine.at:
        raise PickleError("its pickle is cut off")


def stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise PickleError("its pickle has a name that is not text")
    machine.named(module, name)


def add_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def new_list(machine: Machine, items: list[Any]) -> None:
    machine.budget.charge(VALUE_COST + 8 * len(items))
    machine.push(items)


def new_dict(machine: Machine, items: list[Any]) -> None:
    machine.budget.charge(VALUE_COST)
    machine.push({})
    machine.set_items(items)


def new_set(machine: Machine, items: list[Any], kind: type = set) -> None:
    machine.budget.charge(4 * VALUE_COST)
    machine.push(kind(machine.budget.keys(items)))


def drop(machine: Machine) -> None:
    """Pop the last value, or the mark if there is no value after it."""
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


STEPS: dict[int, Step] = {
    0x80: protocol,
    0x95: frame,
    ord("("): Machine.mark,
    ord("0"): drop,
    ord("1"): lambda m: m.since_mark().clear(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    # numbers
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number(I32)),
    ord("K"): lambda m: m.push(m.number(U8)),
    ord("M"): lambda m: m.push(m.number(U16)),
    0x8A: lambda m: whole_number(m, U8),
    0x8B: lambda m: whole_number(m, U32),
    ord("G"): lambda m: m.push(m.number(F64)),
    # text and bytes
    ord("X"): lambda m: m.text(U32),
    0x8C: lambda m: m.text(U8),
    0x8D: lambda m: m.text(U64),
    ord("T"): lambda m: byte_text(m, U32),
    ord("U"): lambda m: byte_text(m, U8),
    ord("B"): lambda m: m.push(m.blob(U32)),
    ord("C"): lambda m: m.push(m.blob(U8)),
    0x8E: lambda m: m.push(m.blob(U64)),
    0x96: lambda m: m.push(bytearray(m.blob(U64))),
    # containers
    ord("]"): lambda m: new_list(m, []),
    ord("l"): lambda m: new_list(m, m.since_mark()),
    ord("a"): lambda m: m.extend([m.stack.pop()]),
    ord("e"): lambda m: m.extend(m.since_mark()),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.tuple_of(m.since_mark()),
    0x85: lambda m: m.pair_of(1),
    0x86: lambda m: m.pair_of(2),
    0x87: lambda m: m.pair_of(3),
    ord("}"): lambda m: new_dict(m, []),
    ord("d"): lambda m: new_dict(m, m.since_mark()),
    ord("s"): add_item,
    ord("u"): lambda m: m.set_items(m.since_mark()),
    0x8F: lambda m: new_set(m, []),
    0x90: lambda m: m.extend_set(m.since_mark()),
    0x91: lambda m: new_set(m, m.since_mark(), frozenset),
    # memo
    ord("h"): lambda m: m.get(m.number(U8)),
    ord("j"): lambda m: m.get(m.number(U32)),
    ord("q"): lambda m: m.put(m.number(U8)),
    ord("r"): lambda m: m.put(m.number(U32)),
    0x94: lambda m: m.put(len(m.memo)),
    # names and what they build
    ord("c"): lambda m: m.named(m.line(), m.line()),
    0x93: stack_global,
    ord("R"): Machine.call,
    0x81: Machine.call,
    0x92: Machine.call_with_names,
    ord("b"): Machine.build,
    ord("Q"): lambda m: m.push(m.persistent(m.stack.pop())),
}
"""Opcodes by their byte. Protocol 0, extensions, classes and out-of-band buffers are left out."""
