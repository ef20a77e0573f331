"""Finds the weights in a training file, and restores the names that the plain network has.

Training loops save weights directly or under one of a few keys. Wrappers of the module (data parallel,
compiled, sharded) put a word into every name. Lightning puts the attribute of the network before every name.
Such a file gives the same names and tensors as the plain file.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from valle2.engine.bundle.untrusted import shown
from valle2.export.errors import CheckpointError
from valle2.export.weights.safetensors_file import read_safetensors
from valle2.export.weights.unpickle import read_container

SUFFIX = ".safetensors"
KEYS = ("model", "model_state_dict", "state_dict", "module")
"""Entries that may hold the weights. The first that fits wins."""
MAX_DEPTH = 3
"""Levels of nested entries that are searched, and words before all names that are removed."""
WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Words that wrappers put into names: DataParallel, torch.compile, sharding and checkpointing."""
EXTRA_STATE = "_extra_state"
"""A module's extra state: an entry that ends so need not be a tensor."""
AVERAGED = "n_averaged"
"""The counter of torch's averaged model. It is not a weight."""
LONGEST_NAME = 512
ATTRIBUTE = "model"
"""The usual attribute of a Lightning module for the network."""
Known = Callable[[Mapping[str, Tensor]], bool]


def read_tensors(path: Path, known: Known) -> dict[str, Tensor]:
    """Read the weights of a safetensors file or of a `torch.save` file.

    Args:
        known: whether these are the names of the wanted network.

    Raises:
        CheckpointError: another kind of file, damaged, or without weights.
    """
    return find_state(read_values(path), path, known)


def read_values(path: Path) -> Mapping[str, Any]:
    """All entries of a safetensors file or of a `torch.save` file, by name."""
    return read_safetensors(path)[0] if path.suffix == SUFFIX else read_container(path)


def find_state(container: Mapping[Any, Any], path: Path, known: Known) -> dict[str, Tensor]:
    """Find the weights in a training file.

    Args:
        known: whether these are the names of the wanted network.

    Returns:
        Tensors by the names of the plain network: the first place that `known` accepts. If there is none, the
        first place with tensors, so that the caller can say what is missing.

    Raises:
        CheckpointError: no tensors anywhere, or two names become one without their wrappers.
    """
    fallback: dict[str, Tensor] = {}
    for candidate in candidates(container):
        tensors = {name: value for name, value in candidate.items() if is_weight(name, value)}
        for state in spellings(tensors, path):
            if known(state):
                check_rest(candidate, path)
                return state
            fallback = fallback or state
    if not fallback:
        raise CheckpointError(
            f"{path} holds no weights; its entries are {shown(sorted(map(shown, container)))}; "
            f"expected tensors by name, at the top or under one of {', '.join(KEYS)}"
        )
    return fallback


def is_weight(name: Any, value: Any) -> bool:
    plain = isinstance(name, str) and len(name) <= LONGEST_NAME and name != AVERAGED
    return plain and isinstance(value, Tensor)


def check_rest(candidate: Mapping[Any, Any], path: Path) -> None:
    """Refuse a plain value with the name of a weight, that is, with a dot. Other plain values are allowed."""
    for name, value in candidate.items():
        plain = not isinstance(name, str) or "." not in name or name.endswith(EXTRA_STATE)
        if not plain and not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {shown(name)} is a {type(value).__name__}; expected a tensor"
            )


def candidates(container: Mapping[Any, Any]) -> list[Mapping[Any, Any]]:
    """Dictionaries that may be the weights, each once, innermost first."""
    found = {id(container): container}
    levels = [[container]]
    for _ in range(MAX_DEPTH):
        level = [values.get(key) for values in levels[-1] for key in KEYS]
        inner = {id(values): values for values in level if isinstance(values, dict)}
        levels.append([values for name, values in inner.items() if name not in found])
        found |= inner
    return [values for level in reversed(levels) for values in level]


def spellings(tensors: Mapping[str, Tensor], path: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors by their names without wrappers, then without one more first word at a time.

    Tensors without the removed word belong to the training, and are dropped.
    """
    state = renamed(tensors, path, WRAPPERS)
    for _ in range(MAX_DEPTH + 1):
        if not state:
            return
        yield state
        word = common_word(state)
        if not word:
            return
        inside = {name: value for name, value in state.items() if name.startswith(f"{word}.")}
        state = renamed(inside, path, before=word)


def common_word(names: Iterable[str]) -> str:
    """The first word of all names, or `model` if only some names begin with it."""
    first = {name.partition(".")[::2] for name in names}
    words = {word for word, rest in first if rest}
    if len(words) == 1 and all(rest for _, rest in first):
        return words.pop()
    return ATTRIBUTE if ATTRIBUTE in words else ""


def renamed(
    tensors: Mapping[str, Tensor], path: Path, without: Container[str] = (), before: str = ""
) -> dict[str, Tensor]:
    """The tensors by shorter names. Two tensors must not get the same name.

    Args:
        without: words to remove anywhere. before: a word to remove at the start.
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        words = [word for word in name.split(".") if word not in without]
        plain = ".".join(words).removeprefix(f"{before}." if before else "")
        if not plain or plain in found:
            raise CheckpointError(
                f"{path} has two weights named {shown(plain)} after the words of wrappers are removed; "
                "save the state dict of one model"
            )
        found[plain] = value.detach()
    return found
