"""benchmarks.guidance, samplers and inpainting: their tables, their pictures and their errors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import digamma

from benchmarks import growth, guidance, inpainting, requests, samplers
from gen import core
from gen.core import Dataset, Feature
from gen.data.arrays import from_arrays
from gen.errors import UserError
from gen.evaluation import image_subject, images
from gen.evaluation.image_subject import ImageSubject
from gen.families import flow
from gen.families.flow import sampling
from gen.families.labels import labels_to_generate
from gen.metrics.classifier import Recipe, classifier_features
from gen.metrics.images import read_split, read_training, to_float

SMALL = Recipe((), (16,), steps=100, batch_size=64, learning_rate=3e-3, weight_decay=0.1)


@dataclass(frozen=True)
class Request(core.Request):
    guidance: float = 1.0


def two_classes() -> Dataset:
    """Images 4x4 of a dark and a bright class, with noise."""
    rng, splits = np.random.default_rng(0), {}
    for split, n in {"train": 200, "validation": 100, "test": 100}.items():
        label = np.arange(n) % 2
        image = (60 + 130 * label)[:, None, None, None] + 20 * rng.normal(size=(n, 4, 4, 1))
        splits[split] = {"image": image.clip(0, 255).astype(np.uint8), "label": label}
    return from_arrays(splits, 16, {"label": Feature((), "int32", classes=2)})


def guided(data: Dataset) -> Any:
    """A run that draws the other class with guidance 0, copies training images with 1, and always the same image above it."""
    known = read_training(data, 200)
    by_class = to_float(np.stack([known.image[known.label == c] for c in (0, 1)]))

    def generate(state: Any, key: jax.Array, given: Any, request: Request) -> dict[str, jax.Array]:
        label = labels_to_generate(request.n, None, 2, given)
        drawn = jax.random.randint(key, (request.n,), 0, 100)
        shown = label if request.guidance else 1 - label
        return {"samples": by_class[shown, drawn if request.guidance <= 1 else 0], "labels": label}

    return stub(data, generate, Request)


def stub(data: Dataset, generate: Any, request: type) -> Any:
    """A run with this `generate` and this request."""
    model = SimpleNamespace(generate=generate, init=lambda key: jnp.zeros(()), request=request)
    same: Any = lambda made: made
    return SimpleNamespace(
        model=model,
        workdir=Path("run"),
        digest=str,
        reference=dict,
        to_images=same,
        spec=data.spec,
        config=SimpleNamespace(data=core.Data()),
        view=lambda: SimpleNamespace(spec=data.spec),
        restore=lambda *_: 0,
    )


def flowing(data: Dataset) -> Any:
    """A run that follows the exact velocity from noise to N(mean, std^2), the mean and deviation of the training pixels."""
    pixels = to_float(read_training(data, 200).image)
    mean, std = float(pixels.mean()), float(pixels.std())

    def velocity(x: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
        # E[e - x_0 | x_t] for x_t = (1 - t) x_0 + t e.
        slope = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
        return slope * (x - (1 - t) * mean) - mean

    def generate(state: Any, key: jax.Array, given: Any, request: flow.Request) -> dict[str, jax.Array]:
        noise = jax.random.normal(key, (request.n, 4, 4, 1))
        return {"samples": sampling.generate(velocity, noise, request)}

    return stub(data, generate, flow.Request)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Iterator[None]:
    """Small classifiers, and a cache folder, in which they are trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(images, "PERCEPTRON", SMALL)
        patch.setattr(image_subject, "GENERATE_CHUNK", 200)
        patch.setattr(image_subject, "classifier_features", lambda data: classifier_features(data, SMALL))
        yield


def test_guidance_is_drawn_against_tstr_and_coverage(small, tmp_path, monkeypatch, capsys):
    data = two_classes()
    monkeypatch.setattr(guidance, "open_subject", lambda _, options: ImageSubject(guided(data), 1, data, options))
    out = tmp_path / "guidance.png"
    guidance.main(Path("run"), (0.0, 1.0, 3.0), n=200, out=out)
    header, _, *rows = [
        line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[0] == "|"
    ]
    found = [dict(zip(header[-5:], map(float, row[-5:]), strict=True)) for row in rows]
    assert [row[0] for row in rows] == ["0", "1", "3"]
    assert found[0]["tstr"] < 0.05 < 0.95 < found[1]["tstr"] == pytest.approx(found[1]["trtr"], abs=0.03)
    assert found[2]["coverage"] < 0.2 < 0.8 < found[1]["coverage"]
    drawn = np.asarray(Image.open(out))
    assert all((drawn == color).all(-1).any() for color in growth.COLORS[:3])
    # A second call finds all numbers in the file.
    monkeypatch.setattr(requests, "plan_scores", lambda _: pytest.fail("measured again"))
    guidance.main(Path("run"), (0.0, 1.0, 3.0), n=200, out=out)


