"""Flows that are given a part of a picture: the pixels that masks show, the input of the network, and the pixels that samples keep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import Array, Feature, Params
from gen.errors import UserError
from gen.families.conditions import Condition
from gen.families.flow import (
    AnyOf,
    Brightness,
    Coarse,
    DiT,
    Flow,
    FlowMatching,
    Half,
    Mask,
    Rectangle,
    Request,
    Scattered,
    UNet,
)
from gen.families.flow.masks import NOTHING_GIVEN, Known, draw_known
from gen.optim import Optimizer

KEYS = jax.random.split(jax.random.key(1), 2000)
SPEC = {"image": Feature((6, 4, 3), levels=256)}
TINY = Flow(network=UNet((4,)), given=AnyOf((Rectangle(), Coarse(2))), likelihood_steps=2)
PICTURE = np.random.default_rng(0).uniform(-1, 1, (6, 4, 3)).astype(np.float32)


def draw(mask: Mask, x: Array | np.ndarray = PICTURE) -> tuple[np.ndarray, np.ndarray]:
    """Returns 2000 draws of a mask: the known values [2000, 6, 4, C], and the mask [2000, 6, 4]."""
    known = jax.jit(jax.vmap(mask.draw, in_axes=(0, None)))(KEYS, jnp.asarray(x))
    return np.asarray(known.image), np.asarray(known.mask)[..., 0]


@pytest.mark.parametrize("mask", [Rectangle(), Half(), Scattered()], ids=lambda mask: type(mask).__name__)
def test_a_mask_shows_the_values_where_it_is_one(mask):
    image, shown = draw(mask)
    assert set(np.unique(shown)) == {0, 1}
    np.testing.assert_array_equal(image, shown[..., None] * PICTURE)


def test_rectangles_are_whole_and_shown_or_hidden():
    _, shown = draw(Rectangle(outside=0.0))
    hidden = shown == 0
    rows, columns = hidden.any(2), hidden.any(1)
    np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        # The positions of a side follow each other: at most one of them comes after a gap.
        assert (np.diff(np.pad(line, ((0, 0), (1, 1))).astype(int), axis=1) == 1).sum(1).max() == 1
    np.testing.assert_array_equal(draw(Rectangle(outside=1.0))[1] == 1, hidden)


def test_halves_are_of_both_axes_and_both_sides():
    _, shown = draw(Half())
    assert len(np.unique(shown, axis=0)) == 4
    np.testing.assert_array_equal(shown.mean((1, 2)), 0.5)


def test_scattered_positions_have_any_density():
    fractions = draw(Scattered())[1].mean((1, 2))
    assert fractions.mean() == pytest.approx(0.5, abs=0.03)
    # The variance of U[0, 1], and that of 24 positions around their rate: E[p (1 - p)] / 24.
    assert fractions.var() == pytest.approx(1 / 12 + 1 / 6 / 24, abs=0.01)


def test_means_of_squares_and_of_channels():
    image, shown = draw(Coarse(2))
    expected = PICTURE.reshape(3, 2, 2, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(image[0], expected, atol=1e-6)
    assert np.unique(shown) == 1 / 4
    image, shown = draw(Brightness())
    np.testing.assert_allclose(image[0], PICTURE.mean(-1, keepdims=True).repeat(3, -1), atol=1e-6)
    assert np.unique(shown) == np.float32(1 / 3)


def test_some_examples_are_hidden_whole_and_each_draw_is_of_its_key():
    x = jnp.tile(jnp.asarray(PICTURE)[None], (2000, 1, 1, 1))
    mask = AnyOf((Coarse(2), Brightness()))
    known = jax.jit(partial(draw_known, mask))(KEYS, x)
    values, counts = np.unique(np.asarray(known.mask)[:, 0, 0, 0], return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 4, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(counts / 2000, [NOTHING_GIVEN, *[(1 - NOTHING_GIVEN) / 2] * 2], atol=0.04)
    few = jax.jit(partial(draw_known, mask))(KEYS[:3], x[:3])
    np.testing.assert_array_equal(few.mask, known.mask[:3])


@pytest.fixture(scope="module")
def params() -> dict[str, Params]:
    """Parameters of TINY, away from their small initial values."""

    def init(key: Array) -> dict[str, Params]:
        params = TINY.flow_model(SPEC).init(key)
        return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)

    return jax.jit(init)(jax.random.key(0))


def sample(params: dict[str, Params], given: dict[str, np.ndarray], **request: object) -> np.ndarray:
    asked = Request(n=2, steps=2, **request)  # pyright: ignore
    run = jax.jit(lambda params, given: TINY.flow_model(SPEC).sample(params, KEYS[:2], given, asked))
    return np.asarray(run(params, given)["samples"])


def test_inpainting_keeps_the_known_pixels_and_reads_them(params):
    mask = np.zeros((1, 6, 4, 1), np.float32)
    mask[:, :3] = 1
    found, other = (
        sample(params, {"image": picture[None], "mask": mask}, mode="inpaint") for picture in (PICTURE, -PICTURE)
    )
    np.testing.assert_array_equal(found[:, :3], PICTURE[None, :3].repeat(2, 0))
    # The same noise, and another known half.
    assert np.abs(found[:, 3:] - other[:, 3:]).max() > 1e-2
    assert np.abs(found[0] - found[1]).max() > 1e-2
    # Hidden pixels are not read.
    changed = np.where(mask == 1, PICTURE, 0.123)[0].astype(np.float32)
    np.testing.assert_array_equal(sample(params, {"image": changed[None], "mask": mask}, mode="inpaint"), found)


def test_upscaling_and_colorizing_give_the_network_what_its_masks_gave_it(params):
    model = TINY.flow_model(SPEC)

    def follow(known: Known) -> np.ndarray:
        """Returns samples of noise by the Euler method in two steps, with these known values."""
        x = jax.vmap(lambda key: jax.random.normal(key, (6, 4, 3)))(KEYS[:2])
        context = jnp.concatenate([jnp.stack([part] * 2) for part in known], axis=-1)
        velocity = jax.jit(model.velocity(params, Condition(), context=context))
        for t in (1.0, 0.5):
            x -= velocity(x, jnp.float32(t), jnp.float32(t - 0.5)) / 2
        return np.clip(x, -1, 1)

    x = jnp.asarray(PICTURE)
    small = PICTURE.reshape(3, 2, 2, 2, 3).mean((1, 3))[None]
    found = sample(params, {"image": small}, mode="upscale", sampler="euler")
    np.testing.assert_allclose(found, follow(Coarse(2).draw(KEYS[0], x)), atol=1e-5)
    grey = PICTURE.mean(-1, keepdims=True)[None]
    found = sample(params, {"image": grey}, mode="colorize", sampler="euler")
    np.testing.assert_allclose(found, follow(Brightness().draw(KEYS[0], x)), atol=1e-5)


def test_an_edit_changes_more_with_its_strength(params):
    given = {"image": PICTURE[None]}
    np.testing.assert_array_equal(sample(params, given, mode="edit", strength=0.0), PICTURE[None].repeat(2, 0))
    # With strength 1, nothing of the picture is left.
    np.testing.assert_allclose(sample(params, given, mode="edit", strength=1.0), sample(params, {}), atol=1e-5)
    near, far = (np.abs(sample(params, given, mode="edit", strength=t) - PICTURE).mean() for t in (0.1, 0.5))
    assert near < far


@pytest.mark.slow
def test_sources_are_read():
    spec = SPEC | {"source": Feature((6, 4, 1), levels=256)}
    model = replace(TINY, network=DiT(1, 8, 2, (2,)), given=None).flow_model(spec)
    source = jnp.asarray(PICTURE)[None, :, :, :1]

    @jax.jit
    def run(key: Array, source: Array) -> tuple[Array, Array]:
        params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), model.init(key))
        batch = {"image": jnp.asarray(PICTURE)[None], "source": source}
        samples = model.sample(params, KEYS[:1], {"source": source}, Request(n=1, steps=1))["samples"]
        return samples, model.loss(FlowMatching(), params, batch, KEYS[:1])[0]

    (found, loss), (other, other_loss) = run(KEYS[0], source), run(KEYS[0], -source)
    assert jnp.abs(found - other).max() > 1e-2
    assert abs(loss - other_loss) > 1e-4


@pytest.mark.slow
def test_a_trained_flow_continues_the_known_half():
    """Pictures of one grey level: the hidden half has the level of the half that is given."""
    config = Flow(network=DiT(1, 32, 2, (2,)), given=Half(), optim=Optimizer(lr=3e-3), likelihood_steps=2)
    model = config.build({"image": Feature((4, 4, 1), levels=256)}, 400)
    update = jax.jit(jax.vmap(model.update, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=1))
    levels = np.random.default_rng(0).uniform(-1, 1, (400, 1, 64, 1, 1, 1)).astype(np.float32)
    state, row, flat = model.init(jax.random.key(0)), jnp.arange(64)[None], np.ones((4, 4, 1), np.float32)
    for step, level in enumerate(levels):
        state, _ = update(state, {"image": level * flat, "row": row}, jax.random.key(step))
    level = np.linspace(-0.8, 0.8, 32, dtype=np.float32)[:, None, None, None]
    mask = np.zeros((1, 4, 4, 1), np.float32)
    mask[:, :2] = 1
    request = Request(n=32, mode="inpaint")
    generate = jax.jit(lambda state, given: model.generate(state, jax.random.key(0), given, request)["samples"])
    made = np.asarray(generate(state, {"image": level * flat, "mask": mask}))
    # Levels drawn without the half that is given would differ from it by 0.6 on average.
    assert np.abs(made - level)[:, 2:].mean() < 0.15


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request(mode="edit", strength=1.5), "strength is 1.5"),
        (lambda: Coarse(1), "use at least 2"),
        (lambda: AnyOf(()), "number of masks is 0"),
        (lambda: Rectangle(outside=2), "outside is 2"),
        (lambda: replace(TINY, given=Coarse(4)).flow_model(SPEC), "do not divide 6x4"),
        (lambda: replace(TINY, given=Brightness()).flow_model({"image": Feature((6, 4, 1))}), "the pictures are grey"),
        (lambda: TINY.flow_model(SPEC | {"source": Feature((3, 4, 3))}), "must have the size of the examples"),
        (lambda: replace(TINY, given=None).flow_model(SPEC).check_mode(Request(mode="inpaint")), "trained with masks"),
        (lambda: TINY.flow_model({"latent": Feature((2, 2, 4))}).check_mode(Request(mode="edit")), "generates latents"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("mode", "given", "message"),
    [
        ("inpaint", {}, "give --image FILE"),
        ("inpaint", {"image": PICTURE[None]}, "give --mask FILE"),
        ("inpaint", {"image": PICTURE[None, :5], "mask": PICTURE[None, ..., :1]}, "the picture has 5x4 pixels"),
        ("inpaint", {"image": PICTURE[None, ..., :1], "mask": PICTURE[None, ..., :1]}, "the picture is grey"),
        ("inpaint", {"image": PICTURE[None], "mask": PICTURE[None, :, :2, :1]}, "the mask has 6x2 pixels"),
        ("upscale", {"image": PICTURE[None]}, "smaller by a whole factor"),
        ("upscale", {"image": PICTURE[None, :3, :4]}, "smaller by a whole factor"),
        ("edit", {"image": PICTURE[None, ..., :1]}, "it must be of 3 channels"),
    ],
)
def test_pictures_that_do_not_fit_are_named(params, mode, given, message):
    with pytest.raises(UserError, match=message):
        TINY.flow_model(SPEC).sample(params, KEYS[:1], given, Request(n=1, mode=mode))
