"""Where a training file keeps its weights, and their names without what training put around them.

Training loops save weights bare or below one of a few keys. Wrappers of the module (data parallel, compiled,
sharded) put a word into every name, Lightning the attribute that holds the module. Such a file reads as the
plain file does, tensor for tensor.
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
"""Entries that may hold the weights, the first that fits."""
MAX_DEPTH = 3
"""Entries of entries are looked through so far, and so many words before all names are left out."""
WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Words that wrappers put into names: DataParallel, torch.compile, sharding, checkpointing."""
EXTRA_STATE = "_extra_state"
"""What a module may keep beside its weights, below its own name."""
AVERAGED = "n_averaged"
"""What torch's averaged model counts, beside the weights."""
LONGEST_NAME = 512
ATTRIBUTE = "model"
"""The attribute of a Lightning module that usually holds the network."""
Known = Callable[[Mapping[str, Tensor]], bool]


def read_tensors(path: Path, known: Known) -> dict[str, Tensor]:
    """The weights of a safetensors file or of one that torch wrote.

    Args:
        known: are these the names of the network that is read?

    Raises:
        CheckpointError: neither, damaged, or without weights.
    """
    return find_state(read_values(path), path, known)


def read_values(path: Path) -> Mapping[str, Any]:
    """What a safetensors file or one that torch wrote holds, by name."""
    return read_safetensors(path)[0] if path.suffix == SUFFIX else read_container(path)


def find_state(container: Mapping[Any, Any], path: Path, known: Known) -> dict[str, Tensor]:
    """The weights of a training file.

    Returns:
        Tensors by the names of the plain network: the first place that `known` recognises, else the first
        that has tensors, so that the caller can say what is missing.

    Raises:
        CheckpointError: no tensors anywhere, or two names that are one without their wrappers.
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
            f"{path} holds no weights, but {shown(sorted(map(shown, container)))}; "
            f"expected tensors by their names, bare or below one of {', '.join(KEYS)}"
        )
    return fallback


def is_weight(name: Any, value: Any) -> bool:
    plain = isinstance(name, str) and len(name) <= LONGEST_NAME and name != AVERAGED
    return plain and isinstance(value, Tensor)


def check_rest(candidate: Mapping[Any, Any], path: Path) -> None:
    """Plain values may stand beside weights, but not in place of one: the names of weights have dots."""
    for name, value in candidate.items():
        plain = not isinstance(name, str) or "." not in name or name.endswith(EXTRA_STATE)
        if not plain and not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {shown(name)} is a {type(value).__name__}; expected a tensor"
            )


def candidates(container: Mapping[Any, Any]) -> list[Mapping[Any, Any]]:
    """Dictionaries that may be the weights, each once, the inner ones first."""
    found = {id(container): container}
    levels = [[container]]
    for _ in range(MAX_DEPTH):
        level = [values.get(key) for values in levels[-1] for key in KEYS]
        inner = {id(values): values for values in level if isinstance(values, dict)}
        levels.append([values for name, values in inner.items() if name not in found])
        found |= inner
    return [values for level in reversed(levels) for values in level]


def spellings(tensors: Mapping[str, Tensor], path: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors by their names without wrappers, then without one word before the names after another.

    What stands beside the names that have the word is left out: it belongs to the training.
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
    """The first word that all names have before others; `model` where some have it."""
    first = {name.partition(".")[::2] for name in names}
    words = {word for word, rest in first if rest}
    if len(words) == 1 and all(rest for _, rest in first):
        return words.pop()
    return ATTRIBUTE if ATTRIBUTE in words else ""


def renamed(
    tensors: Mapping[str, Tensor], path: Path, without: Container[str] = (), before: str = ""
) -> dict[str, Tensor]:
    """The tensors by other names, none of which two tensors may have.

    Args:
        without: words to leave out wherever they stand. before: a word to leave out before a name.
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        words = [word for word in name.split(".") if word not in without]
        plain = ".".join(words).removeprefix(f"{before}." if before else "")
        if not plain or plain in found:
            raise CheckpointError(
                f"{path} has two weights named {shown(plain)} once what wrappers put into names is left "
                "out; save the state dict of one model"
            )
        found[plain] = value.detach()
    return found
