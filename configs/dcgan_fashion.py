"""The DCGAN of TensorFlow's tutorial, unconditional, on Fashion-MNIST.

The generator has a projection to 7x7x256 and transposed 5x5 convolutions with 128, 64 and 1 channels. The discriminator has two
strided 5x5 convolutions with dropout 0.3. Adam has the learning rate 1e-4. Unlike in the tutorial, the slope of LeakyReLU is 0.2
and not 0.3.

Prepare the data first, from the IDX files: python -m gen.data.prepare fashion_mnist --source DIR
"""

from gen.config import Alarms, Config
from gen.data.images import Images
from gen.families.gan import GAN, NonSaturating
from gen.networks import discriminator, generator
from gen.optim import Optimizer

config = Config(
    model=GAN(
        latent=100,
        generator=generator.DCGAN(widths=(256, 128, 64), strides=(1, 2, 2)),
        discriminator=discriminator.DCGAN(widths=(64, 128), dropout=0.3),
        objective=NonSaturating(),
        generator_optim=Optimizer(lr=1e-4),
        discriminator_optim=Optimizer(lr=1e-4),
    ),
    data=Images(name="fashion_mnist", batch_size=256),
    steps=10_000,
    alarms=Alarms("warn"),
)
