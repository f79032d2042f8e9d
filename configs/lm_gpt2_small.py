"""GPT-2 small (Radford et al. 2019): 124 million parameters, context 1024, for accelerators. It was not trained here.

python train.py lm_gpt2_small --data.name text:FOLDER
"""

from gen.config import Config
from gen.data.text import Text
from gen.families.language import LM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=LM(
        network=Architecture(layers=12, width=768, heads=12, dropout=0.0),
        optim=Optimizer(lr=WarmupCosine(6e-4, warmup=2000, end=6e-5), b2=0.95, weight_decay=0.1, clip=1.0),
        dtype="bfloat16",
    ),
    data=Text(name="text:corpus", tokenizer="bpe", vocabulary=50_257, length=1024, batch_size=480),
    steps=100_000,
)
