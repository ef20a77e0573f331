"""Training files give the same tensors as the plain file, whatever training put around the weights."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.export.importers.peers import Lifeiteng
from valle2.export import CheckpointError
from valle2.export.importers import read_any
from valle2.export.importers.registry import KINDS, read_source
from valle2.export.options import ImportOptions
from valle2.export.weights.state_dict import find_state

FILE = Lifeiteng(width=16, layers=1, books=2)
FIXTURES = Path(__file__).parents[4] / "shared" / "fixtures" / "peers"
Weights = dict[str, Tensor]
Wrap = Callable[[Weights], dict[str, Any]]


def renamed(before: str) -> Callable[[Weights], Weights]:
    return lambda state: {f"{before}{name}": value for name, value in state.items()}


def inside(word: str) -> Callable[[Weights], Weights]:
    """Put the word after the first word of every name, as a wrapped part of a module does."""
    return lambda state: {name.replace(".", f".{word}.", 1): value for name, value in state.items()}


NAMES: dict[str, Callable[[Weights], Weights]] = {
    "plain": dict,
    "data parallel": renamed("module."),
    "twice": renamed("module.module."),
    "compiled": renamed("_orig_mod."),
    "compiled, then parallel": renamed("module._orig_mod."),
    "parallel, then compiled, then parallel": renamed("module._orig_mod.module."),
    "a compiled part": inside("_orig_mod"),
    "sharded": inside("_fsdp_wrapped_module"),
    "Lightning": renamed("model."),
    "Lightning, compiled": renamed("model._orig_mod."),
    "compiled Lightning": renamed("_orig_mod.model."),
    "two attributes": renamed("model.net."),
    "another attribute": renamed("valle."),
}
PLACES: dict[str, Wrap] = {
    "bare": dict,
    "model": lambda state: {"model": state},
    "state_dict": lambda state: {"state_dict": state},
    "model_state_dict": lambda state: {"model_state_dict": OrderedDict(state)},
    "module": lambda state: {"module": state},
    "model, then state_dict": lambda state: {"model": {"state_dict": state}},
    "a model's name beside": lambda state: {"model": "VALL-E", "state_dict": state},
    "a configuration beside": lambda state: {"model": {"width": 16}, "state_dict": state},
    "an average beside": lambda state: {
        "model": state,
        "model_avg": {name: value + 1 for name, value in state.items()},
    },
    "what training leaves": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": np.float64(1e-3)}]},
        "epoch": np.int64(3),
        "args": Namespace(lr=1e-3, layers=[1, 2]),
        "losses": deque([0.5], maxlen=10),
        "version": torch.torch_version.TorchVersion("2.1.0"),
        "rng": {"numpy": np.random.RandomState(0).get_state(), "cpu": torch.ByteTensor([1, 2])},
        "raw": b"\0\1",
        "batch": np.arange(3),
    },
    "an averaged model": lambda state: {
        "model": {"n_averaged": torch.tensor(3), **renamed("module.")(state)}
    },
    "beside a loss": lambda state: {
        "state_dict": renamed("model.")(state) | {"ema_model.x": torch.ones(2), "loss.weight": torch.ones(1)}
    },
    "an extra state": lambda state: {"model": {**state, "quantizer._extra_state": None, "steps": 3}},
}


def read(folder: Path, container: dict[str, Any]) -> tuple[str, Weights]:
    torch.save(container, folder / "model.pt")
    source = read_source(folder / "model.pt")
    return source.kind, dict(source.reader.tensors)


def check_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_and_named_as_in_the_plain_file(place: str, names: str, tmp_path: Path) -> None:
    state = FILE.state()
    kind, found = read(tmp_path, PLACES[place](NAMES[names](state)))
    assert kind == "lifeiteng"
    check_equal(found, state)


@pytest.mark.parametrize("names", NAMES)
def test_names_that_begin_as_wrappers_do_are_kept(names: str, tmp_path: Path) -> None:
    """Amphion's own names begin with `model.`, some even with `model.model.`."""
    plain = {"model.lm_head.weight": torch.ones(2, 2), "model.model.embed_tokens.weight": torch.ones(2)}
    kind, found = read(tmp_path, {"state_dict": NAMES[names](plain)})
    assert kind == "amphion AR"
    check_equal(found, plain)


@pytest.mark.parametrize("names", ["parallel, then compiled, then parallel", "Lightning, compiled"])
@pytest.mark.parametrize(
    "name", ["amphion_ar", "amphion_nar", "supervoice_ar", "supervoice_nar", "vallex_a_prompt"]
)
def test_peers_wrapped(name: str, names: str, tmp_path: Path) -> None:
    file = FIXTURES / f"{name}.ckpt.pt"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    plain = read_source(file)
    kind, found = read(tmp_path, {"state_dict": NAMES[names](dict(plain.reader.tensors))})
    assert kind == plain.kind and kind in KINDS
    check_equal(found, dict(plain.reader.tensors))


def test_safetensors_of_another_code_base(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in FILE.state().items()}
    save_file(renamed("module.")(state), str(tmp_path / "model.safetensors"))
    source = read_source(tmp_path / "model.safetensors")
    assert source.kind == "lifeiteng"
    check_equal(dict(source.reader.tensors), state)
    checkpoint = read_any([tmp_path / "model.safetensors"], ImportOptions(heads=4, prefix_mode=1))
    assert checkpoint.rules["family"] == "lifeiteng"
    save_file({"w": torch.ones(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match="no checkpoint that valle2 knows"):
        read_any([tmp_path / "other.safetensors"])


def test_numbers_of_numpy_beside_the_weights_count(tmp_path: Path) -> None:
    torch.save({"model": FILE.state(), "nhead": np.int64(4), "norm_first": np.bool_(True)}, tmp_path / "m.pt")
    extras = read_source(tmp_path / "m.pt").extras
    assert extras == {"nhead": 4, "norm_first": True} and type(extras["nhead"]) is int


def test_containers_that_hold_themselves_and_long_names_take_no_time(tmp_path: Path) -> None:
    container: dict[str, Any] = {"x" * 100_000 + ".weight": torch.ones(1), "w.weight": torch.ones(1)}
    container |= dict.fromkeys(("model", "model_state_dict", "state_dict", "module"), container)
    assert find_state(container, tmp_path, lambda names: False).keys() == {"w.weight"}


def test_two_weights_of_one_name_are_refused(tmp_path: Path) -> None:
    state = FILE.state()
    name = next(iter(state))
    with pytest.raises(CheckpointError, match="two weights named"):
        read(tmp_path, {"model": {**state, f"module.{name}": state[name]}})


def test_what_holds_no_weights_says_what_it_holds(tmp_path: Path) -> None:
    containers: list[dict[Any, Any]] = [{}, {"model": {}}, {"epoch": 3, 5: 7}, {"model": {"x": "y"}}]
    for container in containers:
        with pytest.raises(CheckpointError, match="holds no weights") as caught:
            find_state(container, tmp_path, lambda names: True)
        assert str(caught.value).isprintable()
