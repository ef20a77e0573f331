"""The sampler as few nodes: nucleus sampling and the repetition rule (VALL-E 2, Algorithm 1).

The reference is `valle2.runtime.generation.sampling`. Axes: B rows, G codes of a group, V classes, W codes of
history, N cases.

Both draws of a slot, the first and the redraw, are made side by side. The repetition rule of a slot depends
on what the slots before it have chosen. So it is computed for every case: a case is a slot and the choices
before it. The cases form a binary tree, and the last nodes walk down from its root.

History and codes are joined by `TensorScatter` and not by `Concat`. For parts of unequal size a `Concat` that
is captured reads host memory that is freed before a replay (microsoft/onnxruntime#32121).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.bundle.contract import EOS_CODE

CLASSES = EOS_CODE + 1
NEVER = np.iinfo(np.int64).max
"""The age of what a case does not count."""


@dataclass(frozen=True, slots=True)
class SamplerSizes:
    """group: G. window: W. draws: steps with uniform numbers. argmax_ends: see `export.models.config`."""

    group: int
    window: int
    draws: int
    argmax_ends: bool = False


def write_sampler(graph: GraphWriter, logits: str, sizes: SamplerSizes) -> None:
    """Add the sampler. It makes the outputs codes_out, history_out and log_probs.

    It reads the inputs steps, history, uniforms, top_p, repeat_window and threshold of the AR graph.

    Args:
        logits: (B, G, V) float32.
    """
    group = sizes.group
    order, log_probs, ranks = write_draws(graph, logits, sizes)
    drawn = graph.op("GatherElements", [order, ranks], "drawn", axis=2)
    likely = graph.op("GatherElements", [log_probs, ranks], "drawn_log_probs", axis=2)
    chosen = write_choice(graph, drawn, sizes)
    codes = graph.op("GatherElements", [drawn, chosen], "chosen", axis=2)
    graph.view(
        graph.op("GatherElements", [likely, chosen], "chosen_log_probs", axis=2), "log_probs", -1, group
    )
    graph.view(codes, "codes_out", -1, 1, group)
    # the new codes take the place of the oldest, then all move to the left
    newest = graph.view(codes, "newest", -1, group)
    held = graph.op("TensorScatter", ["history", newest], "held_history", axis=1)
    moved = graph.const("history_order", np.roll(np.arange(sizes.window), -group))
    graph.op("Gather", [held, moved], "history_out", axis=1)


def write_draws(graph: GraphWriter, logits: str, sizes: SamplerSizes) -> tuple[str, str, str]:
    """Rank the classes and draw twice per slot.

    With e_r the probability of all classes before rank r, the nucleus ends at the first e_r >= top_p, and
    that e_r is its mass. A draw is the last rank r with e_r <= u * mass; the redraw has mass 1.

    Returns:
        Names of the classes by rank (B, G, V), their log-probabilities (B, G, V), and the ranks drawn
        (B, G, 2).
    """
    last = graph.const("last_draw", np.full((1, 1, sizes.group, 2), sizes.draws - 1, np.int64))
    step = graph.op("Min", [graph.view("steps", "step", -1, 1, 1, 1), last], "draw")
    uniforms = graph.view(
        graph.op("GatherElements", ["uniforms", step], "step_uniforms", axis=1), "pair", -1, sizes.group, 2
    )
    ranked, order = "ranked", "order"
    graph.op("TopK", [logits, graph.ints(CLASSES)], ranked, axis=2)
    graph.nodes[-1].output.append(order)
    log_probs = graph.op("LogSoftmax", [ranked], "ranked_log_probs", axis=2)
    probs = graph.op("Exp", [log_probs], "probs")
    before = graph.op("CumSum", [probs, graph.ints(2)], "before", exclusive=1)
    inside = graph.op("Less", [before, graph.view("top_p", "nucleus", -1, 1, 1)], "inside")
    ends = graph.op("Where", [inside, graph.scalar(1.0, np.float32), before], "ends")
    mass = graph.op("ReduceMin", [ends, graph.ints(2)], "mass", keepdims=1)
    masses = graph.op("Max", [mass, graph.const("whole", np.array([[[0, 1]]], np.float32))], "masses")
    target = graph.view(graph.op("Mul", [uniforms, masses], "target"), "targets", -1, sizes.group, 2, 1)
    levels = graph.view(before, "levels", -1, sizes.group, 1, CLASSES)
    passed = graph.op("LessOrEqual", [levels, target], "passed")
    counted = graph.const("counted", np.arange(CLASSES).clip(max=1))
    hits = graph.op("Where", [passed, counted, graph.scalar(0, np.int64)], "hits")
    ranks = graph.op("ReduceSum", [hits, graph.ints(3)], "ranks", keepdims=0)
    if sizes.argmax_ends:
        likeliest = graph.op("Gather", [order, graph.ints(0)], "likeliest", axis=2)
        over = graph.op("Equal", [likeliest, graph.scalar(EOS_CODE, np.int64)], "over")
        ranks = graph.op("Where", [over, graph.scalar(0, np.int64), ranks], "ending_ranks")
    return order, log_probs, ranks


def write_choice(graph: GraphWriter, drawn: str, sizes: SamplerSizes) -> str:
    """Apply the repetition rule: drawn (B, G, 2) -> which of the two each slot takes, (B, G, 1) int64."""
    tree = RuleTree.of(sizes.group, sizes.window)
    pairs = graph.view(drawn, "pairs", -1, 2 * sizes.group)
    places = np.arange(-sizes.window, 2 * sizes.group).clip(min=0)
    behind = graph.op("Gather", [pairs, graph.const("seen_places", places)], "pairs_behind", axis=1)
    seen = graph.op("TensorScatter", [behind, "history"], "seen", axis=1)
    columns = graph.view(seen, "columns", -1, 1, sizes.window + 2 * sizes.group)
    equal = graph.op("Equal", [columns, graph.view(drawn, "candidates", -1, 2 * sizes.group, 1)], "equal")
    equal = graph.cast(equal, "equal_codes", TensorProto.FLOAT)
    window = graph.view("repeat_window", "window", -1, 1, 1)
    counts = graph.op("LessOrEqual", [graph.const("ages", tree.ages), window], "counts")
    counts = graph.cast(counts, "counted_ages", TensorProto.FLOAT)
    repeats = graph.op("MatMul", [equal, counts], "repeats")
    size = graph.cast(window, "window_size", TensorProto.FLOAT)
    capped = graph.op("Min", [repeats, size], "capped")
    share = graph.op("Div", [capped, size], "share")
    again = graph.op("Greater", [share, graph.view("threshold", "limit", -1, 1, 1)], "again")
    flat = graph.view(again, "again_by_case", -1, tree.again.size)
    again_const, first_const = graph.const("if_again", tree.again), graph.const("if_first", tree.first)
    moves = graph.op("Where", [flat, again_const, first_const], "moves")
    place = graph.op("Gather", [moves, graph.ints(0)], "place_0", axis=1)
    for slot in range(1, sizes.group):
        place = graph.op("GatherElements", [moves, place], f"place_{slot}", axis=1)
    chosen = graph.op("Gather", [graph.const("choices", tree.choices), place], "choice", axis=0)
    return graph.view(chosen, "choice_by_slot", -1, sizes.group, 1)


@dataclass(frozen=True, slots=True)
class RuleTree:
    """The cases of the repetition rule, as constants.

    Args:
        ages: (W + 2G, N) int64, by code of [history | first and redraw of each slot] the age that it has in a
            case. It is 0 for the code that the case asks about, and `NEVER` for codes that do not count.
        again, first: (2G * N,) int64. Entry (2g, n) says where to go from case n of slot g if the code is
            drawn again or is not: the entry of the next slot's case, or after the last slot the row of
            `choices`.
        choices: (2^G, G) int64, which draw every slot takes.
    """

    ages: NDArray[np.int64]
    again: NDArray[np.int64]
    first: NDArray[np.int64]
    choices: NDArray[np.int64]

    @classmethod
    def of(cls, group: int, window: int) -> RuleTree:
        """The tree of a group size and a length of history."""
        cases = 2**group - 1
        ages = np.full((window + 2 * group, cases), NEVER)
        moves = np.zeros((2, 2 * group, cases), np.int64)
        for case in range(cases):
            slot = (case + 1).bit_length() - 1
            ages[:window, case] = np.arange(window, 0, -1) + slot
            ages[window + 2 * slot, case] = 0
            for earlier in range(slot):
                bit = (case + 1 >> slot - earlier - 1) & 1
                ages[window + 2 * earlier + bit, case] = slot - earlier
            for again in range(2):
                child = 2 * case + 1 + again
                leaf = slot + 1 == group
                moves[again, 2 * slot, case] = child - cases if leaf else (2 * slot + 2) * cases + child
        places = np.arange(2**group)[:, None] >> np.arange(group)[::-1]
        return cls(ages, moves[1].reshape(-1), moves[0].reshape(-1), places & 1)
