"""Measures how well a run fills the centre of held-out images: python -m benchmarks.inpainting RUN [--out inpainting.png]

RUN is a flow of images that was trained with masks (--model.given), or a masked model of codes or of patches (GridMLM). Hidden is
the middle half of each side. The baseline fills it with the mean of the training images whose pixels outside the centre are the
nearest. Both are scored by the PSNR of the filled pixels, and by the accuracy of a classifier of the data on the whole images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import tyro

from benchmarks.study import Numbers, table
from gen.core import Array, Key, State
from gen.data.images.pixels import to_bytes
from gen.derived.code_images import CodeImages
from gen.errors import UserError, check_positive, run_command
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.plan import open_subject
from gen.evaluation.score import Options
from gen.families import labels
from gen.media import find_medium
from gen.media.image import Images, png
from gen.metrics.images import ImageSet, extract_features, read_training, to_float
from gen.metrics.psnr import QUERY_CHUNK, psnr

CHUNK = 100
"""Images that are completed at a time."""
SHOWN = 8
"""Images in the picture."""
COLUMNS = {
    "psnr": ("PSNR of the mean, dB", "{:.2f}"),
    "mean": ("mean labelled right", "{:.3f}"),
    "each": ("each", "{:.3f}"),
}


class Filled(NamedTuple):
    """Several completions of each image."""

    each: np.ndarray
    """K completions of each of N images, uint8 [N, K, H, W, C]."""

    @property
    def mean(self) -> np.ndarray:
        """The mean of the completions of each image, uint8 [N, H, W, C]."""
        return np.rint(self.each.mean(1, dtype=np.float32)).astype(np.uint8)


def main(
    run: tyro.conf.Positional[Path],
    n: int = 1000,
    samples: int = 8,
    neighbours: int = 5,
    labelled: bool = False,
    request: tuple[str, ...] = (),
    seed: int = 0,
    split: Literal["test", "validation"] = "test",
    out: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Prints a table: completions by the run, the mean of the nearest training images, and the real images.

    n: first images of the split. samples: completions of each image. neighbours: training images in the mean. labelled: give a conditional
    model the true label; otherwise it is given none. request: more fields of the run's request, as FIELD=VALUE. seed: of the samples.
    split: the images that are completed. out: a picture of the first images: hidden, real, mean of the samples, samples, mean of the
    nearest. trust: modules outside gen that the run's config may name.
    """
    check_positive(n=n, samples=samples, neighbours=neighbours)
    subject = open_run_to_complete(run, Options((run,), seed=seed, split=split, request=request, trust=trust), labelled)
    whole = subject.held_out
    assert whole.label is not None
    held_out = ImageSet(whole.image[:n], whole.label[:n])
    hidden = hide_centre(held_out.image.shape[1:3])
    made = complete(subject, held_out, hidden, samples, labelled)
    near = find_nearest(
        read_training(subject.data, subject.data.sizes["train"]).image, held_out.image, hidden, neighbours
    )
    rows = {
        f"{samples} samples": judge(subject, made, held_out, hidden),
        f"nearest {neighbours} training images": judge(subject, near, held_out, hidden),
        "real": {"each": share_right(subject, held_out.image, held_out.label)},
    }
    print(f"{len(held_out.image):,} images of the {split} split, checkpoint {subject.step}")
    print(table(COLUMNS, rows, {}))
    if out is not None:
        blank = np.where(hidden[None, ..., None], np.uint8(128), held_out.image)
        columns = [blank, held_out.image, made.mean, *np.moveaxis(made.each, 1, 0), near.mean]
        out.write_bytes(png(np.stack([column[:SHOWN] for column in columns], axis=1)))


def open_run_to_complete(run: Path, options: Options, labelled: bool) -> ImageSubject:
    """Returns the run. Raises: UserError if it can't complete images, or if the data have no classifier."""
    subject = open_subject(run, options)
    if not isinstance(subject, ImageSubject) or "inpaint" not in subject.run.model.request.pictures:
        raise UserError(f"{run} completes no images; choose a flow of images with masks, or a GridMLM")
    if subject.feature_shapes[1] is None:
        raise UserError(f"the data of {run} have no classes, and completions are judged by a classifier of them")
    if labelled and not subject.labelled:
        raise UserError(f"--labelled gives labels, and {run} is not conditional; leave it out")
    return subject


