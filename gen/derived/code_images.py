"""The medium of codes of images. It decodes them with the copy of the tokenizer in the run. For sound: gen.derived.code_sounds."""

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
    """Shows codes of images, tokens or latents [n, *grid, ...], as images."""

    options: ClassVar[type] = ImageOptions
    shown_as: ClassVar[Medium] = IMAGE
    """The medium of the decoded samples."""

    def read_options(self, options: Any) -> Any:
        return self.shown_as.read_options(options)

    def check(self, options: Any, request: Request, run: RunView) -> None:
        self.shown_as.check(options, request, run)

    def give(self, options: Any, run: RunView) -> Given:
        """Returns the pictures and prompts of the options, as arrays. Without pictures: validation examples.

        If a picture is given with a mask, "tokens" and "known" [1, *grid] are added.

        Raises: UserError if the mask has colours or no white part, if a picture with a mask has another size than the
        run's images, or if the run can't read prompts.
        """
        found = self.add_tokens(read_pictures(options.image, options.mask), run)
        return Given({**(found or run.reference()), **encode_prompts(options.prompt, run)})

    def add_tokens(self, given: Mapping[str, np.ndarray], run: RunView) -> dict[str, np.ndarray]:
        """Adds "tokens" int32 [m, *grid] and "known" bool [1, *grid] (which tokens to keep) to a given picture and mask.

        given: "image" float32 [m, H, W, C] in [-1, 1], and "mask" [1, H, W, 1]. Returns `given` unchanged if it has other entries, or if
        the run models latents instead of tokens.

        Raises: UserError if the picture and the run's images differ in size or channels.
        """
        if given.keys() != {"image", "mask"} or "tokens" not in run.spec:
            return dict(given)
        codec = read_kept_codec(run)
        check_given(given, codec.coder.example.shape)
        tokens = np.asarray(jax.jit(codec.encode)(given["image"]))
        # An encoder reads pixels beyond a code's own cell, so codes near the hole depend on its pixels, too.
        return {**given, "tokens": tokens, "known": known_cells(given["mask"], tokens.shape[1:])}

    def to_images(self, samples: Mapping[str, Array], run: RunView) -> Mapping[str, Array]:
        """Returns the arrays with the decoded samples as "samples", float32 [n, H, W, C] or [n, T, C], and the codes as "codes"."""
        codes = samples["samples"]
        return {**samples, "samples": read_kept_codec(run).show(codes), "codes": codes}

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        """Decodes the samples, and returns the files of `shown_as`. Adds the array "images", the decoded samples.

        "images" is float32 in [-1, 1]: [n, H, W, C] for images, and [n, T, C] for sound.
        """
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
"""The medium of codes of images."""


def read_kept_codec(run: RunView) -> Codec:
    """Reads the run's copy of its tokenizer. Raises: UserError if it is damaged, or if its codes don't fit the run's spec."""
    codec = read_codec(run.read_file(FILE), run.read_file(WEIGHTS), "the run")
    if codec.coder.codes not in run.spec.values():
        raise UserError(
            f"{FILE} is not the tokenizer of the codes in spec.json; the fix: restore both from a copy of the run"
        )
    return codec
