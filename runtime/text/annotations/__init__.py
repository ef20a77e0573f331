"""What a text says about how it is spoken: SSML, pronunciations, and what cannot be spoken at all.

`script.read_script` turns a request's text into passages of plain text. It knows no tokens and no audio.
"""
