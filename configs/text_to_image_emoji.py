"""A causal transformer from the names of OpenMoji's drawings to their 8x8 codes by a trained tokenizer, as DALL-E and Parti do
(Ramesh et al. 2021; Yu et al. 2022). Not scored yet.

The name is read before the codes. It is left out for a tenth of the training examples, so samples can be guided. All variants of
a drawing by skin tone are in the same split.

python -m benchmarks.openmoji PACKAGE emoji     (makes the folder; benchmarks/openmoji.py says how to get PACKAGE)
python train.py fsq_emoji && python train.py text_to_image_emoji
python sample.py runs/text_to_image_emoji --prompt "red heart" --n 16 --guidance 3
"""

from gen.config import Config, Save
from gen.data.images.captions import Captioned
from gen.derived import Encoded
from gen.families.grid import GridLM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=GridLM(
        network=Architecture(
            layers=4,
            width=192,
            heads=6,
            norm="rms",
            activation="swiglu",
            bias=False,
            qk_norm=True,
            dropout=0.1,
            unroll=4,
        ),
        conditional=True,
        label_dropout=0.1,
        ema=0.999,
        optim=Optimizer("muon", lr=WarmupCosine(5e-3, warmup=100), b1=0.95, weight_decay=0.1, clip=1.0),
    ),
    data=Encoded(
        data=Captioned(name="captions:emoji", size=32, colors=3, tokenizer="bpe"),
        tokenizer="runs/fsq_emoji",
        batch_size=64,
    ),
    steps=6000,
    evaluate_every=1000,
    save=Save(best=("nll", "min")),
)
