"""Sound data sets: recordings of a folder or built-in tones, cut into windows of one length and one sample rate."""

from gen.data.audio.augment import Augmentation
from gen.data.audio.captions import Transcribed
from gen.data.audio.dataset import Audio
from gen.data.audio.preprocess import to_float, to_integers

__all__ = ["Audio", "Augmentation", "Transcribed", "to_float", "to_integers"]
