"""Checkpoints of other code bases: random variants against oracles in plain PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.importers.peers import Lifeiteng, Oracle, greedy
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export import Checkpoint, export_checkpoint
from valle2.export.importers import read_any
from valle2.export.models.reference import generate, layout
from valle2.export.options import ImportOptions
from valle2.runtime import Settings, Valle2
from valle2.runtime.errors import PromptError, TextError

TOLERANCE = 2e-4
GREEDY = Settings(top_p=0.0, threshold=1.0)
VARIANTS = {
    "mode 0": Lifeiteng(mode=0),
    "mode 2, start mark": Lifeiteng(mode=2, bos=True),
    "mode 4, unshared": Lifeiteng(mode=4, shared=False),
    "after": Lifeiteng(norm_first=False),
    "prenets": Lifeiteng(prenet=True, bos=True),
    "prenets, after, four codebooks": Lifeiteng(prenet=True, norm_first=False, books=4),
    "wider NAR": Lifeiteng(scale=2.0),
    "narrower NAR, two codebooks": Lifeiteng(scale=0.5, books=2, mode=0),
}


def saved(folder: Path, container: dict[str, Any]) -> Path:
    torch.save(container, folder / "model.pt")
    return folder / "model.pt"


def random_row(file: Lifeiteng, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Text (9,) between its marks, and codes (frames, Q)."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(3, file.vocab, (9,), generator=generator)
    text[0], text[-1] = 1, 2
    return text, torch.randint(0, 1024, (frames, file.books), generator=generator)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_variants_of_lifeiteng_against_the_oracle(name: str, tmp_path: Path) -> None:
    file = VARIANTS[name]
    container = file.container()
    oracle = Oracle(file, container["model"])
    checkpoint = read_any([saved(tmp_path, container)])
    text, codes = random_row(file, 12)
    laid = layout(checkpoint.ar, text.numpy(), codes[:, 0].numpy())
    found = checkpoint.ar(*laid)[0, len(text) :, 0]
    expected = oracle.ar(text, codes[:, 0])
    assert found.shape == expected.shape and (found - expected).abs().max() < TOLERANCE
    count, start, total = torch.tensor([len(text)]), torch.tensor([5]), torch.tensor([12])
    for stage in range(1, file.books):
        inputs = NARInputs(text[None], count, codes[None], start, total, torch.tensor(stage))
        logits = checkpoint.nar(inputs)[0]
        assert (logits - oracle.nar(text, codes, 5, stage)).abs().max() < TOLERANCE
    cached, _ = generate(checkpoint.ar, text.numpy(), codes[:4, 0].numpy(), 12)
    whole, _ = generate(checkpoint.ar, text.numpy(), codes[:4, 0].numpy(), 12, cached=False)
    assert np.array_equal(cached, whole)


@torch.no_grad()
def test_a_padded_batch_equals_each_row_alone_with_prenets(tmp_path: Path) -> None:
    file = Lifeiteng(prenet=True, bos=True)
    model = read_any([saved(tmp_path, file.container())])
    text, codes = random_row(file, 12)
    words = torch.stack([text, torch.cat([text[:6], text[:3]])])
    counts, starts, totals = torch.tensor([9, 6]), torch.tensor([3, 3]), torch.tensor([12, 8])
    stage = torch.tensor(2)
    both = model.nar(NARInputs(words, counts, codes[None].expand(2, -1, -1), starts, totals, stage))
    row = words[1:, :6], counts[1:], codes[None, :8], starts[1:], totals[1:]
    alone = model.nar(NARInputs(*row, stage))
    assert torch.allclose(both[1, : alone.shape[1]], alone[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "marked"),
    [(Lifeiteng(mode=2, bos=True, prenet=True, books=4), True), (Lifeiteng(norm_first=False, mode=4), False)],
)
@torch.no_grad()
def test_exported_variants_make_the_oracles_codes(file: Lifeiteng, marked: bool, tmp_path: Path) -> None:
    container = file.container()
    path = saved(tmp_path, container)
    tts = Valle2.load(export_checkpoint(path, tmp_path / "b", codec=False), threads=1, slots=2)
    text, codes = random_row(file, 6)
    alone = torch.cat([text[:1], text[4:]])  # three ids of the transcript left out
    expected = greedy(Oracle(file, container["model"]), text, alone, codes, 10).numpy()
    ids, length = (text, 5) if marked else (text[1:-1], 3)
    settings = replace(GREEDY, max_frames=10)
    found = tts.generate_codes(ids.numpy(), codes.numpy(), settings, prompt_text_length=length)
    assert np.array_equal(found.codes, expected)
    with pytest.raises(TextError, match="prompt_text_length"):
        tts.generate_codes(ids.numpy(), codes.numpy(), settings)
    with pytest.raises(TextError, match="no languages"):
        tts.generate_codes(
            ids.numpy(), codes.numpy(), settings, language_ids=ids.numpy() * 0, prompt_text_length=length
        )
    with pytest.raises(PromptError, match=rf"expected integers \(P, {file.books}\)"):
        tts.generate_codes(ids.numpy(), codes[:, :1].numpy(), settings, prompt_text_length=length)
    nothing = codes[:0].numpy()
    if file.bos:
        assert tts.generate_codes(ids.numpy(), nothing, settings).codes.shape[1] == file.books
    else:
        with pytest.raises(PromptError, match="at least one frame"):
            tts.generate_codes(ids.numpy(), nothing, settings, prompt_text_length=length)


def test_a_wrapped_container_with_paths_and_a_second_set_of_weights(tmp_path: Path) -> None:
    file = Lifeiteng()
    container = file.container()
    plain = read_any([saved(tmp_path, container)])
    container["model_avg"] = {name: value.double() * 0 for name, value in container["model"].items()}
    container["model"] = {f"module.{name}": value for name, value in container["model"].items()}
    container |= {"exp_dir": PurePosixPath("exp/valle"), "text_tokens": Path("data/tokens"), "sampler": None}
    container["optimizer"] = {"state": {0: {"step": torch.tensor(3)}}, "param_groups": [{"lr": 0.1}]}
    (tmp_path / "other").mkdir()  # the first file is mapped, not copied
    wrapped = read_any([saved(tmp_path / "other", container)])
    for one, other in zip(plain.ar.parameters(), wrapped.ar.parameters(), strict=True):
        assert torch.equal(one, other)


Change = Callable[[dict[str, Any]], Any]


def without(name: str) -> Change:
    return lambda container: container.pop(name)


def edit(name: str, value: Any) -> Change:
    return lambda container: container.update({name: value})


def edit_model(name: str, value: Any) -> Change:
    return lambda container: container["model"].update({name: value})


BAD: dict[str, tuple[Change, str]] = {
    "no heads": (without("nhead"), "pass --heads"),
    "no prefix mode": (without("prefix_mode"), "pass --prefix-mode"),
    "no hyper-parameters": (
        lambda container: [container.pop(name) for name in list(container) if name != "model"],
        "pass --heads .* and --prefix-mode",
    ),
    "heads that are no number": (edit("nhead", True), "True heads do not divide"),
    "a scale that is no number": (edit("scale_factor", float("nan")), "says scale_factor is nan"),
    "prefix mode 3": (edit("prefix_mode", 3), "prefix mode is 3"),
    "heads that do not divide": (edit("nhead", 5), "do not divide the width"),
    "VALL-F by name": (edit("model_name", "VALL-F"), "another kind of network, 'VALL-F'"),
    "VALL-F by weights": (
        edit_model("ar_decoder.layers.0.multihead_attn.in_proj_weight", torch.zeros(3)),
        "another kind of network, 'VALL-F'",
    ),
    "another norm": (edit("norm_first", False), "says norm_first is False"),
    "more layers": (edit("num_decoder_layers", 9), "says num_decoder_layers is 9"),
    "an extra weight": (edit_model("ar_surplus", torch.zeros(3)), "unknown weights .*ar_surplus"),
    "a misshapen weight": (
        edit_model("ar_predict_layer.weight", torch.zeros(7, 32)),
        r"ar_predict_layer.weight is \(7, 32\); expected \(1025, 32\)",
    ),
    "NaN": (edit_model("ar_text_position.alpha", torch.tensor([float("nan")])), "NaN"),
    "whole numbers": (edit_model("ar_text_position.alpha", torch.tensor([1])), "no plain tensor"),
    "a stretched tensor": (
        edit_model("ar_predict_layer.weight", torch.zeros(1).expand(1025, 32)),
        "no plain tensor",
    ),
    "no weight": (lambda container: container["model"].pop("ar_predict_layer.weight"), "lacks the weight"),
    "no tensor": (edit_model("ar_predict_layer.weight", "x"), "is a str; expected a tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_one_clear_line(name: str, tmp_path: Path) -> None:
    change, message = BAD[name]
    container = Lifeiteng().container()
    change(container)
    with pytest.raises(ValueError, match=message) as caught:
        read_any([saved(tmp_path, container)])
    assert "\n" not in str(caught.value)


def test_flags_give_what_a_file_does_not_say(tmp_path: Path) -> None:
    container = Lifeiteng().container()
    bare = {"model": {name: value.half() for name, value in container["model"].items()}}
    checkpoint = read_any([saved(tmp_path, bare)], ImportOptions("lifeiteng", 4, 1))
    assert (checkpoint.config.heads, checkpoint.config.nar_heads) == (4, 4)
    assert all(weight.dtype == torch.float32 for weight in checkpoint.ar.parameters())
    with pytest.raises(ValueError, match="leave --heads out"):
        read_any([saved(tmp_path, container)], ImportOptions(heads=8, prefix_mode=1))
    with pytest.raises(ValueError, match="leave it out"):
        read_any([saved(tmp_path, container)], ImportOptions(heads=4, prefix_mode=2))
    with pytest.raises(ValueError, match="expected amphion"):
        read_any([saved(tmp_path, container)], ImportOptions("amphion"))


def test_the_command_line_passes_flags_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from valle2.export import bundle, cli

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    container = Lifeiteng().container()
    del container["nhead"]
    path = saved(tmp_path, container)
    args = [str(path), "-o", str(tmp_path / "b"), "--format", "lifeiteng"]
    with pytest.raises(ValueError, match="pass --heads"):
        cli.run(parser.parse_args([*args, "--no-codec"]), print)
    with pytest.raises(ValueError, match="pass --no-codec"):
        cli.run(parser.parse_args([*args, "--heads", "4"]), print)
    seen: list[Checkpoint] = []

    def stop(checkpoint: Checkpoint, *rest: object) -> None:
        seen.append(checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "export_lowering", stop)
    with pytest.raises(KeyboardInterrupt):
        cli.run(parser.parse_args([*args, "--heads", "4", "--prefix-mode", "1", "--no-codec"]), print)
    assert seen[0].config.heads == 4 and seen[0].codec is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


@torch.no_grad()
def test_vall_e_x_with_languages_and_without_a_prompt(tmp_path: Path) -> None:
    file = Lifeiteng(bos=True, languages=True)
    container = {"model": file.state()}
    with pytest.raises(ValueError, match="pass --heads"):
        read_any([saved(tmp_path, container)])
    checkpoint = read_any([tmp_path / "model.pt"], ImportOptions("vallex", 4))
    oracle = Oracle(file, container["model"])
    text, codes = random_row(file, 7)
    languages = torch.arange(len(text)) % 3
    ids = (text + file.vocab * languages).numpy()
    found = checkpoint.ar(*layout(checkpoint.ar, ids, codes[:, 0].numpy()))[0, len(text) :, 0]
    assert (found - oracle.ar(text, codes[:, 0], languages)).abs().max() < TOLERANCE
    first, _ = generate(checkpoint.ar, ids, codes[:0, 0].numpy(), 6)
    assert first[0] == oracle.ar(text, codes[:0, 0], languages)[-1].argmax()
    count = torch.tensor([len(text)])
    for start, stage in ((0, 1), (3, 7)):
        prompt = torch.tensor([start])
        words = torch.from_numpy(ids)[None]
        inputs = NARInputs(words, count, codes[None], prompt, torch.tensor([7]), torch.tensor(stage))
        logits = checkpoint.nar(inputs)[0]
        assert (logits - oracle.nar(text, codes, start, stage, languages)).abs().max() < TOLERANCE


def test_other_networks_are_refused(tmp_path: Path) -> None:
    other = {"wte.weight": torch.zeros(9, 4), "h.0.attn.c_attn.weight": torch.zeros(4, 12)}
    for container in (other, {"model": other}):
        with pytest.raises(ValueError, match="no checkpoint that valle2 knows"):
            read_any([saved(tmp_path, container)])
