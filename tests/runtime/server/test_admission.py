"""Which requests are taken, which wait, and who is next: on a worker that speaks, and on the rules alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from tests.runtime.server.conftest import LONG, idle, wait_until
from tests.runtime.server.test_failures import started
from tests.runtime.server.test_worker import ask
from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.generation.engine import EncodedRequest, Sentence
from valle2.runtime.generation.playback import WHOLE_SECONDS
from valle2.runtime.generation.token_layout import Text
from valle2.runtime.server.admission import (
    HELD,
    SECONDS_PER_SYMBOL,
    SHARED_TIME,
    Admission,
    Ratio,
)
from valle2.runtime.server.keys import Client
from valle2.runtime.server.limits import Limits, RefusedError, TooLongError
from valle2.runtime.server.reply import Reply, Stage
from valle2.runtime.server.worker import TimeLimitError, Worker

VOICE = Prompt(np.zeros((1, 8), np.int64), "a")
SPEED = 2.0
CHUNKS = (0.4, 0.8, 1.6, 3.2, 4.0)


class Desk(Admission):
    """Admission with a clock of its own and a known speed."""

    def __init__(self, **limits: float) -> None:
        super().__init__(Limits(**limits))  # type: ignore[arg-type]
        self.speed = steady(SPEED)
        self.now = time.perf_counter()

    def come(self, client: str, seconds: float, **settings: int) -> Reply:
        """A request that is so many seconds of speech."""
        count = round(seconds / SECONDS_PER_SYMBOL)
        reply = Reply(Request("a" * count, VOICE, Settings(**settings)), 0.4, lambda _: None, Client(client))
        self.displaced_reply = self.enter(reply)
        if self.displaced_reply:
            self.remove(self.displaced_reply)
        self.encode()
        return reply

    def encode(self) -> None:
        while reply := self.next_text():
            text = Text(np.zeros(len(reply.request.text) + 1, np.int64), prompt_length=1)
            encoded = EncodedRequest((Sentence(text),), VOICE.codes, reply.request.settings)
            try:
                self.settle(reply, encoded, 75.0, self.now)
            except Exception:
                self.remove(reply)
                raise

    def start(self) -> list[Reply]:
        return list(iter(lambda: self.next_start(self.now), None))

    def end(self, reply: Reply) -> list[Reply]:
        """End a request; returns those that start then."""
        self.remove(reply)
        return self.start()


def steady(speed: float, measured: float = 1e9) -> Ratio:
    """A speed that nothing changes. measured: seconds that it was measured for."""
    found = Ratio(speed, 1e9, 1e12)
    found.measured = measured
    return found


def test_a_request_that_would_wait_too_long_is_refused_with_the_time_to_wait() -> None:
    desk = Desk(slots=2, queue=100, wait_seconds=30, request_seconds=1000)
    for _ in range(2):
        desk.come("a", 100)
        desk.start()
    with pytest.raises(RefusedError, match="busy for about 100 s") as refused:
        desk.come("a", 1)
    assert refused.value.code == "server_busy" and refused.value.retry_after == pytest.approx(70, abs=1)
    for reply in list(desk.replies):
        reply.made = 80.0  # 40 s are left, 20 s at this speed
    assert desk.come("a", 1).stage is Stage.WAITING


def test_a_text_that_alone_is_too_long_is_refused_with_both_numbers() -> None:
    desk = Desk(audio_seconds=60, request_seconds=100)
    with pytest.raises(TooLongError, match=r"about 90 s of speech; .* at most 60 s"):
        desk.come("a", 90)
    assert not desk.replies
    desk = Desk(audio_seconds=1000, request_seconds=100)
    with pytest.raises(TooLongError, match=r"about 150 s; it allows 100 s"):
        desk.come("a", 300)
    desk.speed.measured = 0.0  # a guess refuses nobody
    assert desk.come("a", 300).stage is Stage.WAITING


def test_what_is_started_ends_in_time() -> None:
    """Four texts of 270 s at 2 s a second take 540 s together: only some of them are started."""
    desk = Desk(slots=4, queue=16, wait_seconds=1000, request_seconds=300)
    waiting = [desk.come("a", 270) for _ in range(4)]
    started = desk.start()
    assert started == waiting[:1]
    assert sum(desk.left(reply) for reply in started) / SPEED <= SHARED_TIME * 300
    short = desk.come("a", 2)
    assert desk.start() == []  # earlier requests go first, and this client has one under way
    assert desk.come("b", 2) in desk.start()
    started[0].made = 260.0
    assert desk.start() == [waiting[1]]
    desk.now += 0.6 * 1000  # one that has waited long lets none go before it
    assert short.stage is Stage.WAITING


def test_twenty_long_texts_are_whole_or_refused(load: Callable[[int], Valle2]) -> None:
    with started(load, queue=30, request_seconds=20.0, wait_seconds=5.0) as worker:
        replies, refused = [], 0
        for seed in range(20):
            try:
                replies.append(ask(worker, LONG * 3, seed, first_chunk_seconds=0.0))
            except RefusedError as error:
                refused += 1
                assert 1 <= error.retry_after <= 20
            time.sleep(0.05)
        whole = late = 0
        for reply in replies:
            pieces = 0
            try:
                for _ in reply:
                    pieces += 1
                whole += pieces > 0
            except RefusedError:
                assert not pieces
            except TimeLimitError as error:  # the machine has become slower since the text was taken
                late += 1
                assert not pieces and "no audio" in str(error)
        assert whole and worker.metrics.failed._value.get() == late
        assert worker.metrics.completed._value.get() == whole


def test_clients_take_turns() -> None:
    desk = Desk(slots=2, queue=30)
    mine = [desk.come("a", 1) for _ in range(6)]
    assert desk.start() == mine[:2]
    other = [desk.come("b", 1) for _ in range(3)]
    third = desk.come("c", 1)
    assert desk.start() == [other[0], third]  # all slots were one client's
    assert desk.end(mine[0]) == desk.end(mine[1]) == []
    assert desk.end(third) == [mine[2]]
    assert desk.end(other[0]) == [other[1]]
    assert desk.end(mine[2]) == [mine[3]]


def test_one_slot_goes_round() -> None:
    desk = Desk(slots=1, queue=30)
    for client in "aaabb":
        desk.come(client, 1)
    served, (reply,) = "", desk.start()
    while True:
        served += reply.client.name
        after = desk.end(reply)
        if not after:
            break
        (reply,) = after
    assert served == "ababa"


def test_a_stream_waits_until_those_that_run_have_slack() -> None:
    """At a speed of 1.25, a text of 3 s and the stream's next chunk of 4 s take 5.6 s."""
    desk = Desk(slots=4)
    desk.speed = steady(1.25)
    long, short = desk.come("a", 100), desk.come("b", 3)
    assert desk.start() == [long]
    long.note_audio(4.0, desk.now)
    assert desk.start() == []
    long.note_audio(4.0, desk.now)
    assert desk.start() == [short]
    assert not desk.keeps_up([long, short, desk.come("c", 3)], desk.now)


