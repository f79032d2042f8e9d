"""Tokenizers: their networks on one, two and three axes, PSNR and SSIM by hand, metrics of a split, reconstructions, and errors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.config import Alarms
from gen.core import Feature
from gen.errors import UserError
from gen.evaluation.alarms import build_alarms, check_limits
from gen.evaluation.measure import measure
from gen.families.gan.losses import RelativisticAverage
from gen.families.tokenizer import FSQ, KL, L1, VQ, Adversary, Likelihood, Perceptual, Residual, Tokenizer
from gen.families.tokenizer.model import Request, summarize
from gen.families.tokenizer.quality import psnr, ssim
from gen.families.vae import DiscretizedLogistic
from gen.networks import discriminator, tokenizer
from gen.networks.dtypes import module_dtypes
from gen.networks.layers import Conv
from gen.optim.adapters import LoRA

RNG = np.random.default_rng(0)
SPEC = {"image": Feature((8, 8, 1), levels=17), "label": Feature((), "int32", classes=3)}
TINY = Tokenizer(network=tokenizer.Residual((4,), (2,)), bottleneck=FSQ((3, 2)))


def images(n: int, side: int = 8, channels: int = 1) -> np.ndarray:
    return RNG.uniform(-1, 1, (n, side, side, channels)).astype(np.float32)


def batch_of(n: int) -> dict[str, np.ndarray]:
    row = np.arange(n, dtype=np.int32)
    return {"image": images(n), "label": row % 3, "row": row, "weight": np.ones(n, np.float32)}


def mapped(function, *arguments):
    """Returns a compiled function of the model under the mapped axis "data" of size one."""
    return jax.jit(jax.vmap(function, in_axes=None, out_axes=None, axis_name="data", axis_size=1))(*arguments)


# --- networks ---


@pytest.mark.parametrize("axes", [(14,), (9, 14), (3, 5, 4)])
def test_networks_of_any_number_of_axes(axes):
    arch, dtypes = tokenizer.Residual((4, 6), (2, 2)), module_dtypes("float32", "float32")
    x = jnp.asarray(RNG.normal(size=(2, *axes, 3)), jnp.float32)
    encoder, decoder = arch.encoder(5, dtypes), arch.decoder((*axes, 2), dtypes)
    h, _ = jax.jit(encoder.init_with_output)(jax.random.key(0), x)
    grid = tuple(-(-n // 4) for n in axes)
    assert h.shape == (2, *grid, 5) and arch.grid(axes) == grid
    y, _ = jax.jit(decoder.init_with_output)(jax.random.key(1), h)
    assert y.shape == (2, *axes, 2)


@pytest.mark.parametrize(("stride", "transposed"), [(1, False), (2, False), (2, True)])
def test_a_convolution_of_one_axis_is_that_of_an_image_of_one_column(stride, transposed):
    conv, x = Conv(4, 4, stride, transposed), jnp.asarray(RNG.normal(size=(2, 9, 3)), jnp.float32)
    params = conv.init(jax.random.key(0), x)["params"]
    # Padding SAME puts the second column of a kernel of side 4 on the only column of the image, and the third if it is transposed.
    wide = {**params, "kernel": jnp.zeros((4, 4, 3, 4)).at[:, 1 + transposed].set(params["kernel"])}
    found, image = (np.asarray(conv.apply({"params": p}, v)) for p, v in ((params, x), (wide, x[:, :, None])))
    np.testing.assert_allclose(found, image[:, :, 0], rtol=1e-4, atol=1e-5)


# --- PSNR and SSIM ---


def ssim_by_hand(x: np.ndarray, y: np.ndarray, side: int) -> float:
    """SSIM of two images [H, W] in [-1, 1], window by window. Wang et al. 2004, equation 13."""
    axis = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * 1.5**2))
    weights = np.outer(axis, axis) / np.outer(axis, axis).sum()
    c1, c2, found = (0.01 * 2) ** 2, (0.03 * 2) ** 2, []
    for i in range(x.shape[0] - side + 1):
        for j in range(x.shape[1] - side + 1):
            a, b = (v[i : i + side, j : j + side].astype(np.float64) for v in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            found.append(luminance * (2 * covariance + c2) / (var_a + var_b + c2))
    return float(np.mean(found))


@pytest.mark.parametrize(("side", "window"), [(14, 11), (8, 7)])
def test_ssim_window_by_window(side, window):
    x = images(3, side, 2)
    y = np.clip(x + RNG.normal(0, 0.3, x.shape), -1, 1).astype(np.float32)
    expected = [
        np.mean([ssim_by_hand(a[..., c], b[..., c], window) for c in range(2)]) for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(ssim(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-4)
    np.testing.assert_allclose(ssim(jnp.asarray(x), jnp.asarray(x)), 1, rtol=1e-5)
    flat = jnp.ones((1, side, side, 1))
    np.testing.assert_allclose(ssim(flat, -flat), (1e-4 * 4 - 2) / (2 + 1e-4 * 4), rtol=1e-4)


def test_psnr_by_hand():
    x = images(3)
    y = x.copy()
    y[1] += 0.1
    found = psnr(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found[1], 10 * np.log10(4 / 0.01), rtol=1e-4)
    assert np.isfinite(found).all()


# --- metrics of a split ---


@pytest.mark.parametrize("bottleneck", [FSQ((3, 2)), Residual(2, VQ(5, 2))])
def test_codes_of_a_split_are_counted_exactly(bottleneck):
    model = replace(TINY, bottleneck=bottleneck).build(SPEC, 10)
    state, whole = jax.jit(model.init)(jax.random.key(0)), batch_of(6)
    # Two batches, of which the second has padding.
    rows = ([0, 1, 2, 3], [4, 5, 0, 0])
    batches = [{name: x[index] for name, x in whole.items()} for index in rows]
    batches[1]["weight"] = np.array([1, 1, 0, 0], np.float32)
    key = jax.random.key(0)
    found = measure(model, lambda state, batch: mapped(model.evaluate, state, batch, key), state, batches)
    made = jax.jit(lambda: model.generate(state, key, {"image": whole["image"]}, Request(n=6)))()
    codes = np.asarray(made["codes"])
    vocab = bottleneck.feature((4, 4), ("row", "column")).vocab
    books = codes.reshape(-1, 2).T if isinstance(bottleneck, Residual) else codes.reshape(1, -1)
    p = np.stack([np.bincount(book, minlength=vocab) / len(book) for book in books])
    entropy = [-(q[q > 0] * np.log(q[q > 0])).sum() for q in p]
    assert found["codes_used"] == pytest.approx(np.mean((p > 0).sum(1) / min(vocab, books.shape[1])))
    assert found["code_perplexity"] == pytest.approx(np.exp(entropy).mean())
    pairs = made["samples"]
    assert found["psnr"] == pytest.approx(float(psnr(pairs[0], pairs[1]).mean()), rel=1e-5)
    assert found["ssim"] == pytest.approx(float(ssim(pairs[0], pairs[1]).mean()), rel=1e-4)


def test_perplexity_of_equally_frequent_codes_is_their_number():
    sums = {"code_uses": (np.array([[3.0, 3, 3, 0], [2, 2, 2, 3]]), 9.0), "psnr": (90.0, 9.0)}
    found = summarize(sums)
    p = np.array([2, 2, 2, 3]) / 9
    assert found["codes_used"] == pytest.approx(7 / 8)
    assert found["code_perplexity"] == pytest.approx((3 + np.exp(-(p * np.log(p)).sum())) / 2)
    assert found["psnr"] == 10


def test_a_small_split_that_repeats_no_code_uses_all_that_it_can():
    uses = np.zeros((1, 1024))
    uses[0, ::4] = 1
    assert summarize({"code_uses": (uses, 1.0)})["codes_used"] == 1
    uses[0, 0] = 257
    assert summarize({"code_uses": (uses, 1.0)})["codes_used"] == 0.5
    assert summarize({"code_uses": (np.zeros((1, 4)), 0.0)})["codes_used"] == 0


def test_a_collapsed_codebook_is_an_alarm_by_default():
    alarms = build_alarms(Alarms(), 0)
    assert check_limits(alarms, {"codes_used": 0.6}) == []
    assert check_limits(alarms, {"codes_used": 0.07}) == ["collapse: the validation split uses 7% of the codes"]


# --- reconstructions ---


def test_originals_are_above_their_reconstructions():
    model = replace(TINY, bottleneck=KL(2)).build(SPEC, 10)
    state, x = jax.jit(model.init)(jax.random.key(0)), images(16)
    generate = jax.jit(lambda n: model.generate(state, jax.random.key(0), {"image": x}, Request(n=n)), static_argnums=0)
    made = generate(16)
    assert made["samples"].shape == (4, 8, 8, 8, 1)
    np.testing.assert_array_equal(made["samples"][::2].reshape(x.shape), x)
    assert made["codes"].shape == (16, 4, 4, 2)
    few = generate(3)["samples"]
    assert few.shape == (2, 3, 8, 8, 1)
    np.testing.assert_allclose(few[1], made["samples"][1, :3], atol=1e-6)


def test_more_reconstructions_than_examples_are_refused():
    """The default asks for all that the run keeps."""
    model = TINY.build(SPEC, 10)
    state = jax.eval_shape(model.init, jax.random.key(0))

    def made(given: int, n: int) -> tuple[int, ...]:
        def generate(state, x):
            return model.generate(state, jax.random.key(0), {"image": x}, Request(n=n))["codes"]

        return jax.eval_shape(generate, state, images(given)).shape

    assert made(20, Request().n)[0] == 20
    assert made(100, 100)[0] == 100
    for given, n in ((64, 100), (20, 50)):
        with pytest.raises(UserError, match=f"n is {n}, and the run keeps {given} .* --n {given}"):
            made(given, n)


# --- training ---


@pytest.mark.slow
def test_the_coder_is_trained_against_its_own_copy_of_each_network():
    """Networks of the loss follow their own losses: the coder's step leaves them as they are."""
    model = replace(TINY, adversary=Adversary(discriminator.DCGAN((4,))), perceptual=Perceptual(hidden=(8,))).build(
        SPEC, 10
    )
    assert model.losses == ("loss", "loss/discriminator", "loss/classifier")
    state = jax.jit(model.init)(jax.random.key(0))
    new, metrics = mapped(model.update, state, batch_of(4), jax.random.key(1))
    assert new.params.keys() == {"encoder", "decoder", "discriminator", "classifier"}
    assert new.opt_state.keys() == {"tokenizer", "discriminator", "classifier"}
    terms = metrics["reconstruction"] + metrics["bottleneck"] + 0.02 * metrics["adversary"] + 0.1 * metrics["features"]
    np.testing.assert_allclose(metrics["loss"], terms, rtol=1e-5)
    plain = TINY.build(SPEC, 10)
    alone = mapped(plain.update, jax.jit(plain.init)(jax.random.key(0)), batch_of(4), jax.random.key(1))[0]
    assert alone.params.keys() == {"encoder", "decoder"}


