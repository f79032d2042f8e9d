"""Writes captions of OpenMoji's drawings: an encoder reads a drawing in patches, and a decoder writes its name (Xu et al. 2015;
Dosovitskiy et al. 2021). Not scored yet.

All variants of a drawing by skin tone are in the same split. Many names can't be guessed from a drawing, such as names of flags.

python -m benchmarks.openmoji PACKAGE emoji     (makes the folder; benchmarks/openmoji.py says how to get PACKAGE)
python train.py caption_emoji
python sample.py runs/caption_emoji --image drawing.png --n 4
"""

from gen.config import Config, Save
from gen.data.images.captions import Captioned
from gen.derived import ToText
from gen.families.language import Seq2Seq
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Seq2Seq(
        network=Architecture(
            layers=4, width=192, heads=6, positions="rotary", norm="rms", activation="swiglu", bias=False, dropout=0.2
        ),
        patch=(4,),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=200), weight_decay=0.1, clip=1.0),
    ),
    data=ToText(
        data=Captioned(name="captions:emoji", size=32, colors=3, tokenizer="bpe"),
        batch_size=64,
    ),
    steps=3000,
    evaluate_every=250,
    save=Save(best=("loss", "min")),
)
