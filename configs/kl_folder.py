"""An autoencoder with continuous latents (Rombach et al. 2022) on a folder of your pictures, 256x256 in colour. A picture becomes
32x32 latents of 4 numbers, which latent_flow_folder generates. The loss is L1, plus from step 5,000 on the loss against a
relativistic discriminator (Huang et al. 2024). It has no reference score, since the pictures are yours.

python train.py kl_folder --data.name folder:PATH
Sub-folders are classes. If they are train, val and test, they are the splits. Otherwise 80% of the pictures are trained on, and 10%
each are validation and test. It is sized for a GPU. On a CPU, use smaller pictures: --data.size 64 --model.network.strides 2 2 1
On a large GPU, a wider network is better: --model.network.widths 128 256 512 --model.network.blocks 2
"""

from gen.config import Config, Save
from gen.data.images import Images
from gen.families.gan import Relativistic
from gen.families.tokenizer import KL, L1, Adversary, Tokenizer
from gen.networks import discriminator
from gen.networks.tokenizer import Residual
from gen.optim import Optimizer, Piecewise, WarmupCosine

config = Config(
    model=Tokenizer(
        network=Residual(widths=(32, 64, 128), strides=(2, 2, 2)),
        bottleneck=KL(size=4),
        reconstruction=L1(),
        adversary=Adversary(
            discriminator=discriminator.DCGAN(widths=(16, 32, 64, 128, 128)),
            objective=Relativistic(),
            weight=Piecewise(boundaries=(5000,), values=(0.0, 0.01)),
            r1=0.1,
        ),
        # Most weights of a new discriminator have hardly a gradient. With a smaller eps, Adam would follow its rounding.
        discriminator_optim=Optimizer(lr=5e-4, b1=0.0, b2=0.99, eps=1e-5),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=500), clip=1.0),
    ),
    data=Images(
        name="folder:images",
        train=None,
        validation=None,
        test=None,
        size=256,
        colors=3,
        flip=True,
        batch_size=16,
    ),
    steps=20_000,
    save=Save(best=("ssim", "max")),
)
