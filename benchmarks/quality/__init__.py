"""Word errors, speaker similarity and predicted opinion scores of synthesised speech."""
