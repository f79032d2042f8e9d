"""Text to speech of one speaker: a causal transformer from the characters of a text to the codes of its recording, where one step
reads all three codes of a frame (Borsos et al. 2023; Copet et al. 2023). Not scored yet.

The text is read before the codes. It is left out for a tenth of the training examples, so samples can be guided. All recordings of
one text are in the same split, so the model has not seen the test texts.

python train.py codec_voice && python train.py tts_voice
python sample.py runs/tts_voice --prompt "good evening" --n 4 --guidance 2
"""

from gen.config import Config, Save, load
from gen.derived import Encoded
from gen.families.grid import GridLM
from gen.networks.transformer import Architecture
from gen.optim import Optimizer, WarmupCosine

config = Config(
    model=GridLM(
        network=Architecture(layers=4, width=192, heads=6, norm="rms", activation="swiglu", bias=False, dropout=0.2),
        inner_layers=2,
        conditional=True,
        label_dropout=0.1,
        ema=0.999,
        optim=Optimizer(lr=WarmupCosine(1e-3, warmup=200), weight_decay=0.1, clip=1.0),
    ),
    data=Encoded(data=load("codec_voice").data, tokenizer="runs/codec_voice", batch_size=16),
    steps=6000,
    evaluate_every=500,
    save=Save(best=("nll", "min")),
)
