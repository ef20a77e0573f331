"""Audio codecs as PyTorch modules: the demo's own, EnCodec, SpeechTokenizer and Vocos."""
