"""Start AR and NAR for a new codec from those of an old one.

`python -m demo.training.carry --old OLD --work W` writes W/ar.pt and W/nar.pt. The embedding of a new
code is the mean of the old embeddings of its frames (W/codes holds the new codec's codes). Added blocks
change nothing at first. Position tables are dropped: new models have rotary positions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from demo.speech.shards import read_codes, read_shard, shards
from demo.training.batches import block_count, demo_config
from demo.training.encode import encode
from demo.training.train_codec import load_codec
from valle2.export.models.ar import ARModel
from valle2.export.models.nar import NARModel

SHARDS = 16
"""Shards to count codes in, evenly spaced over those of the work folder."""


def carried(old: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Tables (K, 1024, d) of the first K books for new codes. pairs: old and new codes (T, 8)."""
    was, now = (torch.cat([pair[side] for pair in pairs]).long() for side in (0, 1))
    tables = old.clone()
    for book in range(len(old)):
        if torch.equal(was[:, book], now[:, book]):
            continue
        total = torch.zeros_like(old[book]).index_add_(0, now[:, book], old[book][was[:, book]])
        count = torch.bincount(now[:, book], minlength=len(total))
        used = count > 0
        tables[book][used] = (total / count.clamp(min=1)[:, None])[used]
    return tables


def deepened(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights for a deeper model: copies of the last block whose output projections are zero."""
    deep = {name: value for name, value in model.state_dict().items() if name not in state}
    last = block_count(state) - 1
    for name in deep:
        _, _, part = name.split(".", 2)
        silent = part.startswith(("out.", "down."))
        source = state[f"blocks.{last}.{part}"]
        deep[name] = torch.zeros_like(source) if silent else source.clone()
    return state | deep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--old", type=Path, required=True, help="folder with the old codec.pt, ar.pt and nar.pt"
    )
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    args = parser.parse_args()
    encoder = load_codec(args.old / "codec.pt").encoder.eval()
    coded = [path for path in shards(args.work) if (args.work / "codes" / path.name).exists()]
    pairs = []
    for path in coded[:: max(1, len(coded) // SHARDS)]:
        was = encode(encoder, [item.wave for item in read_shard(path)])
        now = read_codes(args.work / "codes" / path.name)
        pairs += [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(was, now, strict=True)]
    for name, model in (("ar", ARModel(demo_config())), ("nar", NARModel(demo_config()))):
        state = torch.load(args.old / f"{name}.pt", weights_only=True)["model"]
        state = {key: value for key, value in state.items() if "positions" not in key}
        if name == "nar":
            state["code_tables"] = carried(state["code_tables"], pairs)
        else:
            rows = state["code_table.weight"]
            state["code_table.weight"] = torch.cat([carried(rows[None, :-1], pairs)[0], rows[-1:]])
        torch.save({"model": deepened(state, model), "step": 0}, args.work / f"{name}.pt")


if __name__ == "__main__":
    main()
