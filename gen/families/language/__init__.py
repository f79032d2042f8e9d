"""Language models: causal, masked, and sequence to sequence."""

from gen.families.language.lm import LM
from gen.families.language.mlm import MLM
from gen.families.language.seq2seq import Seq2Seq

__all__ = ["LM", "MLM", "Seq2Seq"]
