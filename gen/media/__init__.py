"""Kinds of samples (media): how samples are shown, and how a user's inputs become arrays for a model.

No other code asks whether samples are images, texts, sound or scores.

`find_medium` returns the medium of a run: the one that its data name, otherwise the one of its features: texts for
"tokens", images for "image", sounds for "audio", scores for "tokens" of a time and a voice, plain arrays for anything else.

To add a medium, write one file. In a fork it can lie anywhere:

    @dataclass(frozen=True)
    class Molecules(Medium):
        features = {"atoms": 2}          # data with a feature "atoms" of two axes get this medium
        options = MoleculeOptions        # a frozen dataclass; its fields become options of sample.py

        def show(self, samples, run, options=None):
            return Shown({"samples.xyz": encode_xyz(samples["samples"])})

Then let the kind of data name it (`def medium(self): return Molecules()` in its subclass of `Data`). A medium inside of gen is added
to MEDIA in gen/media/find.py instead. `give` and `describe` of `gen.core.Medium` are optional.
"""

from gen.media.find import MEDIA, find_axes, find_medium

__all__ = ["MEDIA", "find_axes", "find_medium"]
