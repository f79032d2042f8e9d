"""Text data sets: documents or pairs, cleaned, split and tokenized."""

from gen.data.text.dataset import Text
from gen.data.text.tokenizers import Tokenizer

__all__ = ["Text", "Tokenizer"]
