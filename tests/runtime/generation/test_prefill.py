"""A prefill in chunks: the same codes however it is cut and whatever runs beside it; steps in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import SYMBOLS, toy_config
from tests.engine.backends.fake import FakeBackend
from tests.export import test_parity as parity
from valle2.engine import Backend, GraphSpec, TensorSpec, open_backend
from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.export.attention import LOWERINGS
from valle2.export.bundle import graph_spec
from valle2.export.graphs import ar_graph, export_graph
from valle2.export.models.ar import ARModel
from valle2.export.models.config import ModelConfig
from valle2.export.models.reference import generate
from valle2.runtime import Settings
from valle2.runtime.generation import engine
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.engine import advance_rows
from valle2.runtime.generation.sampling import uniforms
from valle2.runtime.generation.scheduler import Scheduler
from valle2.runtime.generation.sequence import Sequence, Status

WHOLE, STEPS, WINDOW = 10**6, 12, 10
GREEDY = Settings(top_p=0.0, threshold=1.0)
SIZES = {"max_text": 96, "max_frames": 400, "d_model": 1, "heads": 1}
CODE_TOKEN = 5000
FLOATS = "top_p threshold uniforms log_probs logits"
KINDS = dict.fromkeys(FLOATS.split(), "float32")
INPUTS = (
    "text codes text_lengths past_lengths new_lengths steps history uniforms top_p repeat_window threshold"
)
OUTPUTS = "codes_out past_lengths_out steps_out history_out finished log_probs logits"
SPEC = GraphSpec(
    "ar.onnx",
    (
        *(TensorSpec(name, KINDS.get(name, "int64"), ()) for name in INPUTS.split()),
        TensorSpec("cache_key_0", "int64", ()),
    ),
    tuple(TensorSpec(name, KINDS.get(name, "int64"), ()) for name in (*OUTPUTS.split(), "cache_key_0_out")),
)
Arrays = Mapping[str, NDArray[Any]]


def drawn(seen: list[int], steps: int, history: list[int], group: int) -> list[int]:
    """Codes that depend on every token in its place, on the step and on the history in its order."""
    number = sum(place * token for place, token in enumerate(seen, 3)) + 7 * steps
    number += sum(place * code for place, code in enumerate(history, 5))
    return [(number + 31 * slot) % 1024 for slot in range(group)]


@dataclass
class Machine:
    """An AR graph in arithmetic, its slots and batch, and the order of steps and chunks.

    widths: new positions of every chunk. clock: a second passes in every call. fails: at which chunk, how.
    at_once: steps before their codes are read.
    """

    group: int = 2
    chunk: int = 7
    count: int = 3
    whole_text: bool = False
    at_once: int = 1
    log: list[str] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    fails: dict[int, Exception] = field(default_factory=dict)
    clock: float = 0.0

    def __post_init__(self) -> None:
        backend, sizes = FakeBackend(SPEC, self.graph), SIZES | {"group_size": self.group}
        self.runner = ARRunner(
            backend,
            sizes,
            0,
            self.count,
            WINDOW,
            chunk=self.chunk,
            whole_text=self.whole_text,
            steps_per_read=self.at_once,
        )
        self.scheduler = Scheduler(self.count)
        self.step, self.prefill_chunk = self.runner.step, self.runner.prefill_chunk
        vars(self.runner).update(step=self.logged_step, prefill_chunk=self.logged_chunk)

    def logged_step(self, count: int, idle: tuple[int, ...] = ()) -> None:
        self.log.append("step")
        self.step(count, idle)

    def logged_chunk(self, row: int) -> bool:
        self.log.append("chunk")
        if error := self.fails.get(self.log.count("chunk")):
            raise error
        return self.prefill_chunk(row)

    def graph(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Write the new tokens into the cache, draw from all tokens up to the last."""
        self.clock += 1.0
        cache, outs = feeds["cache_key_0"].copy(), []
        if self.log and self.log[-1] == "chunk":
            self.widths.append(feeds["text"].shape[1])
        for row in range(len(cache)):
            past, new = int(feeds["past_lengths"][row]), int(feeds["new_lengths"][row])
            for at in range(new):
                is_text = past + at < feeds["text_lengths"][row]
                code = CODE_TOKEN + sum(place * c for place, c in enumerate(feeds["codes"][row, at], 1))
                cache[row, 0, past + at] = feeds["text"][row, at] if is_text else code
            history = feeds["history"][row].tolist()
            seen = cache[row, 0, : past + new, 0].tolist()
            outs.append((drawn(seen, int(feeds["steps"][row]), history, self.group), history))
        codes = np.array([found for found, _ in outs])
        return {
            "codes_out": codes[:, None],
            "past_lengths_out": feeds["past_lengths"] + feeds["new_lengths"],
            "steps_out": feeds["steps"] + 1,
            "history_out": np.array([(old + new)[-WINDOW:] for new, old in outs]),
            "finished": np.zeros(len(codes), np.int64),
            "log_probs": np.zeros(codes.shape, np.float32),
            "logits": np.zeros((*codes.shape, CODEBOOK_SIZE + 1), np.float32),
            "cache_key_0_out": cache,
        }

    def expected(self, row: Sequence, steps: int = STEPS) -> list[int]:
        """The codes of one row, token by token."""

        def token(group: list[int]) -> int:
            return CODE_TOKEN + sum(place * code for place, code in enumerate(group, 1))

        groups = [row.prompt[at : at + self.group].tolist() for at in range(0, len(row.prompt), self.group)]
        seen = [*row.text.tolist(), CODE_TOKEN, *map(token, groups)]
        history, out = ([-1] * WINDOW + row.prompt.tolist())[-WINDOW:], list[int]()
        for step in range(steps):
            codes = drawn(seen, step, history, self.group)
            out, seen, history = out + codes, [*seen, token(codes)], (history + codes)[-WINDOW:]
        return out

    def submit(self, row: Sequence, steps: int = STEPS) -> Sequence:
        return self.scheduler.add(replace(row, step_limit=steps, codes=[]))

    def turn(self) -> None:
        advance_rows(self.scheduler, self.runner, self.at_once)

    def finish(self, *sequences: Sequence) -> None:
        while not all(sequence.finished for sequence in sequences):
            before = self.log.count("chunk")
            self.turn()
            assert self.log.count("chunk") <= before + 1
        self.scheduler.retire()


