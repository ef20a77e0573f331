"""`python -m tests.export.codecs.make_codec_peers` writes codec_peers.npz: outputs of the codec libraries.

It needs `encodec`, `vocos`, `transformers`, `torchaudio` and `speechtokenizer`; the tests need none of them.
Weights are drawn from a seed by name and shape, so the file holds only names, shapes and outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

PEERS = Path(__file__).with_name("codec_peers.npz")
FILTERS, DIMENSION, FRAMES = 2, 8, 40
WIDTH, FFN, BLOCKS = 16, 24, 2


def drawn(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A random state dict of these shapes, the same on every machine. Gains and norms are near one."""
    generator = np.random.default_rng(0)
    out = {}
    for name, shape in sorted(shapes.items()):
        near_one = name.endswith(("_g", "original0", "norm.weight", "scale.weight"))
        spread = 1.0 if "codebook" in name else 0.3
        values = generator.standard_normal(shape).astype(np.float32) * (0.1 if near_one else spread)
        out[name] = torch.from_numpy(values + near_one)
    return out


def shapes_of(module: Any) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


@torch.no_grad()
def run_encodec() -> dict[str, Any]:
    """encodec's own modules with small sizes."""
    from encodec.modules.seanet import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    sizes = {
        "channels": 1,
        "dimension": DIMENSION,
        "n_filters": FILTERS,
        "norm": "weight_norm",
        "causal": True,
    }
    model: Any = torch.nn.ModuleDict(
        {
            "encoder": SEANetEncoder(**sizes),
            "decoder": SEANetDecoder(**sizes),
            "quantizer": ResidualVectorQuantizer(dimension=DIMENSION, n_q=9, bins=1024),
        }
    ).eval()
    shapes = shapes_of(model)
    model.load_state_dict(drawn(shapes))
    latent = model["encoder"](random_audio()[:, None])
    left, found = latent, []
    for layer in model["quantizer"].vq.layers[:8]:
        found.append(layer.encode(left))
        left = left - layer.decode(found[-1])
    codes = torch.stack(found, dim=2)
    wave = model["decoder"](latent - left)[:, 0]
    return {"shapes": shapes, "codes": codes, "wave": wave}


@torch.no_grad()
def run_transformers() -> dict[str, Any]:
    """transformers' EncodecModel with small sizes."""
    from transformers import EncodecConfig, EncodecModel

    sizes = {"num_filters": FILTERS, "hidden_size": DIMENSION, "codebook_dim": DIMENSION}
    model = EncodecModel(EncodecConfig(target_bandwidths=[6.0], **sizes)).eval()
    shapes = shapes_of(model)
    model.load_state_dict(drawn(shapes))
    codes = model.encode(random_audio()[:, None], bandwidth=6.0).audio_codes[0]
    wave = model.decode(codes[None], [None]).audio_values[:, 0]
    return {"shapes": shapes, "codes": codes.transpose(1, 2), "wave": wave}


@torch.no_grad()
def run_speechtokenizer() -> dict[str, Any]:
    """speechtokenizer's own model with small sizes."""
    from speechtokenizer.model import SpeechTokenizer

    sizes = {"n_filters": FILTERS, "dimension": DIMENSION, "semantic_dimension": 6, "n_q": 8}
    fixed = {"strides": [8, 5, 4, 2], "lstm_layers": 2, "bidirectional": True, "dilation_base": 2}
    more = {"residual_kernel_size": 3, "n_residual_layers": 1, "activation": "ELU"}
    model = SpeechTokenizer(sizes | fixed | more | {"codebook_size": 1024, "sample_rate": 16000}).eval()
    shapes = {name: shape for name, shape in shapes_of(model).items() if not name.endswith("inited")}
    model.load_state_dict(drawn(shapes), strict=False)
    for layer in model.quantizer.vq.layers:
        layer._codebook.inited.fill_(1)  # or the first call draws the code vectors anew
    codes = model.encode(random_audio()[:, None])
    wave = model.decode(codes)[:, 0]
    return {"shapes": shapes, "codes": codes.permute(1, 2, 0), "wave": wave}


@torch.no_grad()
def run_vocos() -> dict[str, Any]:
    """vocos' backbone and head with small sizes."""
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone

    model = torch.nn.ModuleDict(
        {
            "backbone": VocosBackbone(DIMENSION, WIDTH, FFN, BLOCKS, adanorm_num_embeddings=4),
            "head": ISTFTHead(WIDTH, 1280, 320, "same"),
        }
    ).eval()
    shapes = shapes_of(model) | {"feature_extractor.codebook_weights": [16 * 1024, DIMENSION]}
    del shapes["head.istft.window"]  # a constant
    weights = drawn(shapes)
    table = weights.pop("feature_extractor.codebook_weights")
    model.load_state_dict(weights, strict=False)
    codes = random_codes()
    features = torch.nn.functional.embedding(codes + torch.arange(8) * 1024, table).sum(dim=2)
    hidden = model["backbone"](features.transpose(1, 2), bandwidth_id=torch.tensor([2]))
    return {"shapes": shapes, "codes": codes, "wave": model["head"](hidden)}


def random_audio() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(4).standard_normal((2, FRAMES * 320)).astype(np.float32))


def random_codes() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 1024, (2, FRAMES, 8)))


if __name__ == "__main__":
    kept: dict[str, Any] = {}
    runs = {
        "encodec": run_encodec,
        "transformers": run_transformers,
        "speechtokenizer": run_speechtokenizer,
        "vocos": run_vocos,
    }
    for name, run in runs.items():
        found = run()
        kept[f"{name}_shapes"] = np.array(json.dumps(found["shapes"]))
        kept[f"{name}_codes"] = found["codes"].numpy().astype(np.int16)
        kept[f"{name}_wave"] = found["wave"].numpy()[:, ::7]
    np.savez_compressed(PEERS, **kept)
