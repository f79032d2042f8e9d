"""Flow matching on Fashion-MNIST (Lipman et al. 2023), sized for 45 minutes of training on two cores. Not scored yet.

Prepare the data first from the IDX files (Debian package dataset-fashion-mnist):
python -m gen.data.prepare fashion_mnist --source DIR
"""

from gen.config import Config
from gen.data.images import Images
from gen.families.flow import Flow, UNet
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Flow(
        network=UNet(widths=(48, 96), attention=(2,), patch=2),
        conditional=True,
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=200), clip=1.0),
    ),
    data=Images(name="fashion_mnist"),
    steps=4000,
)
