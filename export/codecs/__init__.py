"""Audio codecs as PyTorch modules: the demo's own, EnCodec, SpeechTokenizer and Vocos.

They know audio and codes, never text or the models that predict codes.
"""

from valle2.export.codecs.demo import CodecConfig, CodecDecoder, CodecEncoder
from valle2.export.codecs.encodec import EncodecConfig, EncodecDecoder, EncodecStream, Recurrent
from valle2.export.codecs.encodec_weights import codec_file, read_encodec
from valle2.export.codecs.vocos import read_vocos, vocos_file

__all__ = [
    "CodecConfig",
    "CodecDecoder",
    "CodecEncoder",
    "EncodecConfig",
    "EncodecDecoder",
    "EncodecStream",
    "Recurrent",
    "codec_file",
    "read_encodec",
    "read_vocos",
    "vocos_file",
]
