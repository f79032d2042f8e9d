"""A VAE with two latent groups and a learned mixture as prior, on dynamically binarized MNIST.

It is sized for the best bound on the likelihood that 45 minutes of training on two cores can reach. Published bounds with this
binarization, in nats: PIWAE 84.58 and CIWAE 84.74 (pythae's reproductions), VAE 86.77 (pytorch-generative). A tenth of the training
images is the validation split, which chooses the checkpoint.

Prepare the data first: python -m gen.data.prepare mnist --source DIR
"""

from gen.config import Config, Save
from gen.data.images import Images
from gen.families.vae import VAE, GaussianMixture
from gen.networks.vae import Perceptron
from gen.optim import Optimizer, Warmup, WarmupCosine

config = Config(
    model=VAE(
        latents=(40, 40),
        network=Perceptron((384, 384), "silu"),
        prior=GaussianMixture(500),
        beta=Warmup(1.0, warmup=3000),
        ema=0.9995,
        optim=Optimizer(lr=WarmupCosine(3e-3, warmup=500), clip=50.0),
    ),
    data=Images(name="mnist", binarize="dynamic", batch_size=512),
    steps=36000,
    save=Save(best=("neg_elbo", "min")),
)
