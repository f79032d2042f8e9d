"""Flow matching from the names of OpenMoji's drawings to their pixels, 32x32 in colour (Lipman et al. 2023). Not scored yet.

A small encoder turns the name into one vector, which is added to the vector of the time. The name is left out for a tenth of the
training examples, so samples can be guided. All variants of a drawing by skin tone are in the same split.

python -m benchmarks.openmoji PACKAGE emoji     (makes the folder; benchmarks/openmoji.py says how to get PACKAGE)
python train.py flow_emoji
python sample.py runs/flow_emoji --prompt "red heart" --n 16 --guidance 3
"""

from gen.config import Config
from gen.data.images.captions import Captioned
from gen.families.flow import Flow, UNet
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Flow(
        network=UNet(widths=(48, 96), attention=(2,), patch=2),
        conditional=True,
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=200), clip=1.0),
    ),
    data=Captioned(name="captions:emoji", size=32, colors=3, tokenizer="bpe", batch_size=64),
    steps=6000,
)
