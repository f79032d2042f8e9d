"""The medium of codes of images: decodes them by the copy of the tokenizer that the run keeps. gen.derived.code_sounds: codes of sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from gen.core import Array, Dataset, Given, Medium, Request, RunView, Shown
from gen.derived.codec import FILE, WEIGHTS, Codec, read_codec
from gen.errors import UserError
from gen.media.image import IMAGE, ImageOptions
from gen.media.pictures import check_given, known_cells, read_pictures
from gen.media.prompts import encode_prompts


@dataclass(frozen=True)
class CodeImages(Medium):
    """Codes [n, *grid, ...] of images, shown as images."""

    options: ClassVar[type] = ImageOptions
    shown_as: ClassVar[Medium] = IMAGE
    """The medium of the decoded samples."""

    def read_options(self, options: Any) -> Any:
        return self.shown_as.read_options(options)

    def check(self, options: Any, request: Request, run: RunView) -> None:
        self.shown_as.check(options, request, run)

    def give(self, options: Any, run: RunView) -> Given:
        """Returns the given pictures, or validation examples if none are given, and the prompts.

        A picture with a mask is also given as codes: "tokens" and "known", [1, *grid].

        Raises: UserError for a mask with colours, for a picture that has not the size of the run's images, or for a prompt that the
        run can't read.
        """
        found = self.add_tokens(read_pictures(options.image, options.mask), run)
        return Given({**(found or run.reference()), **encode_prompts(options.prompt, run)})

    def add_tokens(self, given: Mapping[str, np.ndarray], run: RunView) -> dict[str, np.ndarray]:
        """Returns given pictures [m, H, W, C] and a mask [1, H, W, 1] with "tokens" [m, *grid] and "known" [1, *grid], if the codes
        are tokens. Raises: UserError if they have not the size and the channels of the run's images.
        """
        if given.keys() != {"image", "mask"} or "tokens" not in run.spec:
            return dict(given)
        codec = read_kept_codec(run)
        check_given(given, codec.coder.example.shape)
        tokens = np.asarray(jax.jit(codec.encode)(given["image"]))
        # Codes near the hole have seen its pixels, too: an encoder looks further than one cell.
        return {**given, "tokens": tokens, "known": known_cells(given["mask"], tokens.shape[1:])}

    def to_images(self, samples: Mapping[str, Array], run: RunView) -> Mapping[str, Array]:
        """Returns the samples with the decoded images float32 [n, *axes, C] as "samples", and the codes as "codes"."""
        codes = samples["samples"]
        return {**samples, "samples": read_kept_codec(run).show(codes), "codes": codes}

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        """Returns the files of the decoded images, as images have them. The arrays have "images", float32 [n, *axes, C], too."""
        codec = read_kept_codec(run)
        images = np.asarray(jax.jit(codec.show)(samples["samples"]))
        labels = {"label": run.spec["label"]} if "label" in run.spec else {}

        # The nearest training examples are searched among images, not among codes.
        def build_images(data_dir: str | None = None) -> Dataset:
            data = run.build_data(data_dir)
            return data.images or data

        view = run._replace(spec={codec.coder.name: codec.coder.example, **labels}, build_data=build_images)
        shown = self.shown_as.show({**samples, "samples": images}, view, options)
        return Shown(shown.files, {**shown.arrays, "images": images})


CODE_IMAGES = CodeImages()


def read_kept_codec(run: RunView) -> Codec:
    """Returns the codec that the run keeps. Raises: UserError if it is damaged, or if its codes are not those of the run."""
    codec = read_codec(run.read_file(FILE), run.read_file(WEIGHTS), "the run")
    if codec.coder.codes not in run.spec.values():
        raise UserError(
            f"{FILE} is not the tokenizer of the codes in spec.json; the fix: restore both from a copy of the run"
        )
    return codec
