"""The medium of images: a sheet of all samples, a file for each sample, animations, and the nearest training images."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from gen.core import LAUNCH, Array, Given, Medium, Request, RunView, Shown
from gen.data.images.patches import show_samples, to_tokens
from gen.data.images.pixels import to_bytes
from gen.errors import UserError
from gen.families.labels import class_names
from gen.media.arrays import FILES, name_samples
from gen.media.pictures import check_given, check_pictures, embed_pictures, known_cells, read_pictures
from gen.media.prompts import encode_prompts

# A picture whose longer side has fewer pixels is enlarged up to this size, so that its details can be seen.
MIN_SIDE = 28 * 16
# With at most this number of classes, each class gets a column of the sheet. With more, the columns would be too short.
MAX_COLUMNS = 20
GREY = 128
FRAME_MILLISECONDS = 100


@dataclass(frozen=True)
class ImageOptions:
    """The pictures and prompts that are given to the model, and the additional files to write."""

    image: str | None = None
    """File of the picture to inpaint, upscale, colorize or edit, for a model with this --mode. For a model of pairs, it
    is the source to translate."""
    mask: str | None = None
    """For --mode inpaint: file of a grey picture of the size of --image. White pixels are filled, and black pixels are
    kept."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Caption of the samples, for a model that reads captions. Repeat the option to give several captions: the samples
    use them in turn. Default: captions of validation examples."""
    files: bool = False
    """Also write each sample as a separate PNG into the sub-folder samples. Its name has its number, and its label if
    any."""
    animation: Literal["gif", "webp"] | None = None
    """Also write an animation of an interpolation or a traversal, row by row. gif has 256 colors per frame. webp has
    all colors."""
    neighbours: bool = False
    """Also write neighbours.png, which shows the nearest training images next to each sample. Needs the data set."""
    data_dir: str | None = field(default=None, metadata=LAUNCH)
    """Folder of the data set, if it was moved after training."""


@dataclass(frozen=True)
class Images(Medium):
    """Images in [-1, 1], float32 [n, height, width, channels], or tokens of their patches, int32 [n, *grid]."""

    features: ClassVar[Mapping[str, int]] = {"image": 3, "label": 0, "caption": 1}
    options: ClassVar[type] = ImageOptions

    def read_options(self, options: ImageOptions) -> ImageOptions:
        """Returns the options with pictures instead of their paths, see `embed_pictures`.

        Raises: UserError if a picture can't be read.
        """
        return embed_pictures(options)

    def check(self, options: ImageOptions, request: Request, run: RunView) -> None:
        """Raises: UserError if the mode needs a picture that is not given, or does not use a picture that is given."""
        check_pictures(request, options.image, options.mask, "source" in run.spec)

    def give(self, options: ImageOptions, run: RunView) -> Given:
        """Returns the inputs of the model: pictures and prompts.

        Pictures are "image" and "mask", as `read_pictures` returns them. For a model of pairs, the picture is "source".
        For a model of patches, "tokens" and "known" are added, see `add_tokens`. Without pictures, the arrays are
        validation examples. For prompts, see `encode_prompts`.

        Raises: UserError if the mask has colours, if the model reads patches and a picture has not the size of the
        run's images, or if the run can't read a prompt.
        """
        found: dict[str, np.ndarray] = read_pictures(options.image, options.mask)
        if "source" in run.spec and found.keys() == {"image"}:
            found = {"source": found["image"]}
        return Given({**(self.add_tokens(found, run) or run.reference()), **encode_prompts(options.prompt, run)})

    def add_tokens(self, given: Mapping[str, np.ndarray], run: RunView) -> dict[str, np.ndarray]:
        """Returns the given arrays. If they are a picture and a mask for a model of patches, adds "tokens" and "known".

        given: "image" [m, H, W, C] and "mask" [1, H, W, 1]. "tokens": int32 [m, *grid]. "known": bool [1, *grid],
        whether a token is kept.

        Raises: UserError if the picture or the mask has not the size and the channels of the run's images.
        """
        if given.keys() != {"image", "mask"} or "tokens" not in run.spec:
            return dict(given)
        check_given(given, run.spec["image"].shape)
        tokens = np.asarray(to_tokens(jnp.asarray(given["image"]), run.spec))
        return {**given, "tokens": tokens, "known": known_cells(given["mask"], tokens.shape[1:])}

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: ImageOptions | None = None) -> Shown:
        """Returns samples.png, a sheet of all samples, and the files that the options ask for.

        The result also has arrays: "label_names" if samples have labels with names, and "neighbour_index" and
        "neighbour_distance" (see `Neighbours`) if neighbours are asked for.

        Raises: UserError for an animation of samples that are not in rows, [rows, columns, H, W, C].
        """
        samples = {name: np.asarray(x) for name, x in show_samples(samples, run.spec).items()}
        files, names = {"samples.png": picture(samples)}, class_names(run.spec)
        arrays: dict[str, np.ndarray] = {}
        if names and "labels" in samples:
            arrays["label_names"] = np.array(names)
        if options is None:
            return Shown(files, arrays)
        images = np.asarray(samples["samples"]).reshape(-1, *run.spec["image"].shape)
        if options.files:
            files |= separate(to_bytes(images), samples.get("labels"), names)
        if options.animation is not None:
            if np.ndim(samples["samples"]) != 5:
                raise UserError("only samples in rows can be animated; the fix: --mode interpolate")
            files[f"samples.{options.animation}"] = animate(to_bytes(images), options.animation)
        if options.neighbours:
            # Imported here, because the import is slow, and most calls do not need it.
            from gen.metrics.neighbours import neighbours

            near = neighbours(run.build_data(options.data_dir), images)
            files["neighbours.png"] = png(to_bytes(np.concatenate([images[:, None], near.image], axis=1)))
            arrays |= {"neighbour_index": near.index, "neighbour_distance": near.distance}
        return Shown(files, arrays)

    def to_images(self, samples: Mapping[str, Array], run: RunView) -> Mapping[str, Array]:
        """Returns the arrays with "samples" as images if they are tokens of patches.

        Other samples are returned unchanged.
        """
        return show_samples(samples, run.spec)


IMAGE = Images()


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Returns one image, uint8 [height, width, C], with all images in rows and columns, and a grey line between them.

    images: uint8 [N, H, W, C], or in rows [rows, columns, H, W, C].
    columns: number of columns, for images that are not in rows. None: a nearly square sheet.
    """
    if images.ndim == 4:
        columns = columns or math.ceil(math.sqrt(len(images)))
        rows = math.ceil(len(images) / columns)
        blank = np.full((rows * columns - len(images), *images.shape[1:]), GREY, images.dtype)
        images = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    # Each image gets a line on its right and below it. The lines at the border are cut off again.
    spaced = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=GREY)
    return np.concatenate(np.concatenate(spaced, axis=1), axis=1)[:-1, :-1]