def test_a_stream_is_held_back_for_a_part_of_its_time_only() -> None:
    desk = Desk(slots=4, wait_seconds=30)
    desk.speed = steady(1.25)
    long, short = desk.come("a", 100), desk.come("b", 3)
    assert desk.start() == [long]
    desk.now += 30 * HELD - 0.1
    assert desk.start() == []
    desk.now += 0.2
    assert desk.start() == [short]


@pytest.mark.parametrize(
    ("speed", "measured", "whole"), [(1.25, 1e9, True), (0.9, 1e9, False), (1.25, 0.0, False)]
)
def test_nobody_is_held_back_where_it_does_not_help(speed: float, measured: float, whole: bool) -> None:
    """A request that nobody hears before its end, an engine too slow for one stream, an unmeasured one."""
    desk = Desk(slots=4)
    desk.speed = steady(speed, measured)
    long, other = desk.come("a", 100), desk.come("b", 3)
    other.whole = whole
    assert desk.start() == [long, other]


def test_work_beside_the_audio_counts() -> None:
    """Two candidates cost twice the audio, and slow speech plays the same work for longer."""
    desk = Desk(slots=4, wait_seconds=1000)
    desk.speed = steady(1.25)
    long = desk.come("a", 100)
    desk.start()
    long.note_audio(8.0, desk.now)
    assert desk.keeps_up([long, desk.come("b", 3)], desk.now)
    assert not desk.keeps_up([long, desk.come("c", 3, candidates=2)], desk.now)
    slow = desk.come("d", 3)
    slow.work = slow.work._replace(audio=15.0)
    assert desk.keeps_up([slow, desk.come("e", 3)], desk.now)


@pytest.mark.parametrize("seed", range(5))
def test_streams_do_not_run_dry_at_an_overload(seed: int) -> None:
    """An engine that serves first who needs audio first, a long text, and four clients that ask again.

    Chunks of up to four seconds that are made for one stream keep another one waiting; that is all. If all
    streams began at once, one of them would run dry for four seconds.
    """
    desk, numbers = Desk(slots=4, wait_seconds=1e6), np.random.default_rng(seed)
    desk.come("long", 200)
    dry, running, ready = 0.0, list[Reply](), dict[Reply, float]()
    while len(ready) < 50:
        for client in "abcd":
            if not any(reply.client.name == client for reply in desk.replies):
                desk.come(client, float(numbers.uniform(1, 8)))
        for reply in desk.start():
            running.append(reply)
            ready[reply] = 0.0
        first = min(running, key=lambda reply: reply.slack(desk.now))
        chunk = min(next((size for size in CHUNKS if size > first.made), CHUNKS[-1]), desk.left(first))
        desk.now += 0.1
        ready[first] += 0.1 * SPEED
        if ready[first] >= chunk:
            dry = max(dry, -first.slack(desk.now))
            first.note_audio(ready[first], desk.now)
            first.made, ready[first] = first.made + ready[first], 0.0
        if first.made >= first.work.decoded:
            running.remove(first)
            desk.remove(first)
    assert dry < 1.5


