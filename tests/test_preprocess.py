"""Preprocessing of images: values, and noise that depends on (key, row) alone."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import Batch, GenerativeModel, Key
from gen.data.images import Images
from gen.data.images.preprocess import preprocess
from gen.data.preprocess import with_preprocess

# Any, because the options of one dict have different types.
PLAIN: dict[str, Any] = {"levels": 256, "flip": False, "dequantize": False, "binarize": None}
KEY = jax.random.key(7)


def batch_of(image: np.ndarray) -> dict[str, jax.Array]:
    n = len(image)
    return {
        "image": jnp.asarray(image, jnp.uint8),
        "label": jnp.arange(n, dtype=jnp.int32),
        "row": jnp.arange(n, dtype=jnp.int32),
        "index": jnp.arange(100, 100 + n, dtype=jnp.int32),
        "weight": jnp.ones(n, jnp.float32),
    }


@pytest.fixture
def grey() -> dict[str, jax.Array]:
    return batch_of(np.random.default_rng(0).integers(0, 256, (16, 6, 5, 3)))


@cache
def compiled(**options: Any) -> Callable[..., Batch]:
    # `training` decides which operations there are, so it is static.
    return jax.jit(partial(preprocess, **PLAIN | options), static_argnames="training")


def seen(batch: Batch, key: Key = KEY, training: bool = True, **options: Any) -> np.ndarray:
    image = compiled(**options)(batch, key, training=training)["image"]
    assert image.dtype == jnp.float32
    assert image.shape == batch["image"].shape
    return np.asarray(image)


@pytest.mark.parametrize("levels", [17, 256])
def test_levels_are_equally_spaced_from_minus_one_to_one(levels):
    x = seen(batch_of(np.arange(levels).reshape(1, 1, levels, 1)), levels=levels).ravel()
    np.testing.assert_allclose(x, np.linspace(-1, 1, levels), atol=1e-7)
    assert x.min() == -1
    assert x.max() == 1


def test_other_entries_of_the_batch_are_kept(grey):
    out = preprocess(grey, KEY, True, **PLAIN)
    assert out.keys() == grey.keys()
    assert all(out[name] is grey[name] for name in grey if name != "image")


@pytest.mark.parametrize("options", [{}, {"dequantize": True}, {"binarize": "dynamic", "flip": True}])
def test_images_are_float32_even_if_x64_is_enabled(grey, options):
    with jax.enable_x64(True):
        out = jax.eval_shape(partial(preprocess, training=True, **PLAIN | options), grey, KEY)
    assert out["image"].dtype == jnp.float32


def test_flip_mirrors_half_of_the_training_images():
    image = np.random.default_rng(0).integers(0, 256, (400, 2, 3, 1))
    # 400 images: 200 are mirrored on average, with a standard deviation of 10.
    plain, flipped = seen(batch_of(image)), seen(batch_of(image), flip=True)
    kept = (flipped == plain).all((1, 2, 3))
    mirrored = (flipped == plain[:, :, ::-1]).all((1, 2, 3))
    assert (kept | mirrored).all()
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(seen(batch_of(image), flip=True, training=False), plain)


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantized_levels_fill_their_bins(levels):
    width = 2 / levels
    v = np.repeat(np.arange(levels), 4000 // levels + 1).reshape(4, -1, 1, 1)
    x = seen(batch_of(v), levels=levels, dequantize=True)
    u = (x - (v * width - 1)) / width  # uniform in [0, 1] if each level fills [v, v + 1] widths above -1
    assert x.min() >= -1
    assert x.max() <= 1
    assert u.min() > -1e-4
    assert u.max() < 1 + 1e-4
    assert abs(u.mean() - 1 / 2) < 0.02
    assert abs(u.var() - 1 / 12) < 0.005
    assert abs(np.corrcoef(u.ravel(), v.ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_the_grey_level_is_the_probability_of_a_binarized_pixel(binarize):
    v = np.broadcast_to(np.arange(17).reshape(1, 1, 17, 1), (40, 50, 17, 1))
    x = seen(batch_of(v), levels=17, binarize=binarize)
    assert set(np.unique(x)) == {-1, 1}
    p = (x > 0).mean((0, 1))[:, 0]
    assert p[0] == 0
    assert p[16] == 1
    np.testing.assert_allclose(p, np.arange(17) / 16, atol=0.05)


def test_static_binarization_depends_on_the_index_alone(grey):
    x = seen(grey, binarize="static")
    # The rows stay, and all other entries are reversed with their index.
    moved = {name: value[::-1] for name, value in grey.items()} | {"row": grey["row"]}
    np.testing.assert_array_equal(seen(moved, jax.random.key(8), binarize="static"), x[::-1])
    other = grey | {"index": grey["index"] + 1}
    assert (seen(other, binarize="static") != x).any()


def test_static_binarization_is_mirrored_as_a_whole(grey):
    x, flipped = seen(grey, binarize="static"), seen(grey, binarize="static", flip=True)
    same, mirrored = ((flipped == y).all((1, 2, 3)) for y in (x, x[:, :, ::-1]))
    assert (same | mirrored).all()
    assert mirrored.any()
    assert same.any()


def test_dynamic_binarization_depends_on_the_key_and_not_on_the_index(grey):
    x = seen(grey, binarize="dynamic")
    assert (seen(grey, jax.random.key(8), binarize="dynamic") != x).any()
    np.testing.assert_array_equal(seen(grey | {"index": grey["index"] + 1}, binarize="dynamic"), x)


def test_noise_does_not_depend_on_how_the_batch_is_split(grey):
    options: dict[str, Any] = {"flip": True, "dequantize": True}
    # As two devices would do it.
    parts = [seen({name: value[s] for name, value in grey.items()}, **options) for s in (slice(0, 8), slice(8, 16))]
    np.testing.assert_array_equal(np.concatenate(parts), seen(grey, **options))


@pytest.mark.parametrize("noise", [{"binarize": "dynamic"}, {"binarize": "static", "flip": True}])
def test_noise_does_not_depend_on_the_position_in_the_array(grey, noise: dict[str, Any]):
    turned = {name: value[::-1] for name, value in grey.items()}
    np.testing.assert_array_equal(seen(turned, **noise)[::-1], seen(grey, **noise))


def test_evaluation_draws_the_same_noise_and_does_not_flip(grey):
    x, flipped = (seen(grey, training=training, dequantize=True, flip=True) for training in (False, True))
    same, mirrored = ((flipped == y).all((1, 2, 3)) for y in (x, x[:, :, ::-1]))
    assert (same | mirrored).all()
    assert mirrored.any()
    assert same.any()


def test_rows_draw_different_noise():
    x = seen(batch_of(np.full((8, 4, 4, 1), 128)), binarize="dynamic")
    assert len({row.tobytes() for row in x}) == 8


def test_a_data_set_of_images_uses_this_preprocessing():
    data = Images(binarize="dynamic", flip=True, batch_size=4).build()
    batch = {name: jnp.asarray(value) for name, value in data.batch(0, 0, range(4)).items()}
    options = {"levels": 17, "flip": True, "dequantize": False, "binarize": "dynamic"}
    np.testing.assert_array_equal(
        data.preprocess(batch, KEY, True)["image"], preprocess(batch, KEY, True, **options)["image"]
    )


def test_a_model_is_given_the_transformed_batch():
    calls = []

    def transform(batch: Batch, key: Key, training: bool) -> Batch:
        calls.append(training)
        return {"x": batch["x"] + 1, "data_key": key}

    # It stands in for update, evaluate and test, and returns what it was given.
    def sees(state: object, batch: Batch, key: Key) -> Any:
        return batch["x"], batch["data_key"], key

    nothing: Any = None
    model = GenerativeModel(
        init=nothing, update=sees, evaluate=sees, generate=nothing, request=nothing, test=sees, protocol={"kept": {}}
    )
    wrapped = with_preprocess(model, transform)
    for name, training in (("update", True), ("evaluate", False), ("test", False)):
        x, data_key, model_key = getattr(wrapped, name)(None, {"x": 1}, KEY)
        assert x == 2
        assert calls.pop() is training
        keys = [jax.random.key_data(key).tolist() for key in (data_key, model_key, KEY)]
        assert keys[0] != keys[1]
        assert keys[2] not in keys[:2]
    assert wrapped.protocol == {"kept": {}}
