"""The page in a headless Chromium, served with the embedded model.

Needs `playwright` (extra `dev`) and an installed Chromium: `apt-get install chromium`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import soundfile

pytest.importorskip("playwright", reason="needs the extra: dev")
from playwright.sync_api import Browser, Page, sync_playwright

from tests.runtime.server.conftest import KEYS, serving, wait_until
from valle2.runtime import Valle2
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.worker import Worker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
TEXT = "Good morning to all of you. The dog sleeps."
PATIENCE_MS = 60_000
HOOKS = """
    const start = AudioBufferSourceNode.prototype.start;
    window.heard = [];
    AudioBufferSourceNode.prototype.start = function (at) {
        const {buffer, context} = this;
        window.heard.push({now: performance.now(), at, seconds: buffer.duration, state: context.state});
        return start.call(this, at);
    };
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Worker]]:
    worker = Worker(lambda slots: Valle2.load(threads=1, slots=slots), Limits(slots=2))
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield address, worker


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, served: tuple[str, Worker]) -> Iterator[Page]:
    """The page after its voices have loaded. An error of its script or its content policy fails the test."""
    context = browser.new_context(permissions=["microphone"], color_scheme="light")
    opened, wrong = context.new_page(), []
    opened.set_default_timeout(PATIENCE_MS)
    opened.add_init_script(HOOKS)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda m: wrong.append(m.text) if "Content Security Policy" in m.text else None)
    opened.goto(served[0])
    opened.wait_for_selector("#voice option", state="attached")
    yield opened
    context.close()
    assert not wrong


def speak(page: Page, text: str = TEXT) -> None:
    page.fill("#text", text)
    page.click("#speak")


def pixels(page: Page) -> dict[str, Any]:
    """Of the waveform's canvas: pixels drawn, the rightmost as a share of the width, the opaque colour."""
    found: dict[str, Any] = page.evaluate(
        """() => {
            const canvas = document.getElementById("wave"), pen = canvas.getContext("2d");
            const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
            let drawn = 0, right = 0, colour = null;
            for (let i = 0; i < data.length; i += 4) if (data[i + 3]) {
                drawn++; right = Math.max(right, (i / 4) % canvas.width);
                if (data[i + 3] === 255) colour = [data[i], data[i + 1], data[i + 2]];
            }
            return {drawn, right: right / canvas.width, colour};
        }"""
    )
    return found


def test_speech_is_heard_before_it_is_complete_then_drawn_timed_and_saved(page: Page, tmp_path: Path) -> None:
    assert pixels(page)["drawn"] == 0
    page.fill("#seed", "5")
    speak(page)
    page.wait_for_selector("#result:not([hidden])")
    heard = page.evaluate("window.heard")
    whole = page.evaluate(
        "performance.getEntriesByType('resource').find(e => e.name.endsWith('/v1/audio/speech')).responseEnd"
    )
    first = heard[0]["now"]
    assert len(heard) > 1 and first < whole - 100 and heard[0]["state"] == "running"
    assert all(b["at"] >= a["at"] + a["seconds"] - 1e-6 for a, b in pairwise(heard))
    assert pixels(page)["drawn"] > 1000 and pixels(page)["right"] > 0.9
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "speech.wav")
    with soundfile.SoundFile(tmp_path / "speech.wav") as file:
        assert "Synthetic speech" in file.comment
        seconds = file.frames / file.samplerate
    assert seconds == pytest.approx(sum(piece["seconds"] for piece in heard))
    assert page.inner_text("#first").endswith(" ms") and page.inner_text("#speech") == f"{seconds:.1f} s"
    wait_until(lambda: page.evaluate("again.duration") == pytest.approx(seconds, abs=0.01))
    assert page.inner_text("#state") == "Complete, with seed 5"
    wait_until(lambda: page.is_disabled("#stop"), 30)  # playback has ended


def test_the_keyboard_speaks_and_stops_which_frees_the_slot(page: Page, served: tuple[str, Worker]) -> None:
    page.focus("#text")
    page.keyboard.press("Control+A")
    page.keyboard.type(TEXT * 4)
    page.keyboard.press("Control+Enter")
    wait_until(lambda: page.evaluate("window.heard.length"), 30)
    page.keyboard.press("Escape")
    wait_until(lambda: not served[1].outstanding)
    assert page.inner_text("#state") == "Stopped" and page.is_disabled("#stop")


