"""nanoGPT's CPU setting for Tiny Shakespeare, with a higher learning rate.

It reads characters. It has 4 layers with 4 heads and width 128, and trains for 2000 steps on batches of 12 windows of 64 characters.

python train.py lm_shakespeare --data.name text:tinyshakespeare.txt
"""

from gen.config import Config
from gen.data.text import Text
from gen.families.language import LM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=LM(
        network=Architecture(layers=4, width=128, heads=4, bias=False, unroll=4),
        optim=Optimizer(lr=WarmupCosine(4e-3, warmup=100, end=1e-4), b2=0.99, weight_decay=0.1, clip=1.0),
    ),
    data=Text(name="tiny_shakespeare", split="tail:0.1", tokenizer="character", length=64, batch_size=12),
    steps=2000,
    evaluate_every=500,
)
