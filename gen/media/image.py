"""Images: grids of samples as PNG files, single files, animations, and the nearest training images next to samples."""

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

# Pixels of the longer side. A smaller grid is enlarged, so that its details can be seen.
MIN_SIDE = 28 * 16
# With at most this number of classes, each class gets a column. With more, columns would be too short to compare.
MAX_COLUMNS = 20
GREY = 128
FRAME_MILLISECONDS = 100


@dataclass(frozen=True)
class ImageOptions:
    """Inputs to the model, such as pictures and prompts, and the additional files that are written."""

    image: str | None = None
    """File of a picture to inpaint, upscale, colorize or edit, for models with such a --mode. For a run on pairs: the source to
    translate."""
    mask: str | None = None
    """File of a grey picture of the same size, for --mode inpaint. The white part is filled, and the black part is kept."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Caption of the samples, for a model that reads captions. Repeat the option for several captions, which samples use in turn.
    Default: captions of validation examples."""
    files: bool = False
    """Also write each sample as a PNG of its own into the sub-folder samples. Its name has its number, and its label if any."""
    animation: Literal["gif", "webp"] | None = None
    """Also write an animation of an interpolation or a traversal, row by row. gif has 256 colors per frame, and webp all colors."""
    neighbours: bool = False
    """Show the nearest training images next to each sample. Needs the data set."""
    data_dir: str | None = field(default=None, metadata=LAUNCH)
    """Folder of the data set, if it was moved after training."""


@dataclass(frozen=True)
class Images(Medium):
    """Images float32 [n, height, width, channels] in [-1, 1], or tokens of patches of their pixels."""

    features: ClassVar[Mapping[str, int]] = {"image": 3, "label": 0, "caption": 1}
    options: ClassVar[type] = ImageOptions

    def read_options(self, options: ImageOptions) -> ImageOptions:
        """Returns the options with the content of the pictures in place of their paths. Raises: UserError if one can't be read."""
        return embed_pictures(options)

    def check(self, options: ImageOptions, request: Request, run: RunView) -> None:
        """Raises: UserError if the request's mode takes other pictures than those that are given."""
        check_pictures(request, options.image, options.mask, "source" in run.spec)

    def give(self, options: ImageOptions, run: RunView) -> Given:
        """Returns the given pictures, or validation examples if none are given, and the prompts. Of a run of pairs, the picture is
        the "source".

        A picture with a mask is also given as tokens if the data have patches of pixels: "tokens" and "known", [1, *grid].

        Raises: UserError for a mask with colours, for a picture with patches that has not the size of the run, or for a prompt that
        the run can't read.
        """
        found: dict[str, np.ndarray] = read_pictures(options.image, options.mask)
        if "source" in run.spec and found.keys() == {"image"}:
            found = {"source": found["image"]}
        return Given({**(self.add_tokens(found, run) or run.reference()), **encode_prompts(options.prompt, run)})

    def add_tokens(self, given: Mapping[str, np.ndarray], run: RunView) -> dict[str, np.ndarray]:
        """Returns given pictures [m, H, W, C] and a mask [1, H, W, 1] with "tokens" [m, *grid] and "known" [1, *grid], if the data
        have patches of pixels. Raises: UserError if they have not the size and the channels of the run.
        """
        if given.keys() != {"image", "mask"} or "tokens" not in run.spec:
            return dict(given)
        check_given(given, run.spec["image"].shape)
        tokens = np.asarray(to_tokens(jnp.asarray(given["image"]), run.spec))
        return {**given, "tokens": tokens, "known": known_cells(given["mask"], tokens.shape[1:])}

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: ImageOptions | None = None) -> Shown:
        """Returns samples.png, a grid, and the files that the options ask for.

        The arrays are the names of the classes if samples have labels, and the indices and distances of neighbours.

        Raises: UserError for an animation of samples that are not in rows.
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
            # Imported here, because the import compiles programs. Other commands start faster without it.
            from gen.metrics.neighbours import neighbours

            near = neighbours(run.build_data(options.data_dir), images)
            files["neighbours.png"] = png(to_bytes(np.concatenate([images[:, None], near.image], axis=1)))
            arrays |= {"neighbour_index": near.index, "neighbour_distance": near.distance}
        return Shown(files, arrays)

    def to_images(self, samples: Mapping[str, Array], run: RunView) -> Mapping[str, Array]:
        """Returns samples that are tokens of patches of pixels as images, and other samples as they are."""
        return show_samples(samples, run.spec)


IMAGE = Images()


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Returns one array [height, width, C] of all images, with a grey line between them.

    images: [N, H, W, C], laid out in `columns` columns (None: a near square), or [rows, columns, H, W, C] as laid out already.
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
    """Returns a PNG of a grid of uint8 images, enlarged by a whole factor if it is small."""
    return encode_png(enlarge(grid(images, columns)))


def enlarge(pixels: np.ndarray) -> np.ndarray:
    """Returns one image [H, W, C] with each pixel repeated, so that the longer side is near MIN_SIDE if it was shorter."""
    factor = max(1, MIN_SIDE // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns a PNG of one image, uint8 [H, W, C]."""
    content = io.BytesIO()
    to_pillow(pixels).save(content, format="PNG")
    return content.getvalue()


def to_pillow(pixels: np.ndarray) -> Image.Image:
    """Returns one image, uint8 [H, W, C], as Pillow holds it."""
    # Pillow has no mode for a grey image with a channel axis.
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def separate(images: np.ndarray, labels: np.ndarray | None, names: tuple[str, ...]) -> dict[str, bytes]:
    """Returns each image, uint8 [N, H, W, C], as a PNG: samples/00003_label7_dog.png. Without labels: samples/00003.png.

    labels: [N]. names: of the classes, if the data have them.
    """
    stems = name_samples(len(images), labels, names)
    return {f"{FILES}/{stem}.png": encode_png(image) for stem, image in zip(stems, images, strict=True)}


def animate(images: np.ndarray, kind: Literal["gif", "webp"]) -> bytes:
    """Returns an endless animation of images, uint8 [N, H, W, C], enlarged if they are small. A GIF has 256 colors a frame."""
    first, *others = (to_pillow(enlarge(image)) for image in images)
    content = io.BytesIO()
    lossless = {"lossless": True} if kind == "webp" else {}
    first.save(
        content, kind.upper(), save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0, **lossless
    )
    return content.getvalue()


def picture(samples: Mapping[str, np.ndarray]) -> bytes:
    """Returns a PNG of "samples", each on the right of its "source" if that has the same shape.

    If "labels" count through the classes, each class gets a column.
    """
    labels = np.asarray(samples.get("labels", []))
    classes = int(labels.max(initial=0)) + 1
    in_turn = 2 < classes <= MAX_COLUMNS and np.array_equal(labels, np.arange(len(labels)) % classes)
    images = np.asarray(samples["samples"])
    # A translation can only be judged next to its source.
    if "source" in samples and samples["source"].shape == images.shape:
        images = np.concatenate([samples["source"], images], axis=2)
    return png(to_bytes(images), classes if in_turn else None)
