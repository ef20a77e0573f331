"""Text to token ids: sentences, normalisation, phonemes. Knows neither models nor audio."""
