"""nanoGPT's setting for a processor: 4 layers, 4 heads, 128 wide, characters, windows of 64, batches of 12, 2000 steps; a higher
learning rate.

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
