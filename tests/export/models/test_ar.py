"""Properties of the eager models."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import toy_checkpoint, toy_config
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export.models import ARModel, ModelConfig, NARModel


def ar_row(model: ARModel, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    steps = 6 + 1 + groups
    text = torch.randint(0, model.config.vocab_size, (1, steps), generator=generator)
    codes = torch.randint(0, 1024, (1, steps, model.config.group_size), generator=generator)
    return text, codes, torch.tensor([6])


@pytest.mark.parametrize("group_size", [1, 2, 4, 8])
@torch.no_grad()
def test_logits_shape_and_causality(group_size: int) -> None:
    model = toy_checkpoint(group_size).ar
    text, codes, lengths = ar_row(model, 5)
    before = model(text, codes, lengths)
    assert before.shape == (1, 12, group_size, 1025)
    codes[0, 9] = (codes[0, 9] + 1) % 1024
    after = model(text, codes, lengths)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9])


def test_group_layers_exist_only_above_one() -> None:
    assert not hasattr(toy_checkpoint(1).ar, "group_embed")
    assert not hasattr(toy_checkpoint(1).ar, "group_predict")
    assert toy_checkpoint(4).ar.group_predict.weight.shape == (4 * 32, 32)


@torch.no_grad()
def test_head_is_tied_to_the_code_table() -> None:
    model = toy_checkpoint(2).ar
    before = model.head(torch.arange(32.0)[None])
    model.code_table.weight[17] += 1
    after = model.head(torch.arange(32.0)[None])
    assert not torch.allclose(before[..., 17], after[..., 17])
    assert torch.equal(before[..., :17], after[..., :17])
    assert "code_table.weight" in dict(model.named_parameters())


@torch.no_grad()
def nar_logits(model: NARModel, codes: torch.Tensor, stage: int) -> torch.Tensor:
    lengths = torch.tensor([5]), torch.tensor([4]), torch.tensor([10])
    inputs = NARInputs(torch.arange(5)[None], lengths[0], codes, *lengths[1:], torch.tensor(stage))
    logits: torch.Tensor = model(inputs)
    return logits


@pytest.mark.parametrize("stage", range(1, 8))
def test_nar_reads_what_equation_12_says(stage: int) -> None:
    model = toy_checkpoint(2).nar
    codes = torch.randint(0, 1024, (1, 10, 8), generator=torch.Generator().manual_seed(1))
    before = nar_logits(model, codes, stage)
    assert before.shape == (1, 6, 1024)
    later = codes.clone()
    later[0, 4:, stage:] = (later[0, 4:, stage:] + 1) % 1024
    assert torch.equal(before, nar_logits(model, later, stage))
    prompt = codes.clone()
    prompt[0, 2, 7] = (prompt[0, 2, 7] + 1) % 1024
    assert not torch.allclose(before, nar_logits(model, prompt, stage))
    earlier = codes.clone()
    earlier[0, 6, stage - 1] = (earlier[0, 6, stage - 1] + 1) % 1024
    assert not torch.allclose(before, nar_logits(model, earlier, stage))


@torch.no_grad()
def test_nar_row_of_a_batch_equals_the_row_alone() -> None:
    model = toy_checkpoint(2).nar
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(0, 20, (2, 7), generator=generator)
    codes = torch.randint(0, 1024, (2, 14, 8), generator=generator)
    lengths, prompts, frames = torch.tensor([7, 4]), torch.tensor([5, 3]), torch.tensor([14, 9])
    stage = torch.tensor(3)
    both = model(NARInputs(text, lengths, codes, prompts, frames, stage))
    alone = model(NARInputs(text[1:, :4], lengths[1:], codes[1:, :9], prompts[1:], frames[1:], stage))
    assert torch.allclose(both[1, : alone.shape[1]], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 3}, "expected one of"),
        ({"heads": 5}, "not a multiple"),
        ({"layers": 0}, "positive"),
    ],
)
def test_bad_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(toy_config(2).to_dict() | change)
