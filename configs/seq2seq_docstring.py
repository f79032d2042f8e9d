"""An encoder and a decoder that write the first paragraph of a function's docstring, trained on Python's standard library.

python -m gen.data.text.docstrings docstrings.jsonl
python train.py seq2seq_docstring
"""

from gen.config import Config
from gen.data.text import Text
from gen.families.language import Seq2Seq
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Seq2Seq(
        network=Architecture(
            layers=3, width=192, heads=6, positions="rotary", norm="rms", activation="swiglu", bias=False, dropout=0.1
        ),
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=100), b2=0.99, weight_decay=0.1, clip=1.0),
    ),
    data=Text(
        name="jsonl:docstrings.jsonl",
        tokenizer="bpe",
        vocabulary=2048,
        pairs="separate",
        template="{source}",
        source_length=192,
        length=48,
        batch_size=32,
    ),
    steps=3000,
)
