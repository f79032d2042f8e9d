"""A convolutional VAE on a folder of your pictures, 32x32 in colour. It has no reference score, since the pictures are yours.

python train.py vae_folder --data.name folder:PATH     (sub-folders are classes; --model.conditional uses them)
If the sub-folders are train, val and test, they are the splits. Otherwise 80% of the pictures are trained on, and 10% each are
validation and test.
For other sizes, from 8 to 64: --data.size 64 --model.network.widths 32 64 128 256
"""

from gen.config import Config, Save
from gen.data.images import Images
from gen.families.vae import VAE, DiscretizedLogistic
from gen.networks.vae import Residual
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=VAE(
        latents=(128,),
        network=Residual((32, 64, 128)),
        likelihood=DiscretizedLogistic(levels=256, components=5),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=500), clip=200.0),
        test_samples=100,
    ),
    data=Images(
        name="folder:images",
        train=None,
        validation=None,
        test=None,
        size=32,
        colors=3,
        flip=True,
        batch_size=64,
    ),
    steps=10_000,
    save=Save(best=("neg_elbo", "min")),
)
