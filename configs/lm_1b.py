"""A language model with 1.1 billion parameters, sharded over the devices of a cluster. It was not trained here.

python train.py lm_1b --data.name text:FOLDER
"""

from gen.config import Config, Parallel
from gen.data.text import Text
from gen.families.language import LM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=LM(
        network=Architecture(
            layers=22,
            width=2048,
            heads=32,
            kv_heads=4,
            hidden=5632,
            positions="rotary",
            norm="rms",
            activation="swiglu",
            bias=False,
            tied=False,
            remat=True,
        ),
        z_loss=1e-4,
        optim=Optimizer(lr=WarmupCosine(4e-4, warmup=2000, end=4e-5), b2=0.95, weight_decay=0.1, clip=1.0),
        dtype="bfloat16",
    ),
    data=Text(name="text:corpus", tokenizer="bpe", vocabulary=32_000, length=2048, batch_size=1024),
    steps=100_000,
    parallel=Parallel(engine="jit", fsdp=True),
)
