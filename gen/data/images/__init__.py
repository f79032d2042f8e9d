"""Image data sets."""

from gen.data.images.dataset import Images

__all__ = ["Images"]
