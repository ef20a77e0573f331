"""Word errors, speaker similarity and estimated sound quality of synthesised speech."""
