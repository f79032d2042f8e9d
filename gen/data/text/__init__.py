"""Text data sets."""

from gen.data.text.dataset import Text

__all__ = ["Text"]
