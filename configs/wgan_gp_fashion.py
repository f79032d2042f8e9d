"""WGAN-GP on Fashion-MNIST, unconditional: algorithm 1 of Gulrajani et al. 2017 with its defaults.

For each step of the generator, the critic makes five steps with batches of 64. The gradient penalty has the weight 10. Adam has the
learning rate 1e-4 and the betas 0 and 0.9. The networks are small DCGANs, and the critic has no batch normalization.

The Fréchet distance of 10,000 samples is 17.8 (training images: 0.30), and coverage 0.36: worse than dcgan_fashion. The training takes
31 minutes of CPU time, which is short for this objective.

Prepare the data first, from the IDX files: python -m gen.data.prepare fashion_mnist --source DIR
"""

from gen.config import Alarms, Config
from gen.data.images import Images
from gen.families.gan import GAN, Wasserstein
from gen.networks import discriminator, generator
from gen.optim import Optimizer

config = Config(
    model=GAN(
        latent=128,
        generator=generator.DCGAN(widths=(128, 64, 32), strides=(1, 2, 2), activation="relu"),
        discriminator=discriminator.DCGAN(widths=(32, 64), norm="none"),
        objective=Wasserstein(),
        gradient_penalty=10.0,
        critic_steps=5,
        generator_optim=Optimizer(lr=1e-4, b1=0.0, b2=0.9),
        discriminator_optim=Optimizer(lr=1e-4, b1=0.0, b2=0.9),
    ),
    data=Images(name="fashion_mnist", batch_size=64),
    steps=5_000,
    evaluate_every=1000,
    alarms=Alarms("warn"),
)
