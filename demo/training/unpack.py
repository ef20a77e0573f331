"""Make a work folder from a checkpoint, to continue its training.

`python -m demo.training.unpack CHECKPOINT --work W` writes codec.pt, ar.pt, nar.pt and vocoder.pt at step 0.
A checkpoint does not hold what only training needs. So the optimizers start again, and so do the codec's mel
decoder, classifier and predictor: the codec can encode, but should not be trained further.
`demo.speech.speak` makes the speech.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from demo.speech.shards import symbols
from demo.training.train_codec import CodecTrainer
from valle2.export.checkpoint import read_checkpoint
from valle2.export.codecs.demo import CodecConfig, CodecDecoder, CodecEncoder


def codec_trainer(encoder: CodecEncoder, decoder: CodecDecoder, config: CodecConfig) -> CodecTrainer:
    """A trainer with the decoder's tables: `widen` is fitted to map the encoder's residual books to them."""
    model = CodecTrainer(config, len(symbols()))
    model.encoder.load_state_dict(encoder.state_dict())
    narrow, wide = (table.detach().float().flatten(0, 1) for table in (encoder.rest, decoder.tables[1:]))
    model.widen.weight.data.copy_(torch.linalg.lstsq(narrow, wide).solution.T)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = read_checkpoint(args.checkpoint)
    assert checkpoint.codec is not None
    encoder, decoder, config = checkpoint.codec
    assert isinstance(encoder, CodecEncoder) and isinstance(decoder, CodecDecoder)
    assert isinstance(config, CodecConfig)
    parts: dict[str, nn.Module] = {
        "codec": codec_trainer(encoder, decoder, config),
        "ar": checkpoint.ar,
        "nar": checkpoint.nar,
        "vocoder": decoder,
    }
    for name, module in parts.items():
        path = args.work / f"{name}.pt"
        if path.exists():
            raise SystemExit(f"{path} exists; choose another --work")
        state = module.state_dict()
        state.pop("vectors", None)  # assemble.py makes them of the codec
        torch.save({"model": state, "step": 0}, path)


if __name__ == "__main__":
    main()
