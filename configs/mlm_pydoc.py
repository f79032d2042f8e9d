"""A masked language model of Python's documentation that can also write: each share of the tokens is masked in training.

With --model.rate 0.15 it is BERT's objective. Muon, since with Adam it stays at the frequencies of tokens for thousands of steps.
"""

from gen.config import Config
from gen.data.text import Text
from gen.families.language import MLM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=MLM(
        network=Architecture(
            layers=4, width=128, heads=4, positions="rotary", norm="rms", activation="swiglu", bias=False, unroll=4
        ),
        rate=None,
        optim=Optimizer("muon", lr=WarmupCosine(5e-3, warmup=50), b1=0.95, weight_decay=0.1, clip=1.0),
    ),
    data=Text(name="pydoc", tokenizer="bpe", vocabulary=2048, length=128, batch_size=16),
    steps=2000,
    evaluate_every=500,
)
