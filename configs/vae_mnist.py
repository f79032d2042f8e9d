"""The VAE of PyTorch's example (784-400-20, ReLU) for 10 epochs of dynamically binarized MNIST.

All 60,000 training images; the test split is watched too, and chooses nothing: the last checkpoint is scored. With Adam at
1e-3 and an average of the weights such a network reaches a bound of 101.8 nats; here Muon (Jordan 2024) trains it.
Prepare the data first: python -m gen.data.prepare mnist --source DIR
"""

from gen.config import Config
from gen.data.images import Images
from gen.families.vae import VAE
from gen.networks.vae import Perceptron
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=VAE(
        latents=(20,),
        network=Perceptron((400,), "relu"),
        ema=0.999,
        optim=Optimizer(rule="muon", lr=WarmupCosine(1e-2, warmup=200)),
    ),
    data=Images(name="mnist", train="train", validation="test", test="test", binarize="dynamic"),
    steps=4690,
    steps_per_call=10,
)