def test_every_control_has_a_name_and_can_be_focused(page: Page) -> None:
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, audio, canvas, a")].filter(
            (e) => !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute("aria-label")
        ).map((e) => e.id)"""
    )
    assert unnamed == []
    for summary in page.query_selector_all("summary"):
        summary.press("Enter")
    reached = set()
    page.focus("#text")
    for _ in range(30):
        reached.add(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert {"text", "voice", "seed", "roll", "top_p", "window", "threshold", "speak"} <= reached
    assert {"record", "file", "transcript", "name", "consent"} <= reached


@pytest.mark.parametrize(("text", "message"), [("???", "nothing"), ("a" * 5000, "at most")])
def test_bad_input_is_explained(page: Page, text: str, message: str) -> None:
    speak(page, text)
    page.wait_for_selector("#state.bad")
    assert message in page.inner_text("#state") and page.is_disabled("#stop")


def test_a_key_is_asked_for_where_there_is_one(
    page: Page, served: tuple[str, Worker], tmp_path: Path
) -> None:
    assert page.is_hidden("#key")
    with serving(served[1], tmp_path, KEYS) as address:
        page.goto(address)
        page.wait_for_selector("#key:visible")
        page.fill("#key", "k" * 16)
        page.press("#key", "Tab")
        page.wait_for_selector("#voice option", state="attached")


def test_a_stream_that_breaks_is_not_taken_for_complete(page: Page, served: tuple[str, Worker]) -> None:
    speak(page, TEXT * 4)
    wait_until(lambda: page.evaluate("window.heard.length"), 30)
    reply = next(iter(served[1].running.values()))
    reply.end(RuntimeError("the device is gone"))
    page.wait_for_selector("#state.bad")
    assert "not complete" in page.inner_text("#state") and page.is_hidden("#result")
    wait_until(lambda: not served[1].outstanding, 60)  # the engine speaks to the end of the text


def test_a_voice_is_recorded_added_and_deleted(page: Page) -> None:
    page.click("summary >> text=Add a voice")
    page.click("#record")
    page.wait_for_selector("#record[aria-pressed=true]")
    page.wait_for_timeout(1500)
    page.click("#record")
    page.wait_for_selector("#heard:not([hidden])")
    page.fill("#transcript", "hello there")
    page.fill("#name", "Me!")
    page.check("#consent")
    page.click("text=Add >> nth=-1")
    page.wait_for_selector("#voice-state.bad")  # "Me!" is not a plain name
    page.fill("#name", "me")
    page.click("text=Add >> nth=-1")
    wait_until(lambda: page.input_value("#voice") == "me")
    # the browser's false microphone beeps, which may earn a warning
    assert page.inner_text("#voice-state").startswith("Voice me was added and selected")
    page.click("#delete")
    wait_until(lambda: page.query_selector("#voice option[value=me]") is None)
    assert page.is_hidden("#delete")


def test_a_file_is_read_in_the_page(page: Page, tmp_path: Path) -> None:
    import numpy as np

    page.click("summary >> text=Add a voice")
    soundfile.write(tmp_path / "tone.flac", 0.3 * np.sin(np.arange(44100 * 2) / 30), 44100)
    page.set_input_files("#file", tmp_path / "tone.flac")
    page.wait_for_selector("#heard:not([hidden])")
    assert page.inner_text("#voice-state") == "2.0 s recorded"
    (tmp_path / "no.wav").write_bytes(b"no audio")
    page.set_input_files("#file", tmp_path / "no.wav")
    page.wait_for_selector("#voice-state.bad")
    assert page.is_hidden("#heard")


def test_both_channels_of_a_recording_are_sent_at_full_level(page: Page, tmp_path: Path) -> None:
    """Their mean would be silent where the phases are inverted; the server takes care of that."""
    import numpy as np

    page.click("summary >> text=Add a voice")
    tone = 0.002 * np.sin(np.arange(48000 * 2) / 30)
    soundfile.write(tmp_path / "inverted.wav", np.stack([tone, -tone], axis=1), 48000, "FLOAT")
    page.set_input_files("#file", tmp_path / "inverted.wav")
    page.wait_for_selector("#heard:not([hidden])")
    script = """import("./recorder.js").then((recorder) => recorder.toWav(file.files[0]))
        .then((made) => made.wav.arrayBuffer()).then((bytes) => [...new Uint8Array(bytes)])"""
    (tmp_path / "sent.wav").write_bytes(bytes(page.evaluate(script)))
    sent, _ = soundfile.read(tmp_path / "sent.wav")
    assert sent.shape == (96000, 2)
    assert np.abs(sent).max() > 0.99 and np.abs(sent.sum(axis=1)).max() < 1e-4


def test_a_speed_and_a_cut_sentence(page: Page, served: tuple[str, Worker]) -> None:
    page.fill("#speaking_speed", "2")
    speak(page)
    page.wait_for_selector("#result:not([hidden])")
    fast = float(page.inner_text("#speech").split()[0])
    page.fill("#speaking_speed", "")
    speak(page)
    page.wait_for_selector("#result:not([hidden])")
    assert float(page.inner_text("#speech").split()[0]) > 1.7 * fast
    last = "{finish_reason: 'max_frames', warnings: ['w']}"
    assert page.evaluate(f"import('./page.js').then((page) => page.remarks({last}))") == (
        ". Warning: the speech was cut at the model's longest; try another seed. Warning: w"
    )
    last = "{finish_reason: 'repetition', warnings: []}"
    assert page.evaluate(f"import('./page.js').then((page) => page.remarks({last}))") == (
        ". Warning: the speech repeated itself and was cut; try another seed"
    )
    last = "{finish_reason: 'eos', warnings: []}"
    assert page.evaluate(f"import('./page.js').then((page) => page.remarks({last}))") == ""


def test_light_and_dark(page: Page) -> None:
    def look() -> tuple[str, str]:
        script = "getComputedStyle(document.querySelector('main'))"
        return page.evaluate(f"{script}.backgroundColor"), page.evaluate(f"{script}.color")

    light = look()
    page.emulate_media(color_scheme="dark")
    dark = look()
    assert light == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert dark[0] == "rgb(29, 33, 41)" and dark[1] == "rgb(255, 255, 255)"


def test_nothing_comes_from_elsewhere(page: Page, served: tuple[str, Worker]) -> None:
    names = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert names and all(name.startswith((served[0], "data:")) for name in names)
    policy = page.request.get(served[0]).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
