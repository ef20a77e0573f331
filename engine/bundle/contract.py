"""Names and numbers that the exporter, the engine and the runtime agree on. Imports nothing.

`docs/bundle-format.md` describes the graphs that use them.
"""

from __future__ import annotations

AR, NAR, ENCODER, DECODER, STREAM = "ar", "nar", "codec_encoder", "codec_decoder", "codec_stream"
"""Names of the graphs. STREAM is a decoder that carries its state from chunk to chunk."""
STEP = "ar_step"
"""The AR for one new position of every row. `valle2 build` makes it for CUDA."""
NAR_ROW = "nar_row"
"""The NAR for one row without padding. `valle2 build` makes it for CUDA."""
NAR_BATCH = "nar_batch"
"""The NAR for several rows of different lengths. It returns all frames. `valle2 build` makes it for CUDA."""
FUSED_DECODER = "codec_decoder_fused"
"""The codec's decoder with fewer nodes, in float32. `valle2 build` makes it for CUDA."""
PADDED_DECODER = "codec_decoder_padded"
"""The same for rows with padding. `valle2 build` makes it for CUDA."""
PREFILL = "ar_prefill"
"""The AR for many new positions of one row; it only fills the caches. `valle2 build` makes it for a CPU."""
BUILT_GRAPHS = (STEP, NAR_ROW, NAR_BATCH, FUSED_DECODER, PADDED_DECODER, PREFILL)
"""Graphs that no bundle lists."""
GRAPHS = (AR, NAR, ENCODER, DECODER, STREAM)
REQUIRED_GRAPHS = (AR, NAR)

CODEBOOKS = 8
"""Codebooks of the codec, and of a model whose manifest gives no number."""
CODEBOOK_SIZE = 1024
"""Codes of one codebook."""
EOS_CODE = CODEBOOK_SIZE
"""The class after the last code: the AR draws it to end the speech."""

CACHE_PREFIX, STATE_PREFIX, OUT_SUFFIX = "cache_", "state_", "_out"
"""`cache_key_0` is an input that holds a KV cache; the graph returns it as `cache_key_0_out`."""
LOGITS = "logits"
"""The output up to which a graph may compute in half precision. What follows it stays in float32."""
MASK_VALUE = -6e4
"""Score of a hidden position: finite in float16, and far below every real score."""

BUILDS_FOLDER = "engines"
"""The folder of a bundle that `valle2 build` writes. What lies there is compiled for one machine."""
