"""Pairs of pictures: how they are read, the models that translate sources, and the metric of translations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gen
from gen import sample
from gen.config import Alarms, Config
from gen.core import Feature
from gen.data.images import Images
from gen.errors import UserError
from gen.evaluate import scores
from gen.evaluation import alarms
from gen.evaluation.pairs import PairSubject
from gen.evaluation.plan import open_subject
from gen.evaluation.score import Options
from gen.families.flow import DiT, Flow
from gen.metrics.images import ImageSet
from gen.metrics.psnr import colors_of_levels, nearest_targets, psnr
from gen.runs.trained import TrainedRun
from tests.datasets import assert_same, check_contract, read_split, write_image
from tests.untrained import make_run

N = 10
TARGETS, SOURCES = np.random.default_rng(0).integers(0, 256, (2, N, 6, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder of pairs in sub-folders. The endings of a pair differ, as do the orders of their hashes."""
    folder = tmp_path_factory.mktemp("pairs")
    for i in range(N):
        write_image(folder / "target" / f"{i}.png", TARGETS[i])
        write_image(folder / "source" / f"{i}.bmp", SOURCES[i])
    return folder


def pairs_of(folder: Path, **options: Any) -> Images:
    """Returns data whose three splits are all pairs of a folder."""
    defaults: Any = {
        "name": f"pairs:{folder}",
        "train": "train",
        "validation": "train",
        "test": "train",
        "batch_size": 4,
    }
    return Images(**defaults | options)


def numbers_of(images: np.ndarray, known: np.ndarray = TARGETS) -> list[int]:
    """Returns the position of each image among the known ones."""
    return [int(np.flatnonzero((known == image).all((1, 2, 3)))[0]) for image in images]


def test_a_source_stays_with_its_target(folder):
    data = pairs_of(folder).build()
    assert data.spec == {
        "image": Feature((6, 8, 3), levels=256),
        "source": Feature((6, 8, 3), levels=256, axes=("row", "column", "color")),
    }
    found = read_split(data, "test")
    assert numbers_of(found["image"]) == numbers_of(found["source"], SOURCES)
    assert sorted(numbers_of(found["image"])) == list(range(N))
    # A set that does not fit in memory.
    assert_same(found, read_split(pairs_of(folder, in_memory=0).build(), "test"))
    check_contract(pairs_of(folder).build, 4)


def test_pictures_side_by_side_are_the_same_pairs(folder, tmp_path):
    whole = read_split(pairs_of(folder).build(), "test")
    for i in range(N):
        write_image(tmp_path / "left" / f"{i}.png", np.concatenate([SOURCES[i], TARGETS[i]], axis=1))
        write_image(tmp_path / "right" / f"{i}.png", np.concatenate([TARGETS[i], SOURCES[i]], axis=1))
    for side in ("left", "right"):
        data = pairs_of(tmp_path / side, source=side).build()
        found = read_split(data, "test")
        assert data.spec["image"].shape == (6, 8, 3)
        np.testing.assert_array_equal(TARGETS[numbers_of(found["image"])], found["image"])
        assert numbers_of(found["image"]) == numbers_of(found["source"], SOURCES)
        assert sorted(numbers_of(found["image"])) == sorted(numbers_of(whole["image"]))
    # The same files with the other meaning are other data, in the cache too.
    swapped = pairs_of(tmp_path / "right", source="left").build()
    assert swapped.digest != data.digest
    np.testing.assert_array_equal(read_split(swapped, "test")["image"], found["source"])


def test_crops_and_mirrors_act_on_both(tmp_path):
    for i in range(N):
        for part in ("source", "target"):
            write_image(tmp_path / part / "train" / f"{i}.png", TARGETS[i])
            write_image(tmp_path / part / "val" / f"{i}.png", TARGETS[i])
    data = pairs_of(tmp_path, size=4, flip=True, train=None, validation=None, test=None).resolve()
    assert (data.train, data.validation, data.test) == ("train", "val[:50%]", "val[50%:]")
    built = data.build()
    batch = built.batch(0, 0, range(8))
    assert batch["image"].shape == (8, 4, 4, 3)
    seen = jax.jit(lambda batch: built.preprocess(batch, jax.random.key(0), True))(batch)
    np.testing.assert_array_equal(seen["image"], seen["source"])
    kept = (np.rint((np.asarray(seen["image"]) + 1) * 127.5) == batch["image"]).all((1, 2, 3))
    assert 0 < kept.sum() < 8, "some pairs are mirrored"