def some_row(
    text: int, groups: int, group: int = 2, seed: int = 0, settings: Settings | None = None
) -> Sequence:
    """A row whose prefix has text + 1 + groups positions."""
    random = np.random.default_rng(seed)
    words = np.append(random.integers(0, 30, text - 1), len(SYMBOLS))
    draws = uniforms(seed, 0, STEPS, group)
    return Sequence(words, random.integers(0, 1024, groups * group), draws, settings or Settings())


@pytest.mark.parametrize("chunk", [1, 7, 64, WHOLE])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_codes_are_the_same_however_a_row_is_cut(group: int, chunk: int) -> None:
    machine = Machine(group, chunk)
    rows = [some_row(9 + 13 * i, 11 * i, group, i) for i in range(6)]
    together = [machine.submit(row, STEPS + 3 * i) for i, row in enumerate(rows)]
    machine.finish(*together)
    for index, (row, sample) in enumerate(zip(rows, together, strict=True)):
        assert sample.codes == machine.expected(row, STEPS + 3 * index)
        alone = machine.submit(row)
        machine.finish(alone)
        assert alone.codes == machine.expected(row)
    assert machine.scheduler.active == 0 and not machine.scheduler.waiting


def test_a_running_row_steps_between_two_chunks() -> None:
    machine = Machine()
    running = machine.submit(some_row(3, 0), 60)
    machine.turn()
    rows = [some_row(20, 9, seed=seed) for seed in (1, 2)]
    entering = [machine.submit(row) for row in rows]
    assert machine.log == ["chunk"]
    machine.finish(*entering)
    beside = machine.log[1 : machine.log.index("step") + 21]
    assert beside[:20] == ["step", "chunk"] * 10  # 30 positions each: five chunks, one row after the other
    assert machine.widths == [4, *[7, 7, 7, 7, 2] * 2]
    machine.finish(running)
    assert running.codes == machine.expected(running, 60)


def test_a_lone_row_waits_for_nothing() -> None:
    machine = Machine()
    sample = machine.submit(some_row(20, 9))
    machine.finish(sample)
    assert machine.log == ["chunk"] * 5 + ["step"] * (STEPS - 1)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_cancelling_within_a_prefill_frees_the_slot_at_once(cut: int) -> None:
    machine = Machine(count=2)
    running = machine.submit(some_row(3, 0), 60)
    machine.turn()
    gone = machine.submit(some_row(20, 9, seed=1))
    waits = machine.submit(some_row(11, 3, seed=2))
    for _ in range(cut):
        machine.turn()
    assert machine.scheduler.active == 2 and not gone.steps
    gone.cancel()
    machine.turn()
    assert waits.status is Status.PREFILL and machine.scheduler.rows[1] is waits
    assert waits.row == 1 and len(machine.widths) == 1 + cut + 1
    machine.finish(running, waits)
    assert not gone.codes and gone.prefill_seconds > 0
    assert waits.codes == machine.expected(waits) and running.codes == machine.expected(running, 60)


