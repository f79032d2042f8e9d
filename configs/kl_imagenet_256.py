"""The autoencoder for dit_imagenet_256: ImageNet's images of 256x256 pixels become 32x32 latents of 4 numbers. It has the size of
Stable Diffusion's autoencoder (Rombach et al. 2022, table 8, KL with f = 8). It was not trained here, only planned: it needs
accelerators and the data.

Prepare the data first: pip install -e '.[tensorflow]', then python -m gen.data.prepare imagenet2012
python train.py kl_imagenet_256 --dry-run --plan.devices 64
"""

from dataclasses import replace

from gen.config import Parallel, load
from gen.data.images import Images
from gen.families.tokenizer import Tokenizer
from gen.networks import discriminator
from gen.networks.tokenizer import Residual

folder = load("kl_folder")
assert isinstance(folder.model, Tokenizer) and folder.model.adversary is not None
config = replace(
    folder,
    model=replace(
        folder.model,
        network=Residual(widths=(128, 256, 512), strides=(2, 2, 2), blocks=2),
        adversary=replace(folder.model.adversary, discriminator=discriminator.DCGAN(widths=(64, 128, 256, 512, 512))),
        dtype="bfloat16",
    ),
    data=Images(
        name="imagenet2012",
        train="train[:99%]",
        validation="train[99%:]",
        test="validation",
        size=256,
        colors=3,
        flip=True,
        batch_size=256,
    ),
    steps=200_000,
    evaluate_every=10_000,
    parallel=Parallel(engine="jit", fsdp=True),
)
