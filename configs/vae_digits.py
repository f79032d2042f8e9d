"""A conditional VAE on scikit-learn's 8x8 digits, which need no download. It trains in half a minute.

The pixels have 17 levels, so the likelihood is a discretized logistic (Kingma et al. 2016). So bits_per_dim is an upper bound on
the cost of the pixels themselves, without added noise. A beta above 1 reduces overfitting to this small data set: both held-out
bounds improve.
"""

from gen.config import Config, Save
from gen.data.images import Images
from gen.families.vae import VAE, DiscretizedLogistic
from gen.networks.vae import Perceptron
from gen.optim import Optimizer

config = Config(
    model=VAE(
        latents=(16,),
        network=Perceptron((256, 256), "silu"),
        likelihood=DiscretizedLogistic(levels=17),
        conditional=True,
        beta=1.5,
        ema=0.998,
        optim=Optimizer(lr=1e-3, weight_decay=0.1, clip=50.0),
    ),
    data=Images(name="digits"),
    steps=1500,
    steps_per_call=10,
    evaluate_every=250,
    save=Save(every=250, best=("neg_elbo", "min")),
)
