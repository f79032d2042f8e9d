"""Flow matching on the latents of a folder of your pictures, 256x256 in colour (Rombach et al. 2022; Ma et al. 2024, SiT): a
transformer over patches of 2x2 latents. It has no reference score, since the pictures are yours.

python train.py kl_folder --data.name folder:PATH
python train.py latent_flow_folder --data.data.name folder:PATH     (sub-folders are classes; --model.conditional uses them)
python sample.py runs/latent_flow_folder --n 16

Every picture is encoded twice, each time mirrored with probability 1/2. If the autoencoder was trained on pictures of another size,
give the same size here: --data.data.size 64
On a large GPU, a larger network is better: --model.network "DiT(layers=12, width=768, heads=12, patch=(2,))"
"""

from gen.config import Config, load
from gen.derived import Encoded
from gen.families.flow import DiT, Flow
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Flow(
        network=DiT(layers=8, width=256, heads=4, patch=(2,)),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(5e-4, warmup=500), clip=1.0),
    ),
    data=Encoded(data=load("kl_folder").data, tokenizer="runs/kl_folder", variants=2, batch_size=32),
    steps=20_000,
)
