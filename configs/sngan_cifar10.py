"""SNGAN with projection on CIFAR-10 (Miyato et al. 2018, table 4; Miyato and Koyama 2018): residual networks, hinge loss, spectral
normalization, five critic steps, conditional batch normalization. Not scored: it needs an accelerator and the data.

Prepare the data first: pip install -e '.[tensorflow]', then python -m gen.data.prepare cifar10
"""

from gen.config import Alarms, Config
from gen.data.images import Images
from gen.families.gan import GAN, Hinge
from gen.networks import discriminator, generator
from gen.optim import Optimizer, WarmupLinear

config = Config(
    model=GAN(
        latent=128,
        generator=generator.Residual(widths=(256, 256, 256, 256)),
        discriminator=discriminator.Residual(widths=(128, 128, 128, 128), halvings=2, spectral=True),
        conditioning="projection",
        objective=Hinge(),
        critic_steps=5,
        generator_optim=Optimizer(lr=WarmupLinear(2e-4), b1=0.0, b2=0.9),
        discriminator_optim=Optimizer(lr=WarmupLinear(2e-4), b1=0.0, b2=0.9),
        ema=0.9999,
    ),
    data=Images(name="cifar10", size=32, colors=3, flip=True, batch_size=64),
    steps=100_000,
    evaluate_every=5000,
    alarms=Alarms("warn"),
)
