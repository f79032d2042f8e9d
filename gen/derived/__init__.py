"""Data made from other data: codes by a trained tokenizer, and captions as texts to write. With the media of their samples.

The public names are here: `from gen.derived import Encoded, ToText`.
"""

from gen.derived.encoded import Encoded
from gen.derived.to_text import ToText

__all__ = ["Encoded", "ToText"]
