"""The names that a checkpoint's pickle may use, and what each name builds.

Training files hold weights beside plain values: NumPy scalars and arrays, paths, namespaces, versions and
dates. A short function below builds each of them from checked arguments. Nothing is imported by name.
"""

from __future__ import annotations

import datetime
import math
import re
from argparse import Namespace
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from valle2.export.weights.pickles import ENTRY_COST, Budget, Builders, Global, Named, Names, PickleError

MAX_AXES = 32
MAX_COUNT = 1 << 48
PLAIN_DTYPE = re.compile(r"[<|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,4})")
DEQUE_COST, ARRAY_COST, AXIS_COST = 800, 512, 16
"""Bytes charged for a deque, for an array and for each axis of an array, besides their contents."""
LONGEST_NUMBER = 64
"""Longest text that is parsed as a number, in characters."""
STORAGES = {
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Short": torch.int16,
}
"""PyTorch's storage classes: `FloatStorage` and so on."""
DTYPES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bfloat16"),
    *("float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"),
)
ALIASES = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32"}


@dataclass(frozen=True, slots=True)
class StorageType:
    """A PyTorch storage class, reduced to its dtype."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Storage:
    """The numbers in the file that tensors view. values: None on the first of two passes."""

    dtype: torch.dtype
    count: int
    values: Tensor | None = field(default=None, repr=False)


# -- tensors ------------------------------------------------------------------------------------


def tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A view inside a storage. rest: requires_grad, hooks, metadata."""
    if len(rest) > 2 and not is_empty(rest[2]):
        raise PickleError("it holds a tensor with a conjugate or negative bit; save its values")
    return view(budget, storage, offset, size, stride, getattr(storage, "dtype", None))