def hide_centre(size: Sequence[int]) -> np.ndarray:
    """Returns which pixels of an image are hidden, bool [height, width]: half of each side, in the middle."""
    inside = [(np.arange(side) >= side // 4) & (np.arange(side) < side // 4 + side // 2) for side in size]
    return inside[0][:, None] & inside[1][None, :]


def complete(subject: ImageSubject, images: ImageSet, hidden: np.ndarray, samples: int, labelled: bool) -> Filled:
    """Returns completions of images by the run, which does not see the `hidden` pixels, bool [H, W]."""
    run, n, (height, width) = subject.run, len(images.image), hidden.shape
    # A conditional model without a label: guidance of 0 leaves the label out.
    unlabelled = {"guidance": 0.0} if subject.labelled and not labelled else {}
    request = run.model.request(**{"n": CHUNK * samples, "mode": "inpaint", **unlabelled, **subject.request})
    medium = find_medium(run.config.data, run.spec)
    assert isinstance(medium, Images | CodeImages)
    shown = np.where(hidden[None, ..., None], np.uint8(0), images.image)
    mask = (~hidden).astype(np.float32).reshape(1, height, width, 1)

    @jax.jit
    def generate(state: State, key: Key, given: dict[str, Array]) -> Array:
        return subject.to_images(run.model.generate(state, key, given, request))["samples"]

    found: list[np.ndarray] = []
    for i, start in enumerate(range(0, n, CHUNK)):
        # The last image fills up the last chunk. Samples of an image follow each other.
        rows = np.minimum(np.arange(start, start + CHUNK), n - 1).repeat(samples)
        given = medium.add_tokens({"image": np.asarray(to_float(shown[rows])), "mask": mask}, run.view())
        if labelled and images.label is not None:
            given[labels.GIVEN] = images.label[rows]
        key = jax.random.fold_in(jax.random.key(subject.options.seed), i)
        made = to_bytes(np.asarray(generate(subject.state, key, given)))
        found.append(
            np.where(hidden[None, ..., None], made, images.image[rows]).reshape(CHUNK, samples, *made.shape[1:])
        )
    return Filled(np.concatenate(found)[:n])


def find_nearest(known: np.ndarray, images: np.ndarray, hidden: np.ndarray, neighbours: int) -> Filled:
    """Fills the hidden pixels of each image with the same pixels of the known images whose other pixels are nearest to its own.

    known: uint8 [M, H, W, C]. images: uint8 [N, H, W, C]. neighbours: number of known images, and so of fillings, per image. The
    distance is Euclidean.
    """
    outside, queries = (x[:, ~hidden].reshape(len(x), -1).astype(np.float32) / 255 for x in (known, images))
    norms = np.square(outside).sum(1)
    found: list[np.ndarray] = []
    for start in range(0, len(queries), QUERY_CHUNK):
        # |q - x|^2 without |q|^2, which is the same for all x.
        distance = norms - 2 * queries[start : start + QUERY_CHUNK] @ outside.T
        found.append(np.argsort(distance, axis=1, kind="stable")[:, :neighbours])
    near = known[np.concatenate(found)]
    return Filled(np.where(hidden[None, None, ..., None], near, images[:, None]))


def judge(subject: ImageSubject, filled: Filled, images: ImageSet, hidden: np.ndarray) -> Numbers:
    """Returns the PSNR of the means on the hidden pixels, and the fractions of means and of completions that are classified right."""
    assert images.label is not None
    each = filled.each.reshape(-1, *filled.each.shape[2:])
    repeated = images.label.repeat(filled.each.shape[1])
    return {
        "psnr": psnr(filled.mean[:, hidden], images.image[:, hidden]),
        "mean": share_right(subject, filled.mean, images.label),
        "each": share_right(subject, each, repeated),
    }


def share_right(subject: ImageSubject, images: np.ndarray, label: np.ndarray | None) -> float:
    """Returns the fraction of images whose most likely class, by the classifier of the data, is their label."""
    probabilities = extract_features(subject.features, images)[1]
    assert probabilities is not None
    return float((probabilities.argmax(1) == label).mean())


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.inpainting"))
