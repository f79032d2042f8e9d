"""Data sets that are made from other data sets, and the media of their samples.

`Encoded` replaces images or sound by the codes of a trained tokenizer. `ToText` makes captions the texts that a model writes. Import
them from here: `from gen.derived import Encoded, ToText`.
"""

from gen.derived.encoded import Encoded
from gen.derived.to_text import ToText

__all__ = ["Encoded", "ToText"]
