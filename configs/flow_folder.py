"""Flow matching on a folder of your pictures, 64x64 in colour. It has no reference score, since the pictures are yours.

python train.py flow_folder --data.name folder:PATH     (sub-folders are classes; --model.conditional uses them)
If the sub-folders are train, val and test, they are the splits. Otherwise 80% of the pictures are trained on, and 10% each are
validation and test.
On a GPU, a larger network is better: --model.network "UNet(widths=(128, 256, 512), blocks=2, attention=(3,), patch=2)"
"""

from gen.config import Config
from gen.data.images import Images
from gen.families.flow import Flow, UNet
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Flow(
        network=UNet(widths=(32, 64, 128), attention=(3,), patch=2),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=500), clip=1.0),
    ),
    data=Images(
        name="folder:images",
        train=None,
        validation=None,
        test=None,
        size=64,
        colors=3,
        flip=True,
        batch_size=64,
    ),
    steps=20_000,
)
