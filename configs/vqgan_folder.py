"""A VQ-GAN (Esser et al. 2021) on a folder of your pictures, 64x64 in colour. A picture becomes 8x8 codes with 1,024 values
each. The loss is L2, plus from step 2,000 on the loss against a relativistic discriminator (Huang et al. 2024). It has no
reference score, since the pictures are yours.

python train.py vqgan_folder --data.name folder:PATH
Sub-folders are classes. If they are train, val and test, they are the splits. Otherwise 80% of the pictures are trained on, and 10%
each are validation and test. Other sizes: --data.size 32 --model.network.widths 64 128 --model.network.strides 2 2
"""

from gen.config import Config, Save
from gen.data.images import Images
from gen.families.gan import Relativistic
from gen.families.tokenizer import VQ, Adversary, Tokenizer
from gen.networks import discriminator
from gen.networks.tokenizer import Residual
from gen.optim import Optimizer, Piecewise, WarmupCosine

config = Config(
    model=Tokenizer(
        network=Residual(widths=(32, 64, 128), strides=(2, 2, 2)),
        bottleneck=VQ(codes=1024, size=8),
        adversary=Adversary(
            discriminator=discriminator.DCGAN(widths=(32, 64, 128)),
            objective=Relativistic(),
            weight=Piecewise(boundaries=(2000,), values=(0.0, 0.01)),
            r1=0.1,
        ),
        # Most weights of a new discriminator have tiny gradients. With a smaller eps, Adam would amplify their rounding errors.
        discriminator_optim=Optimizer(lr=5e-4, b1=0.0, b2=0.99, eps=1e-5),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=100), clip=1.0),
    ),
    data=Images(
        name="folder:images",
        train=None,
        validation=None,
        test=None,
        size=64,
        colors=3,
        flip=True,
        batch_size=32,
    ),
    steps=20_000,
    save=Save(best=("ssim", "max")),
)