def tensor_of_bytes(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """The same for a storage of bytes. rest: requires_grad, hooks, dtype, metadata."""
    if len(rest) < 3 or not isinstance(rest[2], torch.dtype) or not all(map(is_empty, rest[3:])):
        raise PickleError("it holds a tensor of no known type")
    return view(budget, storage, offset, size, stride, rest[2])


def view(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any) -> Tensor:
    """Build the tensor over a storage. Its range is checked in Python integers first."""
    budget.charge(1024)
    if type(storage) is not Storage or type(offset) is not int:
        raise PickleError("it holds a tensor without numbers")
    axes, steps = whole(size), whole(stride)
    count = storage.count * storage.dtype.itemsize // dtype.itemsize
    last = sum((axis - 1) * step for axis, step in zip(axes, steps, strict=True))
    reach = offset + last + 1 if all(axes) else offset
    if offset < 0 or reach > count or math.prod(axes) > MAX_COUNT:
        raise PickleError(f"it holds a tensor of shape {axes} that reaches beyond its storage")
    if storage.values is None:
        return torch.empty(0)
    return torch.as_strided(storage.values.view(dtype), axes, steps, offset)


def is_empty(metadata: Any) -> bool:
    return metadata is None or (type(metadata) is dict and not metadata)


def whole(values: Any) -> tuple[int, ...]:
    """Check a shape or strides: integers from 0 to `MAX_COUNT`."""
    if not isinstance(values, tuple | list | torch.Size) or len(values) > MAX_AXES:
        raise PickleError(f"it holds a tensor without a shape; expected at most {MAX_AXES} axes")
    if not all(type(value) is int and 0 <= value < MAX_COUNT for value in values):
        raise PickleError("it holds a tensor whose shape is not a list of whole numbers")
    return tuple(values)


def parameter(budget: Budget, value: Any, *rest: Any) -> Tensor:
    """Return the parameter's tensor."""
    if not isinstance(value, Tensor):
        raise PickleError("it holds a parameter without a tensor")
    return value


def with_attributes(budget: Budget, build: Any, kind: Any, arguments: Any, *state: Any) -> Tensor:
    """A tensor or parameter that carries Python attributes. The attributes are dropped."""
    if not isinstance(build, Global) or build.name not in REBUILDERS or type(arguments) is not tuple:
        raise PickleError("it holds a tensor of its own class; save its values as a plain tensor")
    if not isinstance(kind, Global) or kind.name not in TENSOR_CLASSES:
        raise PickleError("it holds a tensor of its own class; save its values as a plain tensor")
    return REBUILDERS[build.name](budget, *arguments)  # type: ignore[no-any-return]


REBUILDERS: dict[str, Named] = {
    "_rebuild_tensor": tensor,
    "_rebuild_tensor_v2": tensor,
    "_rebuild_tensor_v3": tensor_of_bytes,
    "_rebuild_parameter": parameter,
    "_rebuild_parameter_with_state": parameter,
}
TENSOR_CLASSES = ("Tensor", "Parameter", "Buffer")


# -- containers and plain values ----------------------------------------------------------------


def mapping(budget: Budget, items: Any = ()) -> dict[Any, Any]:
    """A dictionary from another one, or from pairs."""
    pairs = list(items.items() if type(items) is dict else sequence(items))
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise PickleError("its pickle makes a dictionary from values that are not pairs")
    return dict(zip(budget.keys(key for key, _ in pairs), (value for _, value in pairs), strict=True))


def default_mapping(budget: Budget, factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    """A `defaultdict` as a plain dictionary. Its default factory is dropped."""
    if not isinstance(factory, Global | None):
        raise PickleError("its pickle makes a defaultdict whose default is not a type")
    return mapping(budget, items)


def sequence(items: Any) -> Any:
    """Check that an argument is a container."""
    if type(items) not in (list, tuple, deque, set, frozenset, dict):
        raise PickleError(f"its pickle makes a container from a {type(items).__name__}")
    return items


def listed(budget: Budget, items: Any = ()) -> list[Any]:
    budget.charge(10 * len(sequence(items)))
    return list(items)


def bounded_tuple(budget: Budget, items: Any = ()) -> tuple[Any, ...]:
    return tuple(listed(budget, items))


def size(budget: Budget, items: Any = ()) -> torch.Size:
    return torch.Size(whole(listed(budget, items)))


def queue(budget: Budget, items: Any = (), longest: Any = None) -> deque[Any]:
    if longest is not None and not (type(longest) is int and 0 <= longest < MAX_COUNT):
        raise PickleError("its pickle makes a deque whose length is not a whole number")
    budget.charge(DEQUE_COST)
    return deque(listed(budget, items), longest)


def whole_number(budget: Budget, value: Any = 0) -> int:
    return int(number(value))


def real_number(budget: Budget, value: Any = 0) -> float:
    return float(number(value))


def truth(budget: Budget, value: Any = 0) -> bool:
    return bool(number(value))


def complex_number(budget: Budget, real: Any = 0, imaginary: Any = 0) -> complex:
    return complex(float(number(real)), float(number(imaginary)))


def number(value: Any) -> Any:
    """Check that an argument is a number, or the text of one."""
    if type(value) in (int, float, bool) or (type(value) is str and len(value) <= LONGEST_NUMBER):
        return value
    raise PickleError(f"its pickle makes a number from a {type(value).__name__}")


def whole_or_none(*values: Any) -> tuple[int | None, ...]:
    if not all(value is None or type(value) is int for value in values):
        raise PickleError("its pickle makes a range or slice from values that are not whole numbers")
    return values


def text(budget: Budget, value: Any = "") -> str:
    if type(value) is not str:
        raise PickleError(f"its pickle makes text from a {type(value).__name__}")
    return value


def raw_bytes(budget: Budget, value: Any = b"", encoding: Any = "latin1") -> bytes:
    """Bytes. Pickles of protocol 2 hold them as Latin-1 text."""
    if type(value) in (bytes, bytearray):
        budget.charge(len(value))
        return bytes(value)
    if type(value) is not str or encoding not in ("latin1", "latin-1"):
        raise PickleError(f"its pickle makes bytes from a {type(value).__name__}")
    budget.charge(len(value))
    return value.encode("latin1")


def path_text(budget: Budget, *parts: Any) -> str:
    """A path as text, from any operating system."""
    if not all(type(part) is str for part in parts):
        raise PickleError("its pickle makes a path from values that are not text")
    budget.charge(8 * sum(map(len, parts)))
    return "/".join(parts).replace("//", "/") or "."


def namespace(budget: Budget) -> Namespace:
    return Namespace()


def device(budget: Budget, kind: Any, index: Any = None) -> torch.device:
    try:
        return torch.device(text(budget, kind), *whole_or_none(*([] if index is None else [index])))
    except RuntimeError:
        raise PickleError("it names a device that PyTorch does not know") from None


def moment(budget: Budget, state: Any, zone: Any = None) -> datetime.datetime:
    if type(state) is not bytes or len(state) != 10 or not isinstance(zone, datetime.tzinfo | None):
        raise PickleError("its pickle holds a malformed date and time")
    return datetime.datetime(state, zone)  # type: ignore[arg-type, call-arg]


def clock(budget: Budget, state: Any) -> datetime.time:
    if type(state) is not bytes or len(state) != 6:
        raise PickleError("its pickle holds a malformed time")
    return datetime.time(state)  # type: ignore[arg-type]


def day(budget: Budget, state: Any) -> datetime.date:
    if type(state) is not bytes or len(state) != 4:
        raise PickleError("its pickle holds a malformed date")
    return datetime.date(state)  # type: ignore[arg-type, call-arg]


def duration(budget: Budget, *parts: Any) -> datetime.timedelta:
    return datetime.timedelta(*(number(part) for part in parts))


def zone(budget: Budget, offset: Any) -> datetime.timezone:
    return datetime.timezone(offset)


# -- numpy --------------------------------------------------------------------------------------


def dtype(budget: Budget, name: Any, *flags: Any) -> np.dtype[Any]:
    """A dtype of plain numbers or text. Objects and records are refused."""
    if type(name) is not str or not PLAIN_DTYPE.fullmatch(name):
        raise PickleError("it holds a numpy array of objects or records; expected plain numbers")
    return np.dtype(name)


def scalar(budget: Budget, kind: Any, raw: Any) -> Any:
    """One NumPy number or text."""
    budget.charge(ARRAY_COST + 2 * len(raw) if type(raw) is bytes else 0)
    if isinstance(kind, np.dtype) and kind.kind in "SU" and type(raw) is bytes and len(raw) == kind.itemsize:
        return raw.decode("utf-32-le").rstrip("\0") if kind.kind == "U" else raw.rstrip(b"\0")
    return elements(kind, raw, 1)[0]


def elements(kind: Any, raw: Any, count: int) -> Any:
    """(count,) numbers from bytes. The number of bytes must match."""
    if not isinstance(kind, np.dtype) or kind.kind in "SU":
        raise PickleError("it holds a numpy array of a type other than plain numbers")
    if type(raw) is not bytes or len(raw) != count * kind.itemsize:
        raise PickleError("it holds a numpy array whose bytes do not fit its shape")
    return np.frombuffer(raw, kind)


def empty_array(budget: Budget, kind: Any, *rest: Any) -> Any:
    """An empty array. The opcode BUILD fills it, see `fill_array`."""
    if not isinstance(kind, Global) or kind.name != "ndarray":
        raise PickleError("it holds a numpy array of its own class")
    return np.zeros(0, np.uint8)


def buffer_array(budget: Budget, raw: Any, kind: Any, shape: Any, order: Any, *rest: Any) -> Any:
    """An array as protocol 5 writes it. rest: a permutation of its axes, which is refused."""
    budget.charge(ARRAY_COST + AXIS_COST * MAX_AXES)
    if not all(part is None for part in rest):
        raise PickleError("it holds a numpy array with permuted axes; save a copy")
    flat = elements(kind, raw_bytes(budget, raw), math.prod(whole(shape)))
    return flat.reshape(whole(shape), order="F" if order == "F" else "C")


# -- states -------------------------------------------------------------------------------------


def fill_array(budget: Budget, array: Any, state: Any) -> None:
    """Set an array's shape, dtype and values in place: other values of the file may refer to the array."""
    if type(state) is not tuple or len(state) != 5:
        raise PickleError("it holds a numpy array without values")
    budget.charge(ARRAY_COST + AXIS_COST * MAX_AXES)
    _, shape, kind, column_major, raw = state
    elements(kind, raw, math.prod(whole(shape)))
    budget.charge(len(raw))
    array.__setstate__((1, whole(shape), kind, column_major is True or column_major == 1, raw))


def check_byte_order(budget: Budget, kind: Any, state: Any) -> None:
    """Check that a dtype's state adds nothing but the native byte order."""
    known = type(state) is tuple and len(state) > 4 and all(part is None for part in state[2:5])
    if not known or type(state[1]) is not str or state[1] not in "<|=":
        raise PickleError("it holds a numpy array of records or of another byte order")


def fill_namespace(budget: Budget, target: Namespace, state: Any) -> None:
    if type(state) is not dict or not all(type(name) is str for name in state):
        raise PickleError("it holds a namespace whose names are not text")
    budget.charge(ENTRY_COST * len(state))
    vars(target).update(state)


def drop_attributes(budget: Budget, target: Any, state: Any) -> None:
    """Ignore Python attributes that were set on a container or a tensor."""


BUILDERS: Builders = {
    np.ndarray: fill_array,
    np.dtype: check_byte_order,
    Namespace: fill_namespace,
    dict: drop_attributes,
    str: drop_attributes,
    Tensor: drop_attributes,
}


# -- the table ----------------------------------------------------------------------------------


PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
CALLS: dict[str, dict[str, Named]] = {
    "collections": {
        "OrderedDict": mapping,
        "Counter": mapping,
        "defaultdict": default_mapping,
        "deque": queue,
    },
    "builtins": {
        "bool": truth,
        "bytearray": lambda budget, *parts: bytearray(raw_bytes(budget, *parts)),
        "bytes": raw_bytes,
        "complex": complex_number,
        "dict": mapping,
        "float": real_number,
        "frozenset": lambda budget, items=(): frozenset(budget.keys(sequence(items))),
        "int": whole_number,
        "list": listed,
        "range": lambda budget, *parts: range(*whole_or_none(*parts)),  # type: ignore[arg-type]
        "set": lambda budget, items=(): set(budget.keys(sequence(items))),
        "slice": lambda budget, *parts: slice(*whole_or_none(*parts)),
        "str": text,
        "tuple": bounded_tuple,
    },
    "_codecs": {"encode": raw_bytes},
    "argparse": {"Namespace": namespace},
    "types": {"SimpleNamespace": namespace},
    "pathlib": dict.fromkeys(PATHS, path_text),
    "pathlib._local": dict.fromkeys(PATHS, path_text),
    "datetime": {"datetime": moment, "date": day, "time": clock, "timedelta": duration, "timezone": zone},
    "torch": {"Size": size, "device": device},
    "torch.torch_version": {"TorchVersion": text},
    "torch._utils": REBUILDERS,
    "torch._tensor": {"_rebuild_from_type_v2": with_attributes},
    "pytorch_lightning.utilities.parsing": {"AttributeDict": mapping},
    "lightning.pytorch.utilities.parsing": {"AttributeDict": mapping},
    "lightning.fabric.utilities.data": {"AttributeDict": mapping},
    "lightning_fabric.utilities.data": {"AttributeDict": mapping},
    "numpy": {"dtype": dtype},
}
"""Builders by module and name."""
NUMPY: dict[str, dict[str, Named]] = {
    "multiarray": {"scalar": scalar, "_reconstruct": empty_array},
    "numeric": {"_frombuffer": buffer_array},
}
CALLS |= {f"numpy.{core}.{part}": calls for core in ("core", "_core") for part, calls in NUMPY.items()}
PYTHON2 = {"long": "int", "unicode": "str", "xrange": "range"}
"""The Python 2 names of some types of `builtins`, which pickles of protocol 2 use."""
CLASSES = {
    "torch": ("Tensor",),
    "torch._tensor": ("Tensor",),
    "torch.nn.parameter": ("Parameter", "Buffer"),
    "numpy": (
        *("ndarray", "bool_", "float16", "float32", "float64", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    ),
}
"""Classes that appear in a pickle as arguments and build nothing themselves."""


def admitted() -> Names:
    """Values and builders by module and name."""
    found: dict[tuple[str, str], Any] = {
        (module, name): Global(name, call) for module, calls in CALLS.items() for name, call in calls.items()
    }
    found |= {(module, name): Global(name) for module, names in CLASSES.items() for name in names}
    found |= {("__builtin__", name): value for (module, name), value in found.items() if module == "builtins"}
    found |= {("__builtin__", old): found["builtins", new] for old, new in PYTHON2.items()}
    found |= {(module, "Ellipsis"): ... for module in ("builtins", "__builtin__")}
    found |= {("torch", name): getattr(torch, name) for name in (*DTYPES, *ALIASES)}
    for name, kind in STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            found[module, f"{name}Storage"] = StorageType(kind)
    for module in ("torch", "torch.storage"):
        found[module, "UntypedStorage"] = StorageType(torch.uint8)
    return found


NAMES = admitted()
