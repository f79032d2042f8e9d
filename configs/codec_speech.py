"""A codec of speech at 8 kHz, by residual finite scalar quantization (Zeghidour et al. 2021; Mentzer et al. 2023). Not scored yet.

It has 100 frames per second, and 3 codes per frame with 1,000 values each: 2.99 kbit/s.

An example with the Free Spoken Digit Dataset, 3,000 recordings of six speakers, in the folder FSDD:
python train.py codec_speech --data.name audio:FSDD --data.pattern "{label}_{speaker}_{take}.wav" --data.test speaker=theo
"""

from gen.config import Config, Save
from gen.data.audio import Audio
from gen.families.tokenizer import FSQ, Residual, Spectral, Tokenizer
from gen.networks import tokenizer
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Tokenizer(
        network=tokenizer.Residual(widths=(32, 64, 128), strides=(4, 4, 5)),
        bottleneck=Residual(3, FSQ((10, 10, 10))),
        reconstruction=Spectral(windows=(64, 256, 1024), bands=(10, 20, 40)),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3), clip=1.0),
    ),
    data=Audio(name="audio:speech", rate=8000, seconds=1.0, batch_size=16),
    steps=20_000,
    save=Save(best=("mel_distance", "min")),
)
