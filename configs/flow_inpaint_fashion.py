"""Flow matching that completes pictures of Fashion-MNIST, given a part of each (masks as in Saharia et al. 2022, Palette). Not
scored yet.

It fills holes (inpainting), continues pictures beyond a border, and upscales pictures of 14x14 and 7x7 pixels. Prepare the data
first from the IDX files (Debian package dataset-fashion-mnist):
python -m gen.data.prepare fashion_mnist --source DIR
python train.py flow_inpaint_fashion
python sample.py runs/flow_inpaint_fashion --mode inpaint --image PICTURE.png --mask MASK.png --n 8
"""

from gen.config import Config
from gen.data.images import Images
from gen.families.flow import AnyOf, Coarse, Flow, Half, Rectangle, Scattered, UNet
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Flow(
        network=UNet(widths=(48, 96), attention=(2,), patch=2),
        given=AnyOf((Rectangle(), Rectangle(), Half(), Scattered(), Coarse(2), Coarse(4))),
        conditional=True,
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=200), clip=1.0),
    ),
    data=Images(name="fashion_mnist"),
    steps=4000,
)