def test_an_error_in_a_chunk_is_that_rows_alone() -> None:
    machine = Machine(fails={3: MemoryError("no room")})
    running = machine.submit(some_row(3, 0), 40)
    bad, good = (machine.submit(some_row(20, 9, seed=seed)) for seed in (1, 2))
    machine.finish(running, bad, good)
    assert str(bad.error) == "no room" and not bad.codes and not running.error
    assert good.codes == machine.expected(good) and running.codes == machine.expected(running, 40)
    assert machine.scheduler.active == 0


def test_a_row_that_does_not_fit_is_refused_alone() -> None:
    machine = Machine()
    bad, good = machine.submit(some_row(90, 200)), machine.submit(some_row(20, 9))
    machine.finish(bad, good)
    assert "leaves no room" in str(bad.error) and good.codes == machine.expected(good)


def test_prefill_seconds_are_the_sum_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: machine.clock))
    running = machine.submit(some_row(3, 0), 40)
    machine.turn()
    sample = machine.submit(some_row(20, 9))
    machine.finish(running, sample)
    assert (running.prefill_seconds, sample.prefill_seconds) == (1, 5)
    assert (running.decode_seconds, sample.decode_seconds) == (39, STEPS - 1)


def test_the_text_of_a_relative_comes_in_one_chunk() -> None:
    machine = Machine(whole_text=True)
    long, short = some_row(20, 9), some_row(3, 9, seed=1)
    samples = [machine.submit(row) for row in (long, short)]
    machine.finish(*samples)
    assert machine.widths == [20, 7, 3, 7, 6]
    assert [sample.codes for sample in samples] == [machine.expected(row) for row in (long, short)]


# -- real graphs ----------------------------------------------------------------------------------


def found(backend: Backend, config: ModelConfig, rows: list[Sequence], chunk: int) -> list[list[int]]:
    """Codes of rows that enter one after another, cut like this."""
    slots = ARRunner(backend, config.to_dict(), parity.CAPACITY, 3, WINDOW, chunk=chunk)
    return [codes for codes, _ in parity.decoded(slots, rows, STEPS)]


@pytest.mark.parametrize(
    ("group", "lowering"), [(1, "ort"), (4, "ort"), *((2, lowering) for lowering in LOWERINGS)]
)
def test_codes_of_the_graph_are_the_same_however_a_row_is_cut(
    ar_backend: Callable[[int, str, int], tuple[ARModel, Backend]], group: int, lowering: str
) -> None:
    model, backend = ar_backend(group, lowering, parity.CAPACITY)
    seeded = Settings(top_p=0.6)
    shapes = [(70, 30, GREEDY), (9, 60, seeded), (3, 2, seeded), (40, 3, GREEDY)]
    rows = [some_row(text, n, group, seed, how) for seed, (text, n, how) in enumerate(shapes)]
    wanted = found(backend, model.config, rows, WHOLE)
    for chunk in (1, 7, 64):
        assert found(backend, model.config, rows, chunk) == wanted
    assert [found(backend, model.config, [row], 7)[0] for row in rows] == wanted
    for row, codes in zip(rows, wanted, strict=True):
        if row.settings is GREEDY:
            assert parity.reference_codes(model, row, STEPS, cached=True)[0] == codes


def test_a_text_that_sees_itself_both_ways(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = toy_config(1).to_dict() | {"style": {"text_ahead": True, "prenet": True, "code_bos": True}}
    model = ARModel(ModelConfig.from_dict(sizes)).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    graph = ar_graph(model, "ort", parity.CAPACITY)
    backend = open_backend(tmp_path, graph_spec(export_graph(graph, tmp_path / f"{graph.name}.onnx"), graph))
    rows = [some_row(text, 30, 1, seed, GREEDY) for seed, text in enumerate((25, 4, 60))]
    wanted = [generate(model, row.text, row.prompt, STEPS)[0].tolist() for row in rows]

    def codes(whole_text: bool) -> list[list[int]]:
        slots = ARRunner(
            backend, model.config.to_dict(), parity.CAPACITY, 3, WINDOW, chunk=7, whole_text=whole_text
        )
        return [one for one, _ in parity.decoded(slots, rows, STEPS)]

    assert codes(True) == wanted and codes(False) != wanted
