"""Image data sets: a folder, a prepared TFDS set, or built-in digits."""

from gen.data.images.dataset import Images
from gen.data.images.pixels import to_bytes
from gen.data.images.sources import Record, Source

__all__ = ["Images", "Record", "Source", "to_bytes"]
