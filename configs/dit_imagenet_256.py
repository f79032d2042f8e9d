"""SiT-XL/2 (Ma et al. 2024): flow matching on ImageNet's images of 256x256 pixels, encoded as 32x32 latents of 4 numbers. The
network is DiT-XL/2 of Peebles and Xie (2023), with 675 million parameters.

It was not trained here, only planned (docs/plan.md). It needs accelerators, the data, and the autoencoder kl_imagenet_256. The
latents of all images take 10 GB.

python train.py dit_imagenet_256 --dry-run --plan.devices 64
python train.py kl_imagenet_256 && python train.py dit_imagenet_256
"""

from dataclasses import replace

from gen.config import Config, Parallel, load
from gen.derived import Encoded
from gen.families.flow import DiT, Flow
from gen.optim import Optimizer

config = Config(
    model=Flow(
        network=DiT(layers=28, width=1152, heads=16, patch=(2,)),
        conditional=True,
        label_dropout=0.1,
        ema=0.9999,
        optim=Optimizer(lr=1e-4),
        dtype="bfloat16",
    ),
    data=Encoded(
        # A mirrored form of each image would double the latents.
        data=replace(load("kl_imagenet_256").data, flip=False),
        tokenizer="runs/kl_imagenet_256",
        batch_size=256,
    ),
    steps=400_000,
    evaluate_every=10_000,
    parallel=Parallel(engine="jit", fsdp=True),
)
