"""A masked transformer over four-part chorales, which writes any part of a score to fit the rest (as Huang et al. 2017). Not scored
yet.

Every token is masked on its own, so that single voices can be given. A window has 512 tokens: 128 frames, which are eight bars, of
four voices. The fraction of masked tokens is drawn from [0, 1], so the best checkpoint is chosen by a bound on the likelihood.

python train.py chorales_fill --data.name rolls:jsb16thSeparated.json
python sample.py runs/chorales_fill --mode harmonize --midi melody.mid --n 4 --turns 64
"""

from gen.config import Config, Log, Save
from gen.data.music import Music
from gen.families.grid import GridMLM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=GridMLM(
        network=Architecture(
            layers=4,
            width=192,
            heads=4,
            positions="rotary",
            period=16,
            norm="rms",
            activation="swiglu",
            bias=False,
            qk_norm=True,
            dropout=0.1,
            unroll=4,
        ),
        ema=0.998,
        optim=Optimizer("muon", lr=WarmupCosine(5e-3, warmup=100), b1=0.95, weight_decay=0.1, clip=1.0),
    ),
    data=Music(name="canons", frames=128, transpose=6, batch_size=8),
    steps=3000,
    evaluate_every=200,
    log=Log(request=("n=4", "turns=32")),
    save=Save(every=200, best=("loss", "min")),
)
