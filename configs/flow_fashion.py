"""Flow matching on Fashion-MNIST (Lipman et al. 2023), with a U-Net that takes 45 minutes on two cores. Not scored yet.

The pixels are dequantized, so that bits_per_dim compares with that of vae_fashion. Prepare the data first from the IDX files
(Debian package dataset-fashion-mnist): python -m gen.data.prepare fashion_mnist --source DIR
"""

from gen.config import Config
from gen.data.images import Images
from gen.families.flow import Flow, UNet
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Flow(
        network=UNet(widths=(48, 96), attention=(2,), patch=2),
        conditional=True,
        likelihood_steps=24,
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=200), clip=1.0),
    ),
    data=Images(name="fashion_mnist", dequantize=True),
    steps=4000,
)
