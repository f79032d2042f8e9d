"""A language model of your own texts: a file, or a folder of files.

python train.py lm_text --data.name text:FOLDER
"""

from gen.config import Config, Save
from gen.data.text import Text
from gen.families.language import LM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=LM(
        network=Architecture(
            layers=6, width=256, heads=4, positions="rotary", norm="rms", activation="swiglu", bias=False, dropout=0.1
        ),
        optim=Optimizer("muon", lr=WarmupCosine(5e-3, warmup=100), b1=0.95, weight_decay=0.1, clip=1.0),
    ),
    data=Text(name="text:texts", split="tail:0.1", tokenizer="bpe", vocabulary=4096, length=256, batch_size=16),
    steps=5000,
    save=Save(best=("loss", "min")),
)
