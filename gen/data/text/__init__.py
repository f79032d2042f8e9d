"""Text data sets: documents, or pairs of a prompt and a target, cleaned, divided into splits and tokenized."""

from gen.data.text.dataset import Text
from gen.data.text.tokenizers import Tokenizer

__all__ = ["Text", "Tokenizer"]
