"""A causal transformer over the codes of spoken digits. It reads the digit first. One step reads all three codes of a frame, and
a small head predicts the three codes of the next frame (Lee et al. 2022; Copet et al. 2023). Not scored yet.

The data are the Free Spoken Digit Dataset, 3,000 recordings of six speakers, in the folder FSDD. Recordings 0 to 4 of each digit and
speaker are the test split.

python train.py codec_speech --data.name audio:FSDD --data.long start --data.pattern "{label}_{speaker}_{take}.wav" \
    --data.test "take=0,1,2,3,4"
python train.py speech_digits_tokens --data.data.name audio:FSDD
python -m gen.evaluate runs/speech_digits_tokens
"""

from gen.config import Config, Save
from gen.data.audio import Audio
from gen.derived import Encoded
from gen.families.grid import GridLM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=GridLM(
        network=Architecture(layers=4, width=192, heads=6, norm="rms", activation="swiglu", bias=False, dropout=0.1),
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
        ),
        tokenizer="runs/codec_speech",
        batch_size=32,
    ),
    steps=6000,
    evaluate_every=1000,
    save=Save(best=("nll", "min")),
)
