"""Media, the kinds of samples: each shows samples as files, and turns a user's inputs into arrays for a model.

So the commands that train and sample do not depend on whether samples are images, texts, sound or scores of music.

`find_medium` returns the medium of a run: the medium that the data name. If they name none, the features of the data
decide. "tokens" are texts, "image" is images, "audio" is sound, "tokens" with the axes time and voice are scores of
music, and other data are arrays.

To add a medium, write a file such as the following. In a fork it can be in any folder:

    @dataclass(frozen=True)
    class Molecules(Medium):
        features = {"atoms": 2}          # data with a feature "atoms" of two axes get this medium
        options = MoleculeOptions        # a frozen dataclass; its fields become options of sample.py

        def show(self, samples, run, options=None):
            return Shown({"samples.xyz": encode_xyz(samples["samples"])})

Then return it from the method `medium` of your subclass of `gen.core.Data`: `def medium(self): return Molecules()`. A
medium inside of gen is added to MEDIA in gen/media/find.py instead. The other methods of `gen.core.Medium`, such as
`give`, are optional.
"""

from gen.media.find import MEDIA, find_axes, find_medium

__all__ = ["MEDIA", "find_axes", "find_medium"]
