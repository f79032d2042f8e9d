"""The best character model that two CPU cores train in 45 minutes, on Tiny Shakespeare or a book of that size.

python train.py lm_shakespeare_best --data.name text:tinyshakespeare.txt
"""

from gen.config import Config
from gen.data.text import Text
from gen.families.language import LM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=LM(
        network=Architecture(
            layers=6,
            width=192,
            heads=3,
            positions="rotary",
            norm="rms",
            activation="swiglu",
            bias=False,
            dropout=0.1,
            qk_norm=True,
            unroll=6,
        ),
        optim=Optimizer("muon", lr=WarmupCosine(5e-3, warmup=100), b1=0.95, weight_decay=0.1, clip=1.0),
    ),
    data=Text(name="tiny_shakespeare", split="tail:0.1", tokenizer="character", length=256, stride=64, batch_size=8),
    steps=4000,
    evaluate_every=1000,
)
