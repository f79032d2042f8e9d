"""The medium of codes: they are decoded to images by the copy of the tokenizer that the run keeps. gen.runs.code_sounds: to sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from gen.core import Array, Dataset, Medium, RunView, Shown
from gen.errors import UserError
from gen.media.image import IMAGE, ImageOptions
from gen.runs.codec import FILE, WEIGHTS, Codec, read_codec


@dataclass(frozen=True)
class CodeImages(Medium):
    """Codes [n, *grid, ...] of images, shown as images."""

    options: ClassVar[type] = ImageOptions
    shown_as: ClassVar[Medium] = IMAGE
    """The medium of the decoded samples."""

    def to_images(self, samples: Mapping[str, Array], run: RunView) -> Mapping[str, Array]:
        """Returns the samples with the decoded images float32 [n, *axes, C] as "samples", and the codes as "codes"."""
        codes = samples["samples"]
        return {**samples, "samples": read_kept_codec(run).show(codes), "codes": codes}

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        """Returns the files of the decoded images, as images have them. The arrays have "images", float32 [n, *axes, C], too."""
        codec = read_kept_codec(run)
        images = np.asarray(jax.jit(codec.show)(samples["samples"]))
        labels = {"label": run.spec["label"]} if "label" in run.spec else {}

        # Neighbours are searched among images, not among codes.
        def build_images(data_dir: str | None = None) -> Dataset:
            data = run.build_data(data_dir)
            return data.images or data

        view = run._replace(spec={codec.coder.name: codec.coder.example, **labels}, build_data=build_images)
        shown = self.shown_as.show({**samples, "samples": images}, view, options)
        return Shown(shown.files, {**shown.arrays, "images": images})


CODE_IMAGES = CodeImages()


def read_kept_codec(run: RunView) -> Codec:
    """Returns the codec that the run keeps. Raises: UserError if it is damaged, or of other codes than those of the run."""
    codec = read_codec(run.read_file(FILE), run.read_file(WEIGHTS), "the run")
    if codec.coder.codes not in run.spec.values():
        raise UserError(
            f"{FILE} is not the tokenizer of the codes in spec.json; the fix: restore both from a copy of the run"
        )
    return codec
