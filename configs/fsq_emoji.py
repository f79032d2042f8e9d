"""A tokenizer of OpenMoji's drawings, 32x32 in colour, by finite scalar quantization (Mentzer et al. 2023). A drawing becomes 8x8
codes with 1,024 values each. Not scored yet. `text_to_image_emoji` generates these codes.

python -m benchmarks.openmoji PACKAGE emoji     (makes the folder; benchmarks/openmoji.py says how to get PACKAGE)
python train.py fsq_emoji
"""

from gen.config import Config, Save
from gen.data.images.captions import Captioned
from gen.families.tokenizer import FSQ, Tokenizer
from gen.networks.tokenizer import Residual
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Tokenizer(
        network=Residual(widths=(32, 96), strides=(2, 2)),
        bottleneck=FSQ((4, 4, 4, 4, 4)),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(2e-3, warmup=200), clip=1.0),
    ),
    data=Captioned(name="captions:emoji", size=32, colors=3, tokenizer="bpe", batch_size=64),
    steps=6000,
    save=Save(best=("psnr", "max")),
)
