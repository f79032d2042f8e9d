"""Image data sets: a folder of images or of pairs, a TFDS set that was prepared on disk, or built-in digits."""

from gen.data.images.dataset import Images
from gen.data.images.pixels import to_bytes
from gen.data.images.sources import Record, Source

__all__ = ["Images", "Record", "Source", "to_bytes"]