def test_a_client_alone_fills_the_queue_and_gives_places_to_others() -> None:
    desk = Desk(slots=2, queue=4)
    mine = [desk.come("a", 1) for _ in range(6)]
    desk.start()
    with pytest.raises(RefusedError) as refused:
        desk.come("a", 1)
    assert refused.value.code == "queue_full" and refused.value.retry_after >= 1
    for expected in (mine[5], mine[4]):
        desk.come("b", 1)
        assert desk.displaced_reply is expected and expected not in desk.replies
    desk.come("c", 1)
    assert desk.displaced_reply is mine[3] and len(desk.replies) == 6


def test_the_places_of_one_client_are_bounded() -> None:
    desk = Desk(slots=2, queue=10, queue_per_client=3)
    for _ in range(5):
        desk.come("a", 1)
    with pytest.raises(RefusedError) as refused:
        desk.come("a", 1)
    assert refused.value.code == "client_queue_full"
    desk.come("b", 1)


def test_the_pace_and_the_speed_are_measured() -> None:
    desk = Desk()
    for _ in range(100):
        reply = desk.come("a", 10)
        reply.made = 20.0
        desk.measure(reply)
        desk.remove(reply)
    assert desk.per_id.value == pytest.approx(2 * SECONDS_PER_SYMBOL, rel=0.1)
    for _ in range(1000):
        desk.per_id.add(1e6, 100)
    assert desk.per_id.value < 5 * SECONDS_PER_SYMBOL
    speed = Admission(Limits()).speed
    for _ in range(400):
        speed.add(0.5, 0.1)
    assert speed.value == pytest.approx(5.0, rel=0.05)


def test_candidates_count_each_and_max_frames_bounds() -> None:
    desk = Desk()
    one, four = desk.come("a", 10), desk.come("a", 10, candidates=4)
    assert four.work.decoded == 4 * one.work.decoded and four.work.audio == one.work.audio
    assert desk.come("a", 10, max_frames=75).work.audio == 1.0


def test_a_worker_that_runs_measures_itself(worker: Worker) -> None:
    before = worker.admission.speed.measured
    assert before > 0  # the warm-up
    list(ask(worker, LONG))
    wait_until(lambda: idle(worker))
    assert worker.admission.speed.measured > before
    assert worker.admission.per_id.measured > 0


def test_a_waiting_request_that_is_cancelled_is_gone_at_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the queue, and before its text is prepared."""
    encoded = []
    assert worker.tts
    encode = worker.tts.encode

    def noted(request: Request, seconds: float) -> EncodedRequest:
        encoded.append(request.text)
        time.sleep(0.1)
        return encode(request, seconds)

    monkeypatch.setattr(worker.tts, "encode", noted)
    running = [ask(worker, LONG * 4) for _ in range(2)]
    wait_until(lambda: all(reply.stage is Stage.STARTED for reply in running))
    queued = ask(worker, "a fox")
    wait_until(lambda: queued.stage is Stage.WAITING)
    queued.cancel()
    assert queued.ended and worker.outstanding == 2
    first, second = ask(worker, "a fox one"), ask(worker, "a fox two")
    second.cancel()
    assert second.ended and worker.outstanding == 3
    first.cancel()
    for reply in running:
        reply.cancel()
    wait_until(lambda: idle(worker))
    assert "a fox two" not in encoded
    assert worker.metrics.cancelled._value.get() == 5


def test_another_client_is_heard_while_one_holds_all_slots(worker: Worker) -> None:
    long = [ask(worker, LONG * 4, seed, client=Client("a")) for seed in range(3)]
    wait_until(lambda: len(worker.running) == 2)
    assert list(ask(worker, "a fox", client=Client("b")))
    assert sum(reply.ended for reply in long) == 0
    for reply in long:
        reply.cancel()
    wait_until(lambda: idle(worker))


def test_a_request_that_is_displaced_is_told_so(worker: Worker) -> None:
    mine = [ask(worker, LONG * 4, seed, client=Client("a")) for seed in range(4)]
    other = ask(worker, "a fox", client=Client("b"))
    with pytest.raises(RefusedError, match="other clients"):
        list(mine[3])
    assert list(other)
    for reply in mine:
        reply.cancel()
    wait_until(lambda: idle(worker))


def test_a_whole_request_has_no_deadline_of_a_stream(worker: Worker) -> None:
    assert worker.tts
    replies = [ask(worker, LONG, whole=whole) for whole in (True, False)]
    wait_until(lambda: len(worker.running) == 2)
    whole, stream = worker.tts.engine.requests
    assert whole.playback.whole and not stream.playback.whole
    assert whole.playback.due > stream.playback.due and WHOLE_SECONDS > 0
    assert len(np.concatenate(list(replies[0]))) == len(np.concatenate(list(ask(worker, LONG))))
    replies[1].cancel()
    wait_until(lambda: idle(worker))
