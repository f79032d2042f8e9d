"""A causal transformer over the codes of spoken digits. It reads the digit first. One step reads all three codes of a frame, and
a small head predicts the three codes of the next frame (Lee et al. 2022; Copet et al. 2023).

The test split has 599.7 nats per recording. 20,000 samples have a TSTR of 0.944 (real recordings 0.958, reconstructions by the codec
0.956, samples of one Gaussian per class 0.940), and 2,430 samples, as many as real recordings, 0.919. The training takes 50 minutes
of CPU time. The data are so few that larger networks overfit. Ten variants of each recording, by random delays, loudness and speed,
lowered the validation score from 719 to 610 nats.

The data are the Free Spoken Digit Dataset, 3,000 recordings of six speakers, in the folder FSDD. Recordings 0 to 4 of each digit and
speaker are the test split.

python train.py codec_speech --data.name audio:FSDD --data.long start --data.pattern "{label}_{speaker}_{take}.wav" \
    --data.test "take=0,1,2,3,4"
python train.py speech_digits_tokens --data.data.name audio:FSDD
python -m gen.evaluate runs/speech_digits_tokens
"""

from gen.config import Config, Save
from gen.data.audio import Audio, Augmentation
from gen.derived import Encoded
from gen.families.grid import GridLM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=GridLM(
        network=Architecture(layers=3, width=128, heads=4, norm="rms", activation="swiglu", bias=False, dropout=0.2),
        inner_layers=2,
        conditional=True,
        label_dropout=0.1,
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=200), weight_decay=0.1, clip=1.0),
    ),
    data=Encoded(
        data=Audio(
            name="audio:FSDD",
            rate=8000,
            seconds=1.0,
            long="start",
            pattern="{label}_{speaker}_{take}.wav",
            test="take=0,1,2,3,4",
            augment=Augmentation(delay=0.02, gain=3.0, speed=0.1),
        ),
        tokenizer="runs/codec_speech",
        variants=10,
        batch_size=32,
    ),
    steps=4000,
    evaluate_every=400,
    save=Save(best=("nll", "min")),
)
