"""Small checkpoints of four code bases, and the outputs of these code bases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import shared
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export import Checkpoint, export_checkpoint
from valle2.export.importers import read_any
from valle2.export.models.reference import Codes, generate, layout, refine
from valle2.export.options import ImportOptions
from valle2.runtime import Settings, Valle2
from valle2.runtime.presets import read_preset

TOLERANCE = 2e-4
GREEDY = Settings(top_p=0.0, threshold=1.0)


@dataclass(frozen=True, slots=True)
class Peer:
    """A fixture: its files, its number of heads, and the outputs of its code base."""

    files: tuple[Path, ...]
    heads: int
    ids: Codes
    prompt: Codes
    greedy: Codes
    full: Codes
    ar_logits: NDArray[np.float32]
    nar_logits: NDArray[np.float32]
    extra: dict[str, Any]


PEERS: dict[str, tuple[tuple[str, ...], int]] = {
    "lifeiteng": (("lifeiteng_a_mode1",), 0),
    "vallex": (("vallex_a_prompt",), 4),
    "amphion": (("amphion_ar", "amphion_nar"), 0),
    "supervoice": (("supervoice_ar", "supervoice_nar"), 4),
}


def frames_first(codes: Codes) -> Codes:
    """Codes of one utterance as (T, 8), however the code base lays them out."""
    framed: Codes = codes[0] if codes.ndim == 3 and codes.shape[2] == 8 else codes.reshape(8, -1).T
    return framed


def load_peer(family: str) -> Peer:
    """Load a fixture. Skips the test if it is absent."""
    names, heads = PEERS[family]
    files = tuple(shared(f"fixtures/peers/{name}.ckpt.pt") for name in names)
    ios = [np.load(shared(f"fixtures/peers/{name}.io.npz")) for name in names]
    first, last = ios[0], ios[-1]
    ids = last["text_ids"] if "text_ids" in last else last["phone_ids"]
    full, extra = first["ar_full_codes"], dict[str, Any]()
    if family == "vallex":
        extra["language_ids"] = last["text_lang_ids"]
    return Peer(
        files,
        heads,
        ids.reshape(-1),
        frames_first(last["prompt_codes"]),
        frames_first(last["greedy_codes"]),
        full[0, :, 0] if full.ndim == 3 else full.reshape(-1),
        first["ar_full_logits"],
        last["nar_logits"],
        extra,
    )


def read_peer(peer: Peer) -> Checkpoint:
    return read_any(peer.files, ImportOptions(heads=peer.heads))


def texts(checkpoint: Checkpoint, peer: Peer) -> tuple[Codes, Codes]:
    """The texts of the AR and of the NAR, family by family."""
    family, ids = checkpoint.rules["family"], peer.ids
    if family == "vallex":
        ids = ids + 2048 * peer.extra["language_ids"]
    if family == "amphion":
        return np.concatenate([[300], ids, [301]]), ids
    text = np.append(ids, 300) if family == "supervoice" else ids
    return text, text


@pytest.mark.parametrize("family", PEERS)
@torch.no_grad()
def test_eager_logits_and_greedy_codes_are_the_code_bases_own(family: str) -> None:
    peer = load_peer(family)
    checkpoint = read_peer(peer)
    text, nar_text = texts(checkpoint, peer)
    found = checkpoint.ar(*layout(checkpoint.ar, text, peer.full))[0, :, 0].numpy()
    expected = peer.ar_logits
    if family == "amphion":
        expected = expected[: len(found), [*range(1024), 1326]]
    else:
        found = found[len(text) :]
    assert found.shape == expected.shape and np.abs(found - expected).max() < TOLERANCE
    codes = torch.from_numpy(np.concatenate([peer.prompt, peer.greedy]))[None]
    lengths = torch.tensor([len(nar_text)]), torch.tensor([len(peer.prompt)]), torch.tensor([codes.shape[1]])
    for stage in range(1, 8):
        words = torch.from_numpy(nar_text)[None]
        inputs = NARInputs(words, lengths[0], codes, *lengths[1:], torch.tensor(stage))
        logits = checkpoint.nar(inputs)[0].numpy()
        assert np.abs(logits - peer.nar_logits[stage - 1][:, :1024]).max() < TOLERANCE
    first, ended = generate(checkpoint.ar, text, peer.prompt[:, 0], len(peer.greedy) + 1)
    assert ended and np.array_equal(first, peer.greedy[:, 0])
    assert np.array_equal(refine(checkpoint.nar, nar_text, peer.prompt, first), peer.greedy)


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["ort", "portable"])
@pytest.mark.parametrize("family", PEERS)
def test_bundles_make_the_code_bases_own_codes(family: str, lowering: str, tmp_path: Path) -> None:
    peer = load_peer(family)
    second = peer.files[1] if len(peer.files) > 1 else None
    bundle = export_checkpoint(
        peer.files[0],
        tmp_path / "b",
        second=second,
        heads=peer.heads,
        codec=False,
        lowering=lowering,
        cache_length=0 if lowering == "ort" else 96,
    )
    tts = Valle2.load(bundle, threads=1, slots=2)
    tts.model.ar.chunk = 7
    assert tts.model.layout.whole_text == (family in ("lifeiteng", "vallex"))
    assert max(tts.manifest.parity.values()) < 1e-4 and not tts.manifest.codec
    found = tts.generate_codes(peer.ids, peer.prompt, GREEDY, **peer.extra)
    assert np.array_equal(found.codes, peer.greedy) and found.finish_reason == "eos"
    beside = tts.generate_codes(peer.ids, peer.prompt, replace(GREEDY, candidates=2), **peer.extra)
    assert np.array_equal(beside.codes, peer.greedy)  # two rows at different positions share the steps
    if family == "vallex" and lowering == "ort":
        check_real_prompt(tts, read_peer(peer))


def check_real_prompt(tts: Valle2, checkpoint: Checkpoint) -> None:
    """Three seconds of EnCodec codes as prompt, end to end."""
    preset = read_preset(shared("fixtures/encodec-codes/librispeech_1.npz"))
    text, languages = preset.text_ids, preset.language_ids
    settings = replace(GREEDY, max_frames=12)
    found = tts.generate_codes(text, preset.codes, settings, language_ids=languages)
    first, _ = generate(checkpoint.ar, text, preset.codes[:, 0], 12)
    assert np.array_equal(found.codes, refine(checkpoint.nar, text, preset.codes, first))


def test_one_of_two_files_is_refused() -> None:
    peer = load_peer("amphion")
    with pytest.raises(ValueError, match="expected the files amphion AR and amphion NAR"):
        read_any(peer.files[:1])
    with pytest.raises(ValueError, match="expected the files amphion AR and amphion NAR"):
        read_any([peer.files[0], load_peer("supervoice").files[1]])