def test_no_key_of_a_step_is_split_twice(monkeypatch):
    """The reconstructions that D sees, D's noise, and the noise of D in the coder's step are independent."""
    model = replace(TINY, bottleneck=KL(2), adversary=Adversary(discriminator.DCGAN((4,), dropout=0.5))).build(SPEC, 10)
    state, split, seen = jax.eval_shape(model.init, jax.random.key(0)), jax.random.split, []

    def watched(key: jax.Array, num: int = 2) -> jax.Array:
        seen.append(key)
        return split(key, num)

    monkeypatch.setattr(jax.random, "split", watched)
    update = jax.vmap(model.update, in_axes=None, out_axes=None, axis_name="data", axis_size=1)
    jax.eval_shape(update, state, batch_of(4), jax.random.key(1))
    assert len(seen) > 5
    assert len({id(key) for key in seen}) == len(seen)


@pytest.mark.parametrize("reconstruction", [L1(), Likelihood(DiscretizedLogistic(17))])
def test_every_reconstruction_loss_is_a_mean_over_pixels(reconstruction):
    config = replace(TINY, reconstruction=reconstruction)
    coder, x = config.coder(SPEC), jnp.asarray(np.linspace(-1, 1, 17)[RNG.integers(0, 17, (2, 8, 8, 1))], jnp.float32)

    @jax.jit
    def reconstruct(key):
        params = coder.init(key)
        return coder.decode(params, coder.encode(params, {}, x).z)

    outputs = reconstruct(jax.random.key(0))
    found = coder.reconstruction.loss(outputs, x)
    if isinstance(reconstruction, L1):
        np.testing.assert_allclose(found, np.abs(outputs - x).mean((1, 2, 3)), rtol=1e-6)
    else:
        np.testing.assert_allclose(found, -reconstruction.p.log_prob(outputs, x) / 64, rtol=1e-6)
    assert coder.show_outputs(outputs).shape == x.shape


# --- errors ---


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TINY.build({"tokens": Feature((4,), "int32", vocab=3)}, 1), "a tokenizer encodes images or sound"),
        (lambda: replace(TINY, perceptual=Perceptual()).build({"image": SPEC["image"]}, 1), "needs labels"),
        (lambda: replace(TINY, network=tokenizer.Residual((4,), (8,))).build(SPEC, 1), "make one place of 8x8"),
        (lambda: replace(TINY, reconstruction=Likelihood(DiscretizedLogistic(256))).build(SPEC, 1), "levels 17"),
        (lambda: tokenizer.Residual((4, 8), (2,)), "strides has 1 numbers, and widths has 2"),
        (lambda: Adversary(discriminator.DCGAN(norm="batch"), r1=1.0), "with batch normalization a score"),
        (
            lambda: replace(TINY, adversary=Adversary(objective=RelativisticAverage()), microbatches=2),
            "with the objective RelativisticAverage",
        ),
        (lambda: replace(TINY, adversary=Adversary()).with_adapter(LoRA()), "the encoder and the decoder alone"),
    ],
)
def test_wrong_configs_are_short_errors(build, message):
    with pytest.raises(UserError, match=message):
        build()
