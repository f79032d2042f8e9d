"""A codec of synthetic tones and chords, which need no download: an encoder of log-mels, residual vector quantization (Zeghidour et al.
2021), and a decoder that predicts spectra and inverts them (Siuzdak 2023).

It has 100 frames per second, and 3 codes per frame with 64 values each: 1.8 kbit/s. On the test split: mel distance 0.402 nats, and
all codes in use. TSTR, the test accuracy of a classifier trained on reconstructions: 1.00 (also if it is trained on real sounds, or on
samples of one Gaussian per class). The training takes about 3 minutes on two cores.

`python sample.py runs/codec_tones` writes recordings and their reconstructions, with a page that plays them.
"""

from gen.config import Config, Save
from gen.data.audio import Audio
from gen.families.tokenizer import VQ, Residual, Spectral, Tokenizer
from gen.networks.spectra import Mel
from gen.networks.vocoder import SpectralCodec
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=Tokenizer(
        network=SpectralCodec(Mel(window=320, hop=80, bands=40), width=64, blocks=3),
        bottleneck=Residual(3, VQ(codes=64, size=8)),
        reconstruction=Spectral(windows=(64, 256, 1024), bands=(10, 40, 80), samples=0.0),
        ema=0.998,
        optim=Optimizer(lr=WarmupCosine(1e-3), clip=1.0),
    ),
    data=Audio(name="tones", rate=8000, seconds=0.5, batch_size=16),
    steps=2000,
    evaluate_every=500,
    save=Save(every=500, best=("mel_distance", "min")),
)
