"""A language model of folk tunes, which reads and writes the characters of their ABC notation. Not scored yet.

The file has one tune after the other, with an empty line between them, which ends a tune in ABC notation.

python train.py folk_tunes --data.name text:tunes.abc && python sample.py runs/folk_tunes --prompt "X:1" --top-p 0.95 --stream
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
            width=192,
            heads=3,
            positions="rotary",
            norm="rms",
            activation="swiglu",
            bias=False,
            dropout=0.1,
            qk_norm=True,
            unroll=4,
        ),
        optim=Optimizer("muon", lr=WarmupCosine(5e-3, warmup=100), b1=0.95, weight_decay=0.1, clip=1.0),
    ),
    data=Text(name="text:tunes.abc", split="tail:0.1", tokenizer="character", length=512, batch_size=8),
    steps=3000,
    evaluate_every=500,
)
