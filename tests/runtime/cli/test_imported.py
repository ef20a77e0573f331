"""From weights of another code base to a WAV: export, a voice from a preset, say; and text without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import shared
from tests.export.codecs.test_codecs import as_file, peer
from tests.export.importers.peers import Lifeiteng
from valle2.engine import read_manifest
from valle2.runtime.cli.main import main
from valle2.runtime.voices import read_voice

CODES = np.random.default_rng(2).integers(0, 1024, (1, 20, 8))
VALLEX = Lifeiteng(bos=True, languages=True, vocab=80)


@dataclass(frozen=True, slots=True)
class Family:
    """How a family is imported.

    Args:
        files: writes the checkpoint and returns its files. flags: what the files do not say.
        phones: a text in the family's symbols. preset: ids of a preset, or None if its presets hold text.
        text: whether text is read without another file.
    """

    files: Callable[[Path], list[Path]]
    flags: tuple[str, ...]
    phones: str
    preset: tuple[int, ...] | None
    text: bool = True


def saved(folder: Path, container: object) -> list[Path]:
    torch.save(container, folder / "weights.pt")
    return [folder / "weights.pt"]


def fixtures(*names: str) -> Callable[[Path], list[Path]]:
    return lambda folder: [shared(f"fixtures/peers/{name}.ckpt.pt") for name in names]


FAMILIES = {
    "vallex": Family(
        lambda folder: saved(folder, {"model": VALLEX.state()}), ("--heads", "4"), "h ɛ ˈl oʊ .", (18, 20, 23)
    ),
    "lifeiteng": Family(
        lambda folder: saved(folder, Lifeiteng().container()), (), "h|ə|l|ˈoʊ", (1, 9, 10, 2)
    ),
    "amphion": Family(fixtures("amphion_ar", "amphion_nar"), (), "HH AH0 L OW1 | DH EH1 R", (5, 73, 118, 6)),
    "supervoice": Family(
        fixtures("supervoice_ar", "supervoice_nar"), ("--heads", "4"), "<5> <17>", None, text=False
    ),
}


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random EnCodec weights."""
    return as_file(peer("encodec")[0], tmp_path_factory.mktemp("codec") / "encodec_24khz.th")


def run(*args: str | Path) -> int:
    return main([str(arg) for arg in args])


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def preset_file(folder: Path, ids: tuple[int, ...] | None, lang_code: int | None = None) -> Path:
    """A preset as the family keeps it."""
    if ids is None:
        torch.save({"audio_tokens": torch.from_numpy(CODES[0].T), "text": "hello"}, folder / "alice.pt")
        return folder / "alice.pt"
    arrays = {"audio_tokens": CODES, "text_tokens": np.array([ids])}
    if lang_code is not None:
        arrays["lang_code"] = np.array(lang_code)
    np.savez(folder / "alice.npz", **arrays)  # type: ignore[arg-type]
    return folder / "alice.npz"


def symbol_file(folder: Path) -> Path:
    """lifeiteng's table."""
    symbols = ["<eps>", "_", "!", ".", *"abfhlksð", "ə", "ɛ", "ɹ", "ˈoʊ", "ˈɑː"]
    lines = [f"{symbol} {number}" for number, symbol in enumerate(symbols)]
    (folder / "unique_text_tokens.k2symbols").write_text("\n".join(lines), encoding="utf-8")
    return folder / "unique_text_tokens.k2symbols"


