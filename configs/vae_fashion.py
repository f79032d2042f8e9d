"""A conditional VAE on Fashion-MNIST with its 256 grey levels, scored in bits per dimension.

Prepare the data first from the IDX files (Debian package dataset-fashion-mnist):
python -m gen.data.prepare fashion_mnist --source DIR
"""

from gen.config import Config, Save
from gen.data.images import Images
from gen.families.vae import VAE, DiscretizedLogistic
from gen.networks.vae import Perceptron
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=VAE(
        latents=(32,),
        network=Perceptron((512, 512), "silu"),
        likelihood=DiscretizedLogistic(levels=256),
        conditional=True,
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(2e-3, warmup=200), clip=100.0),
        test_samples=100,
    ),
    data=Images(name="fashion_mnist", batch_size=256),
    steps=6000,
    save=Save(best=("neg_elbo", "min")),
)
