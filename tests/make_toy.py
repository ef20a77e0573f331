"""`python -m tests.make_toy FOLDER [full]` writes the tests' toy checkpoint, or one of the paper's size.

Both have random weights. The large one has no text front end and is for builds and timings.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import toy_checkpoint, write_toy
from valle2.export import ARModel, Checkpoint, ModelConfig, NARModel, save_checkpoint
from valle2.export.codecs.demo import CodecConfig, CodecDecoder, CodecEncoder


def full_checkpoint() -> Checkpoint:
    """12 layers, width 1024, 16 heads, FFN 4096, group size 2 (section 4.1.1), vocabulary 4096."""
    config, codec = ModelConfig(vocab_size=4096, max_text=512, max_frames=2048), CodecConfig()
    return Checkpoint(
        config,
        ARModel(config).eval(),
        NARModel(config).eval(),
        (CodecEncoder(codec).eval(), CodecDecoder(codec).eval(), codec),
        name="full",
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["full"]:
        print(save_checkpoint(full_checkpoint(), folder))
    else:
        print(write_toy(folder, toy_checkpoint(2, 400)))
