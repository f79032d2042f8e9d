"""A small language model of Python's documentation, which needs no download. It trains in a few minutes on two CPU cores.

python train.py lm_pydoc && python sample.py runs/lm_pydoc --prompt "The with statement"
"""

from gen.config import Config
from gen.data.text import Text
from gen.families.language import LM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=LM(
        network=Architecture(
            layers=4,
            width=128,
            heads=4,
            positions="rotary",
            norm="rms",
            activation="swiglu",
            bias=False,
            dropout=0.2,
            unroll=4,
        ),
        optim=Optimizer(lr=WarmupCosine(2e-3, warmup=100), b2=0.99, weight_decay=0.1, clip=1.0),
    ),
    data=Text(name="pydoc", tokenizer="bpe", vocabulary=2048, length=128, batch_size=8),
    steps=1000,
    evaluate_every=250,
)
