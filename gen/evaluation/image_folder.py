"""Scores a folder of images, which any model may have made, in the same way as a run."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gen.data.digest import sha256
from gen.data.images import pixels
from gen.data.images.listing import list_images
from gen.errors import UserError
from gen.evaluation.image_subject import MAX_DEFAULT_IMAGES, ImageSubject
from gen.evaluation.labels import LabelRule
from gen.families.labels import class_names
from gen.files import check_targets
from gen.metrics.images import ImageSet
from gen.runs import checkpoint

# sample.py --files writes the label of an image into its name.
LABEL = re.compile(r"_label(\d+)(_|$)")


def is_image_folder(path: Path) -> bool:
    """Returns whether a path is a folder with images, and not a run: it has neither a config.json nor checkpoints."""
    is_run = os.path.lexists(path / "config.json") or checkpoint.steps(path / "checkpoints")
    return path.is_dir() and not is_run and bool(list_images(path).files)


@dataclass(frozen=True, eq=False)
class FolderSubject(ImageSubject):
    """A folder of images, which are scored like generated images, against `data`: the data of `run`. `step` is not used."""

    folder: Path

    @property
    def workdir(self) -> Path:
        return self.folder

    @property
    def summary(self) -> str:
        chosen = f"{self.n:,} of " if self.n < len(self.paths) else ""
        labels = "" if self.labelled else ", without labels"
        return (
            f"a folder of {chosen}{len(self.paths):,} images{labels}, compared with the data of {self.run.workdir}"
            f"{self._features_note}"
        )

    def check(self) -> None:
        """Checks the images and the folder.

        Raises: UserError if there are fewer images than --n, if an image is damaged or has another size than the data's images,
        or if evaluation.json can't be written.
        """
        if self.n > (most := len(self.paths)):
            raise UserError(f"n is {self.n}, and {self.folder} has {most} images; the fix: --n {most}")
        if not os.access(self.folder, os.W_OK):
            raise UserError(
                f"{self.folder} can't be written to, and its numbers are kept in its evaluation.json; the fix: copy the folder"
            )
        check_targets(self.folder, ["evaluation.json"])
        # Reads all images now, so that an error comes before a classifier is trained for the features.
        _ = self.generated

    @cached_property
    def paths(self) -> list[Path]:
        """The files of all images, in the order of their names."""
        return sorted(self.folder / file.path for file in list_images(self.folder).files)

    @cached_property
    def n(self) -> int:
        """Number of images that are compared, and of training images that baselines use."""
        return self.options.n or min(MAX_DEFAULT_IMAGES, self.data.sizes["train"], len(self.paths))

    @cached_property
    def labels(self) -> list[int] | None:
        """The label of each of `paths`. None: the data have no labels, or the label of some image is not known."""
        if "label" not in self.data.spec:
            return None
        names = class_names(self.data.spec)
        classes = self.data.spec["label"].classes or 0
        numbers = {name: i for i, name in enumerate(names)}
        # If classes have numbers as names, as folders 1 to 12, then a sub-folder's number is always a name.
        if not any(name.isdecimal() for name in names):
            numbers |= {str(i): i for i in range(classes)}
        found = [_label_of(path.relative_to(self.folder), numbers) for path in self.paths]
        known = [label for label in found if label is not None and label < classes]
        return known if len(known) == len(found) else None

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @property
    def unlabelled_reason(self) -> str:
        if "label" not in self.data.spec:
            return f"the data of {self.run.workdir} have no labels"
        last = (self.data.spec["label"].classes or 1) - 1
        names = class_names(self.data.spec)
        known = ", ".join(names[:3]) + ", ..." if names else f"0 to {last}"
        return (
            f"{self.folder} has none; the fix: move its images into sub-folders that are named as the classes ({known})"
        )

    @property
    def label_rule(self) -> LabelRule | None:
        return None

    @property
    def request(self) -> dict[str, object]:
        """Always {}: nothing is generated, because the images exist already."""
        return {}

    @cached_property
    def generated(self) -> ImageSet:
        """n images, drawn by the seed without replacement if the folder has more. Raises: UserError for an unsuitable image."""
        # Names may be in the order of the classes, so the first n would be a biased choice.
        rng = np.random.default_rng(self.options.seed)
        chosen = np.sort(rng.permutation(len(self.paths))[: self.n])
        with ThreadPoolExecutor() as pool:
            images = np.stack(list(pool.map(self._read, (self.paths[i] for i in chosen))))
        return ImageSet(images, None if self.labels is None else np.array(self.labels, np.int32)[chosen])

    def _read(self, path: Path) -> np.ndarray:
        height, width, channels = self.data.spec["image"].shape
        try:
            image = pixels.decode(path, None, channels)
        except ValueError as error:
            raise UserError(f"{path} {error}; the fix: remove it") from None
        if image.shape[:2] != (height, width):
            raise UserError(
                f"{path} is {image.shape[0]}x{image.shape[1]} (height x width), and the images of {self.run.workdir} are "
                f"{height}x{width}; the fix: images of that size"
            )
        return image

    @cached_property
    def generated_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that depend on the folder's images alone.

        It has no entries about the generation of the images, which is not known.
        """
        image, label = self.generated.image, self.generated.label
        content = sha256(image) if label is None else sha256(image, label)
        return self._data_protocol | {"n_fake": self.n, "seed": self.options.seed, "folder": content}


def _label_of(path: Path, numbers: dict[str, int]) -> int | None:
    """Returns the label of an image, or None if it is not known.

    The name of its sub-folder decides. An image without a sub-folder has its label in the file name, such as
    "0_label3.png", as `sample.py --files` writes it.

    path: relative to the folder of images. numbers: {name of a sub-folder: label}.
    """
    if len(path.parts) > 1:
        return numbers.get(path.parts[0])
    match = LABEL.search(path.stem)
    return int(match[1]) if match else None
