"""A causal transformer over the codes of tones and chords. It reads the label first. One step reads all three codes of a frame, and
a small head predicts the three codes of the next frame (Lee et al. 2022; Copet et al. 2023).

On the test split: 308.3 nats per sound of 153 codes. TSTR, the test accuracy of a classifier trained on samples: 1.00 (also if it is
trained on real sounds, or on the codec's reconstructions). With only 500 sounds to learn from, longer trainings overfit.

python train.py codec_tones && python train.py tones_tokens && python sample.py runs/tones_tokens --label "C major"
"""

from gen.config import Config, Save
from gen.data.audio import Audio
from gen.derived import Encoded
from gen.families.grid import GridLM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=GridLM(
        network=Architecture(layers=3, width=128, heads=4, norm="rms", activation="swiglu", bias=False, dropout=0.3),
        inner_layers=1,
        conditional=True,
        label_dropout=0.1,
        ema=0.998,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=100), weight_decay=0.1, clip=1.0),
    ),
    data=Encoded(data=Audio(name="tones", rate=8000, seconds=0.5), tokenizer="runs/codec_tones", batch_size=32),
    steps=600,
    evaluate_every=100,
    save=Save(every=100, best=("nll", "min")),
)
