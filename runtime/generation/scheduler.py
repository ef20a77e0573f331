"""Who runs when: rows share the AR steps, requests share the time between two steps.

`Batch` is continuous batching: waiting rows enter free slots one after another, a chunk of prefill after each
step, every step decodes all that are in, a row leaves as soon as it ends or is cancelled. `Scheduler` runs
jobs: generators that yield what they need next, a decode step that all share or a turn for work of their own
(a NAR pass, the codec). After a step one job does one piece of work, in turns, so that a long utterance does
not hold up running streams. One thread; no arrays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from valle2.runtime.generation.ar_runner import Row, Slots
from valle2.runtime.generation.sampling import EOS_CODE


class Need(Enum):
    """What a job waits for."""

    STEP = "a decode step"
    WORK = "its turn to compute"


Job = Generator[Need, None, None]


@dataclass(slots=True, eq=False)
class Sample:
    """One row's decoding: codes of codebook 0 up to `<eos>`, their summed log-probability, and its seconds.

    limit: steps after which it ends without `<eos>`. error: why it could not be prefilled.
    """

    row: Row
    limit: int
    codes: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    steps: int = 0
    ended: bool = False
    cancelled: bool = False
    prefill_seconds: float = 0.0
    step_seconds: float = 0.0
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.ended or self.cancelled or self.error is not None or self.steps >= self.limit

    def collect(self, codes: list[int], log_probs: list[float]) -> None:
        """Append a step's codes up to `<eos>`."""
        self.ended = EOS_CODE in codes
        kept = codes.index(EOS_CODE) if self.ended else len(codes)
        self.codes += codes[:kept]
        self.log_prob += sum(log_probs[:kept])
        self.steps += 1


@dataclass(frozen=True, slots=True)
class Entering:
    """A row on its way into a slot. chunks: its prefill."""

    sample: Sample
    index: int
    chunks: Generator[bool, None, None]


class Batch:
    """Continuous batching over the rows of `Slots`, first come, first served."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.waiting: deque[Sample] = deque()
        self.entering: Entering | None = None
        self.rows: list[Sample | None] = [None] * slots.count

    def submit(self, row: Row, limit: int) -> Sample:
        """Queue one row."""
        sample = Sample(row, limit)
        self.waiting.append(sample)
        return sample

    @property
    def active(self) -> int:
        """Slots in use: rows being decoded, and one that is prefilled."""
        return sum(sample is not None for sample in self.rows) + (self.entering is not None)

    def step(self) -> None:
        """Decode one position of every row; then one chunk of the prefill of one row that enters."""
        self.retire()
        self.decode()
        self.retire()
        self.admit()

    def decode(self) -> None:
        """One AR step up to the last row in use."""
        count = max((i + 1 for i, sample in enumerate(self.rows) if sample), default=0)
        if not count:
            return
        began = time.perf_counter()
        self.slots.step(count, tuple(i for i in range(count) if self.rows[i] is None))
        drawn = self.slots.drawn()
        codes, log_probs = drawn.codes[:count].tolist(), drawn.log_probs[:count].tolist()
        took = time.perf_counter() - began
        for index, sample in enumerate(self.rows[:count]):
            if sample:
                sample.step_seconds += took
                sample.collect(codes[index], log_probs[index])

    def admit(self) -> None:
        """One chunk of the row that enters, which after its last is decoded; an error is that row's alone."""
        self.entering = self.entering or self.next_row()
        if self.entering is None:
            return
        sample, index, slots = self.entering.sample, self.entering.index, self.slots
        began = time.perf_counter()
        try:
            entered = next(self.entering.chunks)
            drawn = slots.drawn() if entered else None
        except Exception as error:
            sample.error = error
            self.leave()
            return
        sample.prefill_seconds += time.perf_counter() - began
        if drawn:
            sample.collect(drawn.codes[index].tolist(), drawn.log_probs[index].tolist())
            self.rows[index] = sample
            self.leave()

    def next_row(self) -> Entering | None:
        """The first that still waits, and the lowest free slot for it."""
        while self.waiting and self.waiting[0].done:
            self.waiting.popleft()
        if not self.waiting or None not in self.rows:
            return None
        sample, index = self.waiting.popleft(), self.rows.index(None)
        return Entering(sample, index, self.slots.prefill(index, sample.row))

    def leave(self) -> None:
        """Nobody enters any more."""
        if self.entering:
            self.entering.chunks.close()
            self.entering = None

    def retire(self) -> None:
        """Free the slots of rows that have ended or were cancelled."""
        self.rows = [None if sample is None or sample.done else sample for sample in self.rows]
        if self.entering and self.entering.sample.done:
            self.leave()


@dataclass(slots=True, eq=False)
class Task:
    """A job under way. error: what ended it, if it did not end by itself."""

    work: Job
    need: Need = Need.STEP
    done: bool = False
    error: Exception | None = None

    def advance(self) -> None:
        """Run to the next yield."""
        try:
            need = next(self.work, None)
        except Exception as error:  # belongs to whoever waits for this task, not to those beside it
            self.error, need = error, None
        self.done = need is None
        self.need = need or self.need

    def cancel(self) -> None:
        """End it now; its rows are free before the next step."""
        self.work.close()
        self.done = True


class Scheduler:
    """Runs tasks over one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.tasks: deque[Task] = deque()

    def add(self, job: Job) -> Task:
        """Start a job with the next tick."""
        self.tasks.append(Task(job))
        return self.tasks[-1]

    def tick(self) -> None:
        """One decode step for all, what it made possible, then one piece of one task's own work."""
        try:
            self.batch.step()
        except Exception as error:  # the graph failed: every task that uses it has
            self.fail(error)
            return
        for task in [task for task in self.tasks if task.need is Need.STEP]:
            task.advance()
        worker = next((task for task in self.tasks if task.need is Need.WORK and not task.done), None)
        if worker:
            worker.advance()
            self.tasks.remove(worker)
            self.tasks.append(worker)  # another one works after the next step
        self.tasks = deque(task for task in self.tasks if not task.done)

    def fail(self, error: Exception) -> None:
        """End every task with this error."""
        for task in self.tasks:
            task.cancel()
            task.error = error
        self.tasks.clear()

    def finish(self, tasks: Sequence[Task]) -> None:
        """Run until these tasks are done; the first error among them is raised, all are cancelled then."""
        try:
            while not all(task.done for task in tasks):
                self.tick()
                for task in tasks:
                    if task.error:
                        raise task.error
        finally:
            for task in tasks:
                task.cancel()
