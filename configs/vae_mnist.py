"""wip"""

from gen.checkpoint import Config as Save
from gen.config import Config
from gen.data.images import Config as Images
from gen.families.vae import Config as VAE
from gen.networks.vae import Perceptron
from gen.optim import OptimConfig

config = Config(
    model=VAE(latents=(20,), network=Perceptron((400,), "relu"), ema=0.999, optim=OptimConfig(lr=1e-3)),
    data=Images(name="mnist", binarize="dynamic", train="train", validation="test"),
    steps=4690,
    save=Save(best=("neg_elbo", "min")),
)