def test_the_digest_changes_with_a_source(folder, tmp_path):
    for path in folder.rglob("*.*"):
        write_image(tmp_path / path.relative_to(folder), np.asarray(Image.open(path)))
    assert pairs_of(tmp_path).build().digest == pairs_of(folder).build().digest
    write_image(tmp_path / "source" / "3.bmp", TARGETS[3])
    changed = pairs_of(tmp_path).build()
    assert changed.digest != pairs_of(folder).build().digest
    found = read_split(changed, "test")
    at = numbers_of(found["image"]).index(3)
    np.testing.assert_array_equal(found["source"][at], TARGETS[3])


def add(*paths: str, shape: tuple[int, ...] = (6, 8, 3)) -> Callable[[Path], None]:
    """Returns a function that adds black pictures to a folder of the pair 0."""

    def change(folder: Path) -> None:
        for path in ("source/0.png", "target/0.png", *paths):
            write_image(folder / path, np.zeros(shape if path in paths else (6, 8, 3), np.uint8))

    return change


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (add("target/a.png"), {}, r"no partner of the same name for target/a\.png; add it to the other sub-folder"),
        (
            add("target/a.png", "target/b.png", "source/c.png", "source/d.png", "source/e.png"),
            {},
            r"for target/a\.png, target/b\.png, source/c\.png and 2 more; add",
        ),
        (add("source/0.bmp"), {}, r"source: 0\.(bmp|png) and 0\.(bmp|png) would have one partner; rename"),
        (add("source/1.png", "target/1.bmp", shape=(4, 8, 3)), {"size": 4}, None),
        (add("source/0.png", shape=(4, 8, 3)), {}, r"0\.png is 6x8, and its source 4x8"),
        (add("source/0.png", shape=(4, 8, 3)), {"size": 4}, r"0\.png is 6x8, and its source 4x8"),
        (add(), {"skip_bad": True}, "remove the pairs that can't be read"),
        (lambda folder: write_image(folder / "target" / "0.png", TARGETS[0]), {}, "there is no sub-folder source"),
        (lambda folder: write_image(folder / "0.png", TARGETS[0][:, :7]), {"source": "left"}, "has an odd width"),
        (lambda folder: None, {"name": "pairs:"}, "has no path; the fix: --data.name pairs:PATH"),
        (lambda folder: None, {"name": "digits", "source": "left"}, "--data.source is for pairs"),
    ],
)
def test_pairs_that_do_not_fit_are_one_short_error(change, options, message, tmp_path):
    change(tmp_path)
    if message is None:
        pairs_of(tmp_path, **options).build()
        return
    with pytest.raises(UserError, match=message):
        pairs_of(tmp_path, **options).build()


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory) -> Path:
    """An untrained flow of the pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        config = Config(model=Flow(network=DiT(1, 8, 2, (2,))), data=pairs_of(folder, batch_size=8), steps=5)
        return make_run(tmp_path_factory.mktemp("runs") / "pairs", config)


@pytest.mark.slow
def test_a_run_translates_a_picture(workdir, folder, tmp_path):
    asked = [str(workdir), "--image", str(folder / "source" / "3.bmp"), "--n", "2", "--steps", "1"]
    assert sample.main([*asked, "--out", str(tmp_path)]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["samples"].shape == (2, 6, 8, 3)
        np.testing.assert_array_equal(np.rint((arrays["source"] + 1) * 127.5), SOURCES[[3, 3]])
    assert sample.main(["--verify", str(tmp_path / "manifest.json")]) == 0
    assert json.loads((tmp_path / "manifest.json").read_text())["medium"]["image"].startswith("data:")
    # Two columns of 8 pixels, each with a source of 8 pixels, and a line between them: 33 by 6.
    with Image.open(tmp_path / "samples.png") as shown:
        assert shown.width * 6 == shown.height * 33


def test_other_samples_translate_validation_examples(workdir):
    made = gen.open(workdir).generate(n=N + 1, steps=1)
    numbers = numbers_of(np.rint((made["source"] + 1) * 127.5), SOURCES)
    assert sorted(numbers[:N]) == list(range(N)) and numbers[N] == numbers[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "small.png"}, "the picture has 2x2 pixels, and the run has 6x8"),
        ({"image": "grey.png"}, "the picture is grey, and it must be of 3 channels"),
        ({"mask": "grey.png"}, "--mask is not used by mode generate"),
        ({"image": "grey.png", "mode": "edit"}, "mode edit is for flows without sources"),
        ({"label": 0}, "the model is not conditional"),
    ],
)
def test_a_source_that_does_not_fit_is_one_short_error(workdir, tmp_path, settings, message):
    write_image(tmp_path / "small.png", np.zeros((2, 2, 3), np.uint8))
    write_image(tmp_path / "grey.png", np.zeros((6, 8), np.uint8))
    paths: dict[str, Any] = {
        name: str(tmp_path / x) if name in ("image", "mask") else x for name, x in settings.items()
    }
    with pytest.raises(UserError, match=message):
        gen.open(workdir).generate(n=1, steps=1, **paths)


def test_a_flow_of_pairs_is_not_conditional():
    spec = {name: Feature((6, 8, 3), levels=256) for name in ("image", "source")}
    with pytest.raises(UserError, match="can't also read labels"):
        Flow(conditional=True).build({**spec, "label": Feature((), "int32", classes=2)}, 5)


def test_a_missing_source_names_the_option_of_the_command_line():
    model = Flow(network=DiT(1, 8, 2, (2,))).build({name: Feature((6, 8, 3)) for name in ("image", "source")}, 5)

    def generate(key: jax.Array) -> dict[str, jax.Array]:
        return model.generate(model.init(key), key, {}, model.request(n=1))

    with pytest.raises(UserError, match="mode generate needs a picture: give --image FILE"):
        jax.eval_shape(generate, jax.random.key(0))


def echo(state: Any, key: jax.Array, given: Any, request: Any) -> dict[str, jax.Array]:
    """The `generate` of a model that returns the source as its translation."""
    source = jnp.asarray(given["source"])[jnp.arange(request.n) % len(given["source"])]
    return {"samples": source, "source": source}


def test_translations_are_scored_against_their_own_targets(workdir, monkeypatch):
    subject = open_subject(workdir, Options((workdir,), n=N))
    assert isinstance(subject, PairSubject)
    echoing = replace(subject.run, model=subject.run.model._replace(generate=echo))
    monkeypatch.setattr(TrainedRun, "restore", lambda *_: jnp.zeros(()))
    monkeypatch.setattr("gen.evaluation.plan.open_run", lambda *_: echoing)
    found = scores(Options((workdir,), n=N, metrics=("psnr",)))
    error = np.square(TARGETS.astype(float) - SOURCES).mean((1, 2, 3))
    assert found is not None
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["metrics"]["psnr"] == pytest.approx((10 * np.log10(255**2 / error)).mean())
    assert evaluation["metrics"]["psnr_source"] == evaluation["metrics"]["psnr"]
    # The sources are also in the training split, so the nearest has the very target.
    assert evaluation["metrics"]["psnr_nearest"] == pytest.approx(10 * np.log10(255**2 * 12))
    assert evaluation["protocol"]["psnr"]["sources"] == "test"


def test_alarms_translate_the_sources_of_the_real_images(folder):
    data = pairs_of(folder).build()
    seen = []

    def generate(state: Any, key: jax.Array, given: Any, request: Any) -> dict[str, jax.Array]:
        seen.append(given["source"])
        return echo(state, key, given, request)

    model = Flow(network=DiT(1, 8, 2, (2,))).build(data.spec, 5)._replace(generate=generate)
    watch = alarms.watch(Alarms("warn", samples=N), data, model)
    assert watch.comparison is not None
    watch.comparison.compare({})  # pyright: ignore
    real = np.rint((np.asarray(watch.comparison.real) + 1) * 127.5)
    assert numbers_of(real) == numbers_of(np.rint((seen[0] + 1) * 127.5), SOURCES)


def test_trivial_translations():
    known = ImageSet(TARGETS[:5], None, source=SOURCES[:5])
    noisy = np.clip(SOURCES[[4, 2]].astype(int) + 3, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(nearest_targets(known, ImageSet(noisy, None, source=noisy)), TARGETS[[4, 2]])
    # Two levels of the source, and a third that is not known.
    source = np.array([0, 0, 255, 255], np.uint8).reshape(1, 2, 2, 1)
    target = np.array([[10, 0], [20, 2], [30, 4], [50, 8]], np.uint8).reshape(1, 2, 2, 2)
    asked = np.array([255, 0, 7], np.uint8).reshape(1, 1, 3, 1)
    made = colors_of_levels(ImageSet(target, None, source=source), ImageSet(asked, None, source=asked))
    assert made.reshape(3, 2).tolist() == [[40, 6], [15, 1], [28, 4]]
    assert psnr(np.zeros((2, 1, 1, 1), np.uint8), np.array([255, 51], np.uint8).reshape(2, 1, 1, 1)) == pytest.approx(
        (0 + 20 * np.log10(5)) / 2
    )
