"""A tokenizer of Fashion-MNIST, by finite scalar quantization (Mentzer et al. 2023). An image becomes 7x7 codes with 1,024 values each.

On the test split: PSNR 25.9 dB, SSIM 0.859, and all codes in use. TSTR, the test accuracy of a classifier trained on its
reconstructions of 54,000 training images: 0.882 (trained on the images themselves 0.884, on samples of one Gaussian per class
0.847). The training takes about 30 minutes of CPU time on one core.

Prepare the data first from the IDX files (Debian package dataset-fashion-mnist):
python -m gen.data.prepare fashion_mnist --source DIR
Then `python -m gen.evaluate runs/fsq_fashion` prints the scores of reconstructions, which no model of the codes can beat.
"""

from gen.config import Config, Save
from gen.data.images import Images
from gen.families.tokenizer import FSQ, Perceptual, Tokenizer
from gen.networks.tokenizer import Residual
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Tokenizer(
        network=Residual(widths=(32, 96), strides=(2, 2)),
        bottleneck=FSQ((4, 4, 4, 4, 4)),
        perceptual=Perceptual(weight=0.02),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(2e-3, warmup=200), clip=1.0),
    ),
    data=Images(name="fashion_mnist", batch_size=64),
    steps=5000,
    save=Save(best=("psnr", "max")),
)
