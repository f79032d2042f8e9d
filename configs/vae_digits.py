"""Digits of 8x8 pixels, built in."""

from gen.checkpoint import Config as Save
from gen.config import Config
from gen.data.images import Config as Images
from gen.families.vae import Config as VAE
from gen.likelihoods import DiscretizedLogistic
from gen.networks.vae import Perceptron
from gen.optim import OptimConfig

config = Config(
    model=VAE(
        latents=(16,),
        network=Perceptron((256, 256)),
        likelihood=DiscretizedLogistic(levels=17),
        conditional=True,
        ema=0.999,
        optim=OptimConfig(lr=1e-3),
    ),
    data=Images(name="digits"),
    steps=3000,
    save=Save(best=("neg_elbo", "min")),
)