def png(images: np.ndarray, columns: int | None = None) -> bytes:
    """Returns a PNG of a sheet of images, enlarged if it is small. images, columns: as in `grid`."""
    return encode_png(enlarge(grid(images, columns)))


def enlarge(pixels: np.ndarray) -> np.ndarray:
    """Enlarges an image [H, W, C] by an integer factor, the largest with which no side is longer than MIN_SIDE.

    Each pixel becomes a square. Larger images stay as they are.
    """
    factor = max(1, MIN_SIDE // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns a PNG of one image, uint8 [H, W, C]."""
    content = io.BytesIO()
    to_pillow(pixels).save(content, format="PNG")
    return content.getvalue()


def to_pillow(pixels: np.ndarray) -> Image.Image:
    """Converts one image, uint8 [H, W, C], to an image of Pillow."""
    # Pillow has no mode for a grey image with a channel axis.
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def separate(images: np.ndarray, labels: np.ndarray | None, names: tuple[str, ...]) -> dict[str, bytes]:
    """Returns {file name: PNG} of images, uint8 [N, H, W, C], such as "samples/00003_label7_dog.png".

    labels, names: as in `name_samples`.
    """
    stems = name_samples(len(images), labels, names)
    return {f"{FILES}/{stem}.png": encode_png(image) for stem, image in zip(stems, images, strict=True)}


def animate(images: np.ndarray, kind: Literal["gif", "webp"]) -> bytes:
    """Returns an endless animation of images, uint8 [N, H, W, C], enlarged if they are small.

    GIF has 256 colors per frame.
    """
    first, *others = (to_pillow(enlarge(image)) for image in images)
    content = io.BytesIO()
    lossless = {"lossless": True} if kind == "webp" else {}
    first.save(
        content, kind.upper(), save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0, **lossless
    )
    return content.getvalue()


def picture(samples: Mapping[str, np.ndarray]) -> bytes:
    """Returns a PNG of a sheet of "samples", float in [-1, 1], [N, H, W, C] or in rows [rows, columns, H, W, C].

    If there is a "source" [N, H, W, C] of the same shape as the samples, each sample has its source on its left.

    If "labels", int [N], are 0, 1, ..., classes - 1, 0, 1, ..., with 3 to MAX_COLUMNS classes, each class gets a
    column.
    """
    labels = np.asarray(samples.get("labels", []))
    classes = int(labels.max(initial=0)) + 1
    in_turn = 2 < classes <= MAX_COLUMNS and np.array_equal(labels, np.arange(len(labels)) % classes)
    images = np.asarray(samples["samples"])
    # A translation can only be judged next to its source.
    if "source" in samples and samples["source"].shape == images.shape:
        images = np.concatenate([samples["source"], images], axis=2)
    return png(to_bytes(images), classes if in_turn else None)
