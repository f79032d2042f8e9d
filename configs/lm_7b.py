"""A language model with 6.7 billion parameters in the shape of Llama 2 7B (Touvron et al. 2023), sharded over a cluster.

It was not trained here, only planned: 256 chips of a TPU v5e have memory for 512 windows per step, but not for 1024
(docs/plan.md).

python train.py lm_7b --dry-run --plan.devices 256
python train.py lm_7b --data.name text:FOLDER
"""

from gen.config import Config, Parallel
from gen.data.text import Text
from gen.families.language import LM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=LM(
        network=Architecture(
            layers=32,
            width=4096,
            heads=32,
            hidden=11008,
            positions="rotary",
            norm="rms",
            activation="swiglu",
            bias=False,
            tied=False,
            remat=True,
        ),
        z_loss=1e-4,
        optim=Optimizer(lr=WarmupCosine(3e-4, warmup=2000, end=3e-5), b2=0.95, weight_decay=0.1, clip=1.0),
        dtype="bfloat16",
    ),
    data=Text(name="text:corpus", tokenizer="bpe", vocabulary=32_000, length=4096, batch_size=512),
    steps=500_000,
    parallel=Parallel(engine="jit", fsdp=True),
)
