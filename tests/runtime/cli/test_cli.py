"""The command line: results, one clear line for everything a user can get wrong, nothing lost."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from valle2.engine.errors import HubError, Valle2Error
from valle2.runtime.audio.prepare import PAUSE_SECONDS
from valle2.runtime.cli.main import main
from valle2.runtime.errors import TextError

COMMAND = [sys.executable, "-m", "valle2.runtime.cli"]
READY = """
import sys
from valle2.runtime.cli.main import build_parser, main
build_parser()
print("ready", flush=True)
sys.exit(main())
"""
"""The command, which says when Python has started and loaded it: that takes long on a busy machine."""


def say(bundle: Path, *args: str) -> int:
    return main(["say", *args, "--model", str(bundle), "--max-frames", "20"])


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("valle2: "), lines
    return lines[0]


def test_say_writes_speech(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.wav"
    assert say(bundle, "hello there", "-o", str(out), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    sound, rate = soundfile.read(out)
    assert rate == 24000 and len(sound) / rate == pytest.approx(result["seconds"], abs=5e-4)  # rounded to ms
    assert {"prefill", "ar", "nar", "codec", "first_audio", "total"} == set(result["timings"])


def test_say_from_a_file_and_a_recording(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello there", encoding="utf-8")
    wave = 0.3 * np.sin(np.arange(44100 * 2) / 30)
    soundfile.write(tmp_path / "me.wav", np.stack([wave, wave], axis=1), 44100)
    args = ["--text-file", str(tmp_path / "text.txt"), "--prompt", str(tmp_path / "me.wav")]
    assert say(bundle, *args, "--prompt-text", "hello fox", "-o", str(tmp_path / "o.flac")) == 0
    assert soundfile.info(tmp_path / "o.flac").frames > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([""], "nothing that can be spoken"),
        (["?!"], "nothing that can be spoken"),
        (["\U0001f600"], "nothing that can be spoken"),
        ([], "expected a text"),
        (["hi", "--text-file", "x"], "expected a text"),
        (["--text-file", "absent.txt"], "cannot be read"),
        (["hi", "--voice", "nobody"], "this model has: amber, basalt"),
        (["hi", "--prompt", "absent.wav", "--prompt-text", "x"], "no such audio file"),
        (["hi", "--prompt", "absent.wav"], "needs --prompt-text"),
        (["hi", "--voice", "amber", "--prompt", "x.wav"], "expected one of them"),
        (["hi", "--top-p", "nan"], "top_p is nan; expected a number from 0.0 to 1.0"),
        (["hi", "--seed", "-3"], "seed is -3"),
        (["hi", "--codebooks", "9"], "codebooks is 9; expected a whole number from 0 to 8"),
        (
            ["hi", "--nar-prompt-seconds", "-1"],
            "nar_prompt_seconds is -1.0; expected a number from 0.0 to 60",
        ),
        (["hi", "--device", "tpu"], "unknown device 'tpu'"),
        (["hi", "--precision", "int2"], "unknown precision 'int2'"),
        (["hi", "-o", "out.doc"], "unknown audio type"),
        (["hi", "-o", "absent/out.wav"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_status_1(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert say(bundle, *args) == 1
    assert message in only_line(capsys)
    assert list(tmp_path.iterdir()) == []


ODD_NAMES = ["a" * 300, "a/" * 3000, "b\0c", "d\ne\x1b[31m", "\u202egnp", "f\udcff", "g\ud800"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name[:8]))
def test_paths_that_no_system_takes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        ["say", "hi", "--model", name],
        ["say", "hi", "-o", f"{name}.wav", "--model", "nosuch"],
        ["say", "hi", "-o", f"{name}/o.wav", "--model", "nosuch"],
        ["say", "--text-file", name],
        ["say", "hi", "--model", f"./{name}"],
        ["inspect", name],
        ["inspect", f"./{name}"],
        ["voices", "list", "--model", name],
        ["voices", "add", "v", "--model", name, "--prompt", name, "--prompt-text", "x"],
        ["build", name, "--target", "ort"],
        ["export", name, "-o", "out"],
        ["export", "absent", "-o", name],
        ["export", "absent", name, "-o", "out"],
    ]
    for command in commands:
        assert main(command) == 1, command
        line = only_line(capsys)
        assert line.isprintable() and len(line) < 2200


def test_messages_are_one_printable_line() -> None:
    for kind in (Valle2Error, HubError, TextError):
        error = kind("a\r\n\tb \x1b[2J \u202e \ud800 \u2028 \u00e9")
        assert str(error) == "a b ?[2J ? ?   \u00e9" and error.args == (str(error),)
        assert pickle.loads(pickle.dumps(error)).args == error.args
        long = str(kind("a" * 10**6 + ": remedy"))
        assert len(long) < 2100 and long.endswith(": remedy")
    assert str(Valle2Error()) == "" and str(Valle2Error(OSError(1, "a\nb"))) == "[Errno 1] a b"


def test_unknown_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "hi", "--model", "nosuch", "-o", str(tmp_path / "o.wav")]) == 1
    assert "unknown model 'nosuch'" in only_line(capsys)


@pytest.mark.parametrize("args", [[], ["sing"], ["say", "hi", "--top-p", "much"], ["voices", "steal"]])
def test_wrong_arguments_are_status_2(args: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2


def test_ten_thousand_characters_are_split(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ("hello there the fox. " * 500)[:10_000]
    (tmp_path / "long.txt").write_text(text)
    args = ["say", "--text-file", str(tmp_path / "long.txt"), "-o", str(tmp_path / "long.wav"), "--json"]
    assert main([*args, "--model", str(bundle), "--max-frames", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == len(text.split(".")) - (text[-1] == ".")


def test_standard_output_is_a_wav(bundle: Path) -> None:
    args = [*COMMAND, "say", "hello", "-o", "-", "--model", str(bundle), "--max-frames", "10"]
    done = subprocess.run(args, capture_output=True, check=True)
    assert done.stdout[:4] == b"RIFF"
    assert done.stderr.count(b"\n") == 1 and b"warning: a sentence reached its longest length" in done.stderr


def test_a_stream_on_standard_output_is_the_same_wav(bundle: Path) -> None:
    command = [*COMMAND, "say", "hello there", "--model", str(bundle)]
    command += ["--max-frames", "60", "-o", "-"]
    whole = subprocess.run(command, capture_output=True, check=True).stdout
    ended = subprocess.run(
        [*command, "--stream", "--first-chunk-seconds", "0"], capture_output=True, check=True
    ).stdout
    assert ended[:4] == b"RIFF" and b"Synthetic speech" in ended
    streamed = np.frombuffer(ended[ended.index(b"data") + 8 :], "<i2")
    expected, _ = soundfile.read(io.BytesIO(whole), dtype="int16")
    assert np.array_equal(streamed, expected)
    info = soundfile.info(io.BytesIO(ended))
    assert (info.samplerate, info.channels) == (24000, 1)


def test_a_stream_into_a_file_tells_when_audio_began(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "o.wav")
    assert say(bundle, "hello there", "--stream", "--latency", "0.1", "-o", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["timings"]["first_audio"] <= result["timings"]["total"]
    assert say(bundle, "hello", "--first-chunk-seconds", "0.1", "-o", out) == 1
    assert "--first-chunk-seconds is for --stream" in capsys.readouterr().err


def test_voices(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "v.wav", 0.3 * np.sin(np.arange(24000) / 30), 24000)
    model = ["--model", str(broken)]
    add = ["voices", "add", "mine", "--prompt", str(tmp_path / "v.wav"), "--prompt-text", "hello there"]
    assert main([*add, "--licence", "own", *model]) == 0
    capsys.readouterr()
    assert main(["voices", "list", "--json", *model]) == 0
    listed = json.loads(capsys.readouterr().out)["voices"]
    assert [voice["name"] for voice in listed] == ["amber", "basalt", "mine"]
    about = {"name": "mine", "transcript": "hello there", "source": "v.wav"}
    assert listed[2] == {**about, "seconds": 1 + PAUSE_SECONDS}, "a tone that stops at its end gets a pause"
    assert say(broken, "hello", "--voice", "mine", "-o", str(tmp_path / "o.wav")) == 0
    assert main(["voices", "remove", "mine", *model]) == 0
    capsys.readouterr()
    assert main(["voices", "remove", "mine", *model]) == 1
    assert "unknown voice" in only_line(capsys)
    assert main(["voices", "add", "../x", "--prompt", "v", "--prompt-text", "t", *model]) == 1
    assert "voice name '../x'" in only_line(capsys)


def test_inspect_and_doctor(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["group_size"] == 2 and found["bytes"]["total"] > 0
    assert main(["inspect", str(bundle)]) == 0
    assert main(["doctor", "--json"]) == 0
    assert '"cpu": "ready"' in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["flip", "missing", "format"])
def test_damaged_bundles(broken: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    if damage == "flip":
        (broken / "nar.onnx").write_bytes((broken / "nar.onnx").read_bytes()[:-1] + b"x")
    elif damage == "missing":
        (broken / "ar.weights").unlink()
    else:
        (broken / "manifest.json").write_text('{"format": 2}')
    assert main(["inspect", str(broken)]) == 1
    only_line(capsys)


def test_export_command(checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "absent"), "-o", str(tmp_path / "b")]) == 1
    assert "no checkpoint there" in only_line(capsys)
    assert main(["export", str(checkpoint_folder), "-o", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["ar"] < 1e-4


def test_interrupt_is_one_line_and_keeps_the_earlier_file(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "o.wav").write_bytes(b"earlier")
    text = "hello there the fox. " * 400
    (tmp_path / "t.txt").write_text(text)
    args = [sys.executable, "-c", READY, "say", "--text-file", "t.txt", "-o", "o.wav", "--model", str(bundle)]
    # what a shell starts with & ignores SIGINT, and so do its children
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        args,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ},
        preexec_fn=heard,
    )
    assert process.stdout and process.stdout.readline() == b"ready\n"
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.decode().strip() == "valle2: interrupted"
    assert (tmp_path / "o.wav").read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.wav", "t.txt"]


def test_two_at_once(bundle: Path, tmp_path: Path) -> None:
    args = [*COMMAND, "say", "hello there", "--model", str(bundle), "--max-frames", "40"]
    both = [
        subprocess.Popen([*args, "-o", str(tmp_path / f"{i}.wav")], stdout=subprocess.DEVNULL) for i in "ab"
    ]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