def test_samplers_are_compared_by_their_evaluations(small, tmp_path, monkeypatch, capsys):
    data, out = two_classes(), tmp_path / "samplers.png"
    monkeypatch.setattr(samplers, "open_subject", lambda _, options: ImageSubject(flowing(data), 1, data, options))
    samplers.main(Path("run"), (1, 4), n=200, out=out)
    header, _, *rows = [
        line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[0:1] == "|"
    ]
    assert [name for row in rows for name in row[:1]] == ["real", "euler", "heun", "multistep"]
    assert header[-2:] == ["1", "4"]
    # A step of heun has two evaluations.
    assert rows[2][1] == ""
    found = {name: [float(x) for x in row if x] for name, *row in rows}
    # The first step of multistep is one of euler. Then its second order comes nearer to the data.
    assert found["euler"][0] == found["multistep"][0] > found["euler"][1] > found["multistep"][1]
    drawn = np.asarray(Image.open(out))
    assert all((drawn == color).all(-1).any() for color in growth.COLORS)


def completing(data: Dataset) -> Any:
    """A run that fills the hidden pixels with the mean of the known ones, and noise."""

    def generate(state: Any, key: jax.Array, given: Any, request: flow.Request) -> dict[str, jax.Array]:
        if request.mode != "inpaint":
            return {"samples": jnp.zeros((request.n, 4, 4, 1))}
        x, mask = given["image"], given["mask"]
        assert x.shape == (request.n, 4, 4, 1)
        mean = (x * mask).sum((1, 2, 3), keepdims=True) / mask.sum()
        return {"samples": jnp.broadcast_to(mean, x.shape) + 0.2 * jax.random.normal(key, x.shape)}

    return stub(data, generate, flow.Request)


def test_completions_are_compared_with_the_nearest_images(small, tmp_path, monkeypatch, capsys):
    data, out = two_classes(), tmp_path / "inpainting.png"
    monkeypatch.setattr(inpainting, "open_subject", lambda _, options: ImageSubject(completing(data), 1, data, options))
    monkeypatch.setattr(inpainting, "CHUNK", 16)
    inpainting.main(Path("run"), n=50, out=out)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[0] == "|"][2:]
    assert [name for name, *_ in rows] == ["8 samples", "nearest 5 training images", "real"]
    found = {name: [float(x) for x in row if x] for name, *row in rows}
    # The pixels of an image differ from its mean by 20 levels, and the mean of 8 samples by 0.2 * 127.5 / sqrt(8) more.
    error = 20**2 + (0.2 * 127.5) ** 2 / 8 + 20**2 / 12
    # The mean of the logarithm of a chi-squared number with 4 degrees of freedom, relative to that of its mean.
    bias = 10 / np.log(10) * (digamma(2) - np.log(2))
    assert found["8 samples"][0] == pytest.approx(10 * np.log10(255**2 / error) - bias, abs=0.8)
    images, known = read_split(data, "test").image[:50, ..., 0], read_training(data, 200).image[..., 0]
    hidden = np.pad(np.ones((2, 2), bool), 1)
    distance = np.square((images[:, None] - known[None].astype(np.float64)) * ~hidden).sum((2, 3))
    nearest = known[np.argsort(distance, axis=1)[:, :5]].mean(1)
    ratios = 10 * np.log10(255**2 / np.square((nearest - images) * hidden).sum((1, 2)) * 4)
    assert found["nearest 5 training images"][0] == pytest.approx(ratios.mean(), abs=0.02)
    assert min(min(row[-2:]) for row in found.values()) > 0.9
    # Eight rows of twelve columns: hidden, real, mean, samples, and mean of the nearest.
    assert np.asarray(Image.open(out)).shape[1] > 400


def test_a_run_without_samplers_is_one_short_error(monkeypatch, tmp_path):
    data = two_classes()
    monkeypatch.setattr(samplers, "open_subject", lambda _, options: ImageSubject(guided(data), 1, data, options))
    with pytest.raises(UserError, match="choose a flow"):
        samplers.main(Path("run"), out=tmp_path / "samplers.png")


def test_a_run_that_completes_nothing_is_one_short_error(monkeypatch):
    data = two_classes()
    monkeypatch.setattr(inpainting, "open_subject", lambda _, options: ImageSubject(guided(data), 1, data, options))
    with pytest.raises(UserError, match="completes no images"):
        inpainting.main(Path("run"))
    run, unlabelled = completing(data), data._replace(spec={"image": data.spec["image"]})
    monkeypatch.setattr(inpainting, "open_subject", lambda _, options: ImageSubject(run, 1, unlabelled, options))
    with pytest.raises(UserError, match="have no classes"):
        inpainting.main(Path("run"))


def test_a_run_without_classes_is_one_short_error(monkeypatch, tmp_path):
    data = two_classes()
    run, unlabelled = guided(data), data._replace(spec={"image": data.spec["image"]})
    monkeypatch.setattr(guidance, "open_subject", lambda _, options: ImageSubject(run, 1, unlabelled, options))
    with pytest.raises(UserError, match="choose a conditional run"):
        guidance.main(Path("run"), out=tmp_path / "guidance.png")