def sentencepiece_file(folder: Path) -> Path:
    """A unigram model in SentencePiece's format, without the library: three special pieces, then letters."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    special = [("<unk>", b"\x18\x02"), ("<s>", b"\x18\x03"), ("</s>", b"\x18\x03")]
    plain = [("▁", b""), *((letter, b"") for letter in "abcdefghijklmnopqrstuvwxyzH.,"), ("ello", b"")]
    pieces = (field(1, text.encode()) + b"\x15" + b"\0\0\x80\xbf" + kind for text, kind in special + plain)
    data = b"".join(field(1, piece) for piece in pieces)
    data += field(2, b"\x18\x01") + field(3, b"\x18\x00")  # unigram; no space before the first word
    (folder / "tokenizer_text.model").write_bytes(data)
    return folder / "tokenizer_text.model"


@pytest.mark.parametrize("family", FAMILIES)
def test_from_weights_to_a_wav(
    family: str, codecs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, bundle, out = FAMILIES[family], tmp_path / "bundle", tmp_path / "x.wav"
    text_file = {"lifeiteng": symbol_file, "supervoice": sentencepiece_file}.get(family)
    made = () if text_file is None else ("--text", text_file(tmp_path))
    export = ["export", *case.files(tmp_path), "-o", bundle, *case.flags, "--codec", codecs, *made]
    assert run(*export) == 0
    assert read_manifest(bundle).text == {"kind": family}
    assert run("voices", "add", "alice", preset_file(tmp_path, case.preset), "--model", bundle) == 0
    limits = ("--voice", "alice", "--model", bundle, "-o", out, "--max-frames", "8", "--json")
    capsys.readouterr()
    for said in (["Hello."], ["--phones", case.phones]):
        out.unlink(missing_ok=True)
        assert run("say", *said, *limits) == 0, capsys.readouterr().err
        result = json.loads(capsys.readouterr().out)
        assert result["finish_reason"] in ("eos", "max_frames")
        assert soundfile.info(out).duration == pytest.approx(result["seconds"], abs=5e-4)  # rounded to ms
    assert run("text", "Hello.", "--model", bundle, "--json") == 0
    (sentence,) = json.loads(capsys.readouterr().out)["sentences"]
    assert run("text", "--phones", sentence["phonemes"], "--model", bundle, "--json") == 0
    (again,) = json.loads(capsys.readouterr().out)["sentences"]
    assert again["ids"] == sentence["ids"] and sentence["ids"]


def test_a_bundle_that_cannot_speak_says_all_that_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "mine"
    assert run("export", *FAMILIES["lifeiteng"].files(tmp_path), "-o", bundle, "--no-codec") == 0
    capsys.readouterr()
    assert run("say", "Hello.", "--model", bundle, "-o", tmp_path / "x.wav") == 1
    line = refusal(capsys)
    for remedy in (
        f"valle2 export CHECKPOINT -o {bundle} --codec CODEC",
        f"valle2 voices add NAME PRESET.npz --model {bundle}",
        f"valle2 export CHECKPOINT -o {bundle} --text unique_text_tokens.k2symbols",
        "--phones",
    ):
        assert remedy in line
    assert run("say", "--phones", "<5>", "--model", bundle, "-o", tmp_path / "x.wav", "--voice", "a") == 1
    assert "a codec" in (line := refusal(capsys)) and "a voice" not in line and "front end" not in line


def test_presets_that_do_not_fit(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add = ("voices", "add", "alice")
    assert run(*add, preset_file(tmp_path, (1, 99)), "--model", bundle) == 1
    assert "has the phone id 99, but the model has 35 ids" in refusal(capsys)
    assert run(*add, "--model", bundle) == 1
    assert "valle2 voices add NAME PRESET.npz" in refusal(capsys)
    torch.save({"audio_tokens": torch.zeros(3, 4), "text": "a"}, tmp_path / "a.pt")
    assert run(*add, tmp_path / "a.pt", "--model", bundle) == 1
    assert "is no preset of supervoice; expected audio_tokens (8, P) and text" in refusal(capsys)


def test_a_preset_of_another_language(broken: Path, tmp_path: Path) -> None:
    """Its transcript keeps the language's mark, which VALL-E X's front end reads."""
    values = json.loads((broken / "manifest.json").read_text())
    values["text"] = {"kind": "vallex"}
    values["sizes"]["vocab_size"] = 80
    (broken / "manifest.json").write_text(json.dumps(values))
    assert run("voices", "add", "li", preset_file(tmp_path, (40, 41, 0), 0), "--model", broken) == 0
    voice = read_voice(broken, read_manifest(broken), "li")
    assert voice.transcript == "[ZH]z~<0>[ZH]" and type(voice.transcript).__name__ == "Phones"
    assert np.array_equal(voice.codes, CODES[0]) and voice.source == "alice.npz"


def test_phones_of_a_recording(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "v.wav", 0.3 * np.sin(np.arange(24000) / 30), 24000)
    model = ("--model", broken)
    recording = ("--prompt", tmp_path / "v.wav", "--prompt-phones", "hˈelo ðˈer")
    assert run("voices", "add", "mine", *recording, *model) == 0
    out = ("-o", tmp_path / "o.wav", "--max-frames", "8")
    assert run("say", "hello", "--voice", "mine", *out, *model) == 0
    assert run("say", "--phones", "hˈelo\nðˈer", *recording, *out, *model) == 0
    capsys.readouterr()
    assert run("say", "hello", *recording, "--prompt-text", "hello", *out, *model) == 1
    assert "--prompt-text, the words spoken in the recording, or --prompt-phones" in refusal(capsys)
    assert run("voices", "add", "b", *recording[:3], "Ж", *model) == 1
    assert "unknown phone 'Ж'; this model has" in refusal(capsys)


def test_text_of_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("text", "Hello 你 there. The fox!", "--model", bundle, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["text"] for row in found["sentences"]] == ["Hello 你 there.", "The fox!"]
    first = found["sentences"][0]
    assert set(first) == {"text", "spoken", "phonemes", "ids"}
    assert first["spoken"] == "Hello there." and first["phonemes"] == "hˈelo ðˈer."
    assert len(first["ids"]) == len(first["phonemes"])
    assert found["warnings"] == ["left out, because only Latin letters are read: '你'"]
    assert run("text", "Hello 5", "--model", bundle) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1. Hello 5.\n   spoken:   Hello five.\n   phonemes: hˈelo")
    assert "\n   ids:      " in printed
    assert run("text", "?!", "--model", bundle) == 1
    assert "nothing that can be spoken" in refusal(capsys)
    assert run("text", "--phones", "hˈeloЖ", "--model", bundle) == 1
    assert "unknown phone 'Ж'" in refusal(capsys)


def test_text_needs_no_torch_and_no_session(bundle: Path) -> None:
    code = (
        "import sys\n"
        "from valle2.runtime.cli.main import main\n"
        f"assert main(['text', 'hello', '--model', {str(bundle)!r}]) == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
