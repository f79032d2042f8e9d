"""A conditional VAE on Fashion-MNIST's grey levels as they are (256 of them), scored in bits per dimension.

Prepare the data first, from the IDX files (Debian: dataset-fashion-mnist):
python -m gen.data.prepare fashion_mnist --source DIR
"""

from gen.checkpoint import Config as Save
from gen.config import Config
from gen.data.images import Config as Images
from gen.families.vae import Config as VAE
from gen.likelihoods import DiscretizedLogistic
from gen.networks.vae import Perceptron
from gen.optim import OptimConfig
from gen.schedules import WarmupCosine

config = Config(
    model=VAE(
        latents=(32,),
        network=Perceptron((512, 512), "silu"),
        likelihood=DiscretizedLogistic(levels=256),
        conditional=True,
        ema=0.999,
        optim=OptimConfig(lr=WarmupCosine(2e-3, warmup=200), clip=100.0),
        test_samples=100,
    ),
    data=Images(name="fashion_mnist", batch_size=256),
    steps=6000,
    save=Save(best=("neg_elbo", "min")),
)
