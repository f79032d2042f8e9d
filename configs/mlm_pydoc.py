"""A masked language model of Python's documentation. The fraction of masked tokens is random, so it can also write texts.

With --model.rate 0.15, this fraction of the tokens is masked, as in BERT. The optimizer is Muon, because with Adam the loss stays at
the entropy of token frequencies for thousands of steps.

python train.py mlm_pydoc && python sample.py runs/mlm_pydoc
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
