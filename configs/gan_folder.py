"""A GAN on a folder of your pictures, 32x32 in colour. DiffAugment (Zhao et al. 2020) keeps the discriminator from memorizing a
small set. It has no reference score, since the pictures are yours.

python train.py gan_folder --data.name folder:PATH     (sub-folders are classes: add --model.conditioning projection)
If the sub-folders are train, val and test, they are the splits. Otherwise 80% of the pictures are trained on, and 10% each are
validation and test.
Other sizes: --data.size 64 --model.generator.widths 256 128 64 32 --model.generator.strides 2 2 2 2
"""

from gen.config import Alarms, Config
from gen.data.images import Images
from gen.families.gan import GAN, DiffAugment, Relativistic
from gen.networks import discriminator, generator
from gen.optim import Optimizer

config = Config(
    model=GAN(
        latent=128,
        generator=generator.DCGAN(widths=(256, 128, 64), strides=(2, 2, 2)),
        discriminator=discriminator.DCGAN(widths=(64, 128, 256)),
        objective=Relativistic(),
        r1=0.5,
        r2=0.5,
        augment=DiffAugment(),
        generator_optim=Optimizer(lr=2e-4, b1=0.0, b2=0.99),
        discriminator_optim=Optimizer(lr=2e-4, b1=0.0, b2=0.99),
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
    steps=20_000,
    alarms=Alarms("warn"),
)
