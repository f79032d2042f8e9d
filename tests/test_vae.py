"""Bounds against closed forms and quadrature, and what the VAE family does with its config and its requests."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from gen.core import Feature, GenerativeModel, State
from gen.errors import UserError
from gen.evaluation.measure import measure
from gen.families.vae import VAE, losses
from gen.families.vae.family import Request
from gen.families.vae.latent import Draw, LatentModel
from gen.families.vae.likelihoods import Bernoulli, ContinuousBernoulli, DiscretizedLogistic, Gaussian
from gen.families.vae.priors import StandardNormal, VampPrior
from gen.networks.vae import Decoder, Encoder, Perceptron, Residual
from gen.optim import Optimizer, Warmup

RNG = np.random.default_rng(0)


class Flat(nn.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1)


class Affine(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        return nn.Dense(math.prod(self.shape))(z).reshape(*z.shape[:-1], *self.shape)


IMAGE, STD, K = Feature((1, 3, 1)), 0.4, 64


def latent_model(latents: tuple[int, ...], std: float) -> LatentModel:
    encoder, decoder = Encoder(Flat(), latents, 5, "tanh", {}), Decoder(Affine((1, 3, 1)), latents, 5, "tanh", {})
    return LatentModel(encoder, decoder, StandardNormal(), Gaussian(std), IMAGE)


LINEAR = latent_model((2,), STD)
W = np.array([[1.0, 0.5], [-2.0, 0.25], [0.0, 1.0]])  # orthogonal columns, so that the posterior is diagonal
MU = np.array([0.3, -0.2, 0.1])
COVARIANCE: Any = W @ W.T + STD**2 * np.eye(3)
PIXELS = RNG.multivariate_normal(MU, COVARIANCE, 4)
EXACT = stats.multivariate_normal.logpdf(PIXELS, MU, COVARIANCE)
X = jnp.asarray(PIXELS, jnp.float32).reshape(4, 1, 3, 1)


def linear_params(off: float = 0.0) -> dict[str, Any]:
    """The parameters at which q is the posterior; `off` moves and widens it."""
    inverse = np.linalg.inv(W.T @ W + STD**2 * np.eye(2))
    kernel = np.concatenate([(1 - off) * W @ inverse, np.zeros((3, 2))], axis=1)
    bias = np.concatenate([-inverse @ W.T @ MU + off, 0.5 * np.log(STD**2 * np.diag(inverse)) + off])
    single = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)
    return single(
        {
            "encoder": {"heads_0": {"Dense_0": {"kernel": kernel, "bias": bias}}},
            "decoder": {"trunk": {"Dense_0": {"kernel": W.T, "bias": MU}}},
        }
    )


@jax.jit
def linear_bounds(params: Any, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ELBO with the closed KL, and log weights, [K, B]."""
    draw = LINEAR.infer(params, LINEAR.encode(params, X, None), [eps])
    terms = LINEAR.terms(params, X, None, draw)
    return terms.log_px - terms.kl[0].sum(-1), LINEAR.log_weight(params, X, None, draw)


def test_the_bounds_of_a_linear_vae_at_its_optimum_are_the_likelihood():
    """The log weight is constant there, so each sample gives it; the ELBO with the closed KL does on average."""
    elbo, log_w = linear_bounds(linear_params(), jax.random.normal(jax.random.key(0), (K, 4, 2)))
    np.testing.assert_allclose(log_w, np.broadcast_to(EXACT, (K, 4)), atol=1e-5)
    np.testing.assert_allclose(losses.importance_weighted_bound(log_w), EXACT, atol=1e-5)
    # E over noise of a quadratic function, exactly, by its values at the mean and at +-sqrt(2) on each axis.
    points = np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)]).astype(np.float32)
    elbo, _ = linear_bounds(linear_params(), jnp.asarray(np.broadcast_to(points[:, None], (4, 4, 2))))
    np.testing.assert_allclose(elbo.mean(0), EXACT, atol=1e-5)


def test_away_from_the_optimum_the_bound_rises_with_samples_and_stays_below_the_likelihood():
    eps = jax.random.normal(jax.random.key(1), (256 * 64, 4, 2))
    _, log_w = linear_bounds(linear_params(0.3), eps)
    groups = lambda k: losses.importance_weighted_bound(jnp.swapaxes(log_w.reshape(-1, k, 4), 0, 1)).mean(0)
    bounds = np.stack([np.asarray(groups(k)) for k in (1, 2, 8, 64)] + [EXACT])
    assert (np.diff(bounds, axis=0) > 0).all(), bounds
    assert (EXACT - bounds[-2] < 0.2 * (EXACT - bounds[0])).all()


DEEP, M = latent_model((2, 1), 1.0), 30_000
DEEP_X, DEEP_PIXELS = 0.1 * X, 0.1 * PIXELS  # near zero, so that prior samples explain them too


@pytest.fixture(scope="module")
def deep_params() -> Any:
    shapes = jax.eval_shape(lambda: DEEP.init(jax.random.key(0), None, {"param_dtype": "float32"}))
    return jax.tree.map(lambda p: jnp.asarray(RNG.normal(0, 0.25, p.shape), p.dtype), shapes)


@pytest.fixture(scope="module")
def deep_draw(deep_params) -> tuple[Draw, Any, np.ndarray]:
    """Posterior samples, their terms and their log weights."""

    @jax.jit
    def draw(params, key):
        eps = [jax.random.normal(k, (M, 4, d)) for k, d in zip(jax.random.split(key), (2, 1), strict=True)]
        found = DEEP.infer(params, DEEP.encode(params, DEEP_X, None), eps)
        return found, DEEP.terms(params, DEEP_X, None, found), DEEP.log_weight(params, DEEP_X, None, found)

    found, terms, log_w = jax.device_get(draw(deep_params, jax.random.key(1)))
    return found, terms, log_w.astype(np.float64)


def test_the_log_weight_of_a_hierarchy_is_that_of_scipy(deep_params, deep_draw):
    draw, _, log_w = jax.tree.map(lambda a: a[:5], deep_draw)
    mean = DEEP.decode(deep_params, draw, None).reshape(5, 4, 3)
    log_p: Any = stats.norm.logpdf(DEEP_PIXELS, mean, 1.0).sum(-1) + stats.norm.logpdf(draw.z[0]).sum(-1)
    log_p += stats.norm.logpdf(draw.z[1], draw.p[0].mean, np.exp(draw.p[0].log_std)).sum(-1)
    log_q: Any = sum(
        stats.norm.logpdf(z, q.mean, np.exp(q.log_std)).sum(-1) for z, q in zip(draw.z, draw.q, strict=True)
    )
    np.testing.assert_allclose(log_w, log_p - log_q, rtol=1e-5, atol=1e-4)


def test_the_posterior_and_the_prior_of_a_hierarchy_give_the_same_likelihood(deep_params, deep_draw):
    """log p(x) = log E_q[w] = log E_p(z)[p(x | z)]: a term too many or too few would part them."""

    @jax.jit
    def log_px(params, key):
        top, below = (jax.random.normal(k, (M, 1, d)) for k, d in zip(jax.random.split(key), (2, 1), strict=True))
        mean = DEEP.decode(params, DEEP.ancestors(params, top, [below]), None)
        return DEEP.likelihood.log_prob(jnp.broadcast_to(mean, (M, 4, 1, 3, 1)), DEEP_X[None])

    by_posterior, by_prior = deep_draw[2], np.asarray(log_px(deep_params, jax.random.key(2)), np.float64)
    weights = [np.exp(log_w - by_prior.max(0)) for log_w in (by_posterior, by_prior)]
    error: Any = sum(w.std(0) / w.mean(0) for w in weights) / math.sqrt(M)
    assert (error < 0.05).all(), "too few samples to tell"
    difference = np.log(weights[0].mean(0) / weights[1].mean(0))
    assert (np.abs(difference) < 4 * error).all(), (difference, error)


def test_the_closed_kl_of_a_hierarchy_gives_the_mean_log_weight(deep_draw):
    _, terms, log_w = deep_draw
    assert [kl.shape for kl in terms.kl] == [(1, 4, 2), (M, 4, 1)]
    off = np.asarray(terms.log_px - sum(kl.sum(-1) for kl in terms.kl), np.float64) - log_w
    assert (np.abs(off.mean(0)) < 4 * off.std(0) / math.sqrt(M)).all()


BINARY = {"image": Feature((2, 2, 1), levels=2), "label": Feature((), "int32", classes=3)}
GREY = {"image": Feature((2, 2, 1), levels=17)}
TINY = VAE(latents=(2,), network=Perceptron((8,), "tanh"), optim=Optimizer(rule="sgd", lr=0.1, b1=0.0))


def batch_of(n: int, start: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(5)
    image = np.where(rng.random((64, 2, 2, 1)) < 0.5, np.float32(-1), np.float32(1))[start : start + n]
    row = np.arange(start, start + n, dtype=np.int32)
    arrays = {"image": image, "label": row % 3, "row": row, "weight": np.ones(n, np.float32)}
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def quickly(function: Callable) -> Callable:
    """Compiled with little optimization: these tests compile much and compute little."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def on_one_device(function: Callable) -> Callable:
    """The function under an axis "data" of size one."""
    mapped = jax.vmap(function, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=1)
    return quickly(lambda state, batch, key: mapped(state, jax.tree.map(lambda x: x[None], batch), key))


@functools.cache
def built(config: VAE = TINY) -> tuple[GenerativeModel, State]:
    """The model, its update, evaluate and test compiled, and its first state."""
    model = config.build(BINARY, 100)
    compiled = {name: on_one_device(getattr(model, name)) for name in ("update", "evaluate", "test")}
    return model._replace(**compiled), model.init(jax.random.key(0))


def updated(config: VAE, step: int = 0, n: int = 6) -> tuple[State, State, dict[str, float]]:
    """The state before and after an update, and its metrics."""
    model, state = built(config)
    state = replace(state, step=jnp.int32(step))
    after, metrics = model.update(state, batch_of(n), jax.random.key(7))
    return state, after, {name: float(value) for name, value in metrics.items()}


def metrics_of(model: GenerativeModel, state: State, n: int) -> dict[str, Any]:
    return model.summarize(model.evaluate(state, batch_of(n), jax.random.key(0)))


def test_evaluation_is_exact_under_padding_and_any_split_into_batches():
    model, state = built()
    engine: Any = lambda state, batch: model.evaluate(state, batch, jax.random.key(1))
    rubbish = {"image": jnp.full((2, 2, 2, 1), 9.0), "label": jnp.zeros(2, int), "row": jnp.zeros(2, int)}
    nothing = {**rubbish, "weight": jnp.zeros(2)}
    padded = lambda start: {k: jnp.concatenate([v, nothing[k]]) for k, v in batch_of(2, start).items()}
    whole = measure(model, engine, state, [batch_of(6)])  # pyright: ignore[reportArgumentType]
    for batches in ([batch_of(4), padded(4)], [padded(0), padded(2), padded(4)]):
        split = measure(model, engine, state, batches)  # pyright: ignore[reportArgumentType]
        assert split.keys() == whole.keys()
        for name, value in whole.items():
            np.testing.assert_allclose(split[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_bound_with_many_samples_is_the_likelihood_by_quadrature():
    """However K is divided into chunks: 499 is prime and goes one by one, 1000 by 25."""
    model, state = built(replace(TINY, latents=(1,), validation_samples=499, test_samples=1000))
    head = state.params["encoder"]["heads_0"]["Dense_0"]
    wide = {"heads_0": {"Dense_0": {"kernel": 0.3 * head["kernel"], "bias": head["bias"] + 0.3}}}  # so that K is enough
    state = replace(state, params={**state.params, "encoder": {**state.params["encoder"], **wide}})
    z = np.linspace(-8, 8, 2001, dtype=np.float32)
    dtypes, image = {"param_dtype": "float32"}, BINARY["image"]
    encoder, decoder = TINY.network.encoder((1,), dtypes), TINY.network.decoder((1,), image.shape, dtypes)
    latent = LatentModel(encoder, decoder, StandardNormal(), Bernoulli(), image)
    draw = latent.given(state.params, [jnp.asarray(z)[:, None]], [None])
    logits = np.asarray(latent.decode(state.params, draw, None), np.float64)
    x = np.asarray(batch_of(64)["image"], np.float64)
    log_px = -np.logaddexp(0, -x[:, None] * logits[None]).sum((2, 3, 4))
    log_joint = log_px + np.asarray(stats.norm.logpdf(z))
    exact = np.asarray(logsumexp(log_joint, axis=1)) + math.log(16 / 2000)
    assert model.test is not None
    for function in (model.evaluate, model.test):
        metrics = model.summarize(function(state, batch_of(64), jax.random.key(0)))
        assert metrics["nll_bound"] == pytest.approx(-exact.mean(), abs=0.02)
        assert metrics["neg_elbo"] > metrics["nll_bound"]


def test_where_the_kl_is_not_closed_the_bound_of_one_sample_is_the_elbo():
    metrics = metrics_of(*built(replace(TINY, prior=VampPrior(3), validation_samples=1)), n=6)
    assert metrics["nll_bound"] == pytest.approx(metrics["neg_elbo"], abs=1e-5)


def test_the_bound_is_reported_of_a_likelihood_and_refused_with_its_reason_of_another():
    sums = {name: (np.ones(2) if "mean" in name or "latent" in name else 8.0, 2.0) for name in evaluated()}
    metrics = TINY.build(BINARY, 1).summarize(sums)
    assert metrics["nll_bound"] == 4.0
    assert metrics["bits_per_dim"] == pytest.approx(4.0 / (4 * math.log(2)))
    grey = TINY.build(GREY, 1)
    assert grey.summarize(sums).keys() == metrics.keys() - {"nll_bound", "bits_per_dim"}
    assert "--data.binarize" in grey.protocol["nll_bound"]["refused"]
    assert "--data.binarize" in grey.protocol["bits_per_dim"]["refused"]
    assert "refused" not in TINY.build(BINARY, 1).protocol["nll_bound"]
    density = replace(TINY, likelihood=ContinuousBernoulli()).build({"image": Feature((2, 2, 1))}, 1).summarize(sums)
    assert "nll_bound" in density and "bits_per_dim" not in density  # of unknown levels: no discrete pixels to code


def evaluated() -> list[str]:
    model, state = built()
    return list(jax.eval_shape(model.evaluate, state, batch_of(2), jax.random.key(0)))


def test_active_units_are_those_whose_posterior_mean_varies():
    model, state = built(replace(TINY, latents=(5,)))
    head = state.params["encoder"]["heads_0"]["Dense_0"]
    dead = jnp.zeros((8, 10)).at[:, :5].set(jnp.asarray([0, 9.0, 0, 9.0, 9.0]))  # all log std constant
    planted = {"heads_0": {"Dense_0": {"kernel": head["kernel"] * dead, "bias": head["bias"] + 1}}}
    state = replace(state, params={**state.params, "encoder": {**state.params["encoder"], **planted}})
    metrics = metrics_of(model, state, n=32)
    assert metrics["active_units"] == 3
    assert metrics["kl_per_latent"].shape == (5,)
    assert metrics["kl_per_latent"].sum() == pytest.approx(metrics["kl"], rel=1e-5)


def test_the_running_average_is_that_of_numpy_and_is_what_is_evaluated():
    model, state = built(replace(TINY, ema=0.3))
    expected = jax.tree.map(np.asarray, state.params)
    for step in range(5):
        state, _ = model.update(state, batch_of(6), jax.random.key(step))
        decay = min(0.3, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25, 0.3, 0.3
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema, expected)
    average = metrics_of(model, replace(state, params=state.ema), n=6)
    assert metrics_of(model, state, n=6)["neg_elbo"] == average["neg_elbo"]


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (5, 1.5), (10, 3.0), (50, 3.0)])
def test_kl_warm_up_weighs_the_kl_by_the_step(step, weight):
    _, _, metrics = updated(replace(TINY, beta=Warmup(3.0, 10)), step)
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + weight * metrics["kl"], abs=1e-5)
    assert metrics["neg_elbo"] == pytest.approx(metrics["reconstruction"] + metrics["kl"], abs=1e-5)
    assert metrics["kl"] > 0.01


def test_free_bits_press_no_latent_below_the_floor():
    """Far below the floor, the loss holds the floor of each latent and its gradient nothing of the KL."""
    _, free, metrics = updated(replace(TINY, free_bits=50.0))
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + 2 * 50.0, rel=1e-5)
    _, none, _ = updated(replace(TINY, beta=0.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), free.params, none.params)


def test_free_bits_of_a_group_whose_kl_is_not_closed_are_those_of_its_latents():
    _, _, metrics = updated(replace(TINY, prior=VampPrior(3), free_bits=50.0))
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + 2 * 50.0, rel=1e-5)


def test_doubly_reparameterized_gradients_change_the_encoders_step_alone():
    config = replace(TINY, objective="iwae", samples=4)
    before, plain, metrics = updated(config)
    _, doubly, same = updated(replace(config, dreg=True))
    assert same["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    close = lambda a, b: all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), a, b)))
    assert close(plain.params["decoder"], doubly.params["decoder"])
    assert not close(plain.params["decoder"], before.params["decoder"])
    assert not close(plain.params["encoder"], doubly.params["encoder"])


def test_the_importance_weighted_loss_is_lower_with_more_samples():
    _, _, one = updated(replace(TINY, objective="iwae", samples=1), n=64)
    _, _, many = updated(replace(TINY, objective="iwae", samples=50), n=64)
    assert many["loss"] < one["loss"] - 0.05


def generated(built: tuple[GenerativeModel, State], given: Any = None, **request: Any) -> dict[str, np.ndarray]:
    model, state = built
    return jax.device_get(generator(model.generate, Request(**request))(state, jax.random.key(3), given or {}))


@functools.cache
def generator(generate: Callable, request: Request) -> Callable:
    return quickly(lambda state, key, given: generate(state, key, given, request))


@pytest.fixture(scope="module")
def conditional() -> tuple[GenerativeModel, State]:
    return built(replace(TINY, conditional=True))


@pytest.fixture(scope="module")
def deep() -> tuple[GenerativeModel, State]:
    return built(replace(TINY, latents=(2, 3)))


@pytest.fixture(scope="module")
def given() -> dict[str, jax.Array]:
    """What a run keeps for requests of the deep model."""
    return {"image": batch_of(3)["image"], "kl_per_latent": jnp.asarray([0.1, 3.0, 0.0, 2.0, 1.0])}


def test_a_conditional_model_generates_the_label_asked_for_and_all_in_turn_otherwise(conditional):
    every = generated(conditional, n=6)
    of_one = generated(conditional, n=6, label=1)
    np.testing.assert_array_equal(every["latents"], of_one["latents"])
    same = [np.allclose(a, b, atol=1e-6) for a, b in zip(every["samples"], of_one["samples"], strict=True)]
    assert same == [False, True, False, False, True, False]


def test_a_conditional_model_reconstructs_by_the_label_given(conditional):
    given = {"image": batch_of(4)["image"], "label": jnp.asarray([0, 1, 2, 0])}
    one = generated(conditional, given, mode="reconstruct", n=4)
    other = generated(conditional, {**given, "label": jnp.asarray([0, 2, 2, 0])}, mode="reconstruct", n=4)
    changed = [not np.allclose(a, b) for a, b in zip(one["latents"], other["latents"], strict=True)]
    assert changed == [False, True, False, False]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_refused(conditional, label):
    with pytest.raises(UserError, match="labels 0 to 2"):
        generated(conditional, n=1, label=label)


def test_a_label_of_an_unconditional_model_is_refused(deep):
    with pytest.raises(UserError, match="not conditional"):
        generated(deep, n=1, label=1)


@pytest.mark.parametrize("name", ["conditional", "deep"])
def test_each_request_has_its_shape(name, request):
    model, state = request.getfixturevalue(name)
    d = 2 if name == "conditional" else 5
    given = {**{k: batch_of(64)[k] for k in ("image", "label")}, "kl_per_latent": jnp.arange(1.0, 1 + d)}

    def shapes(**request):
        make = lambda given: model.generate(state, jax.random.key(0), given, Request(**request))
        return [x.shape for x in jax.eval_shape(make, given).values()][::-1]

    image = (2, 2, 1)
    for n in (1, 5, 16, 64):
        rows = max(1, n // 8)
        assert shapes(n=n) == [(n, *image), (n, d)] + [(n,)] * (name == "conditional")
        pairs = (n // 4, 8) if n % 4 == 0 else (n, 2)
        assert shapes(n=n, mode="reconstruct") == [(*pairs, *image), (n, d)]
        assert shapes(n=n, mode="interpolate") == [(rows, 8, *image), (rows * 8, d)]
        moved = min(rows, d)
        assert shapes(n=n, mode="traverse") == [(moved, 8, *image), (moved * 8, d)]


def test_a_sample_does_not_depend_on_how_many_are_drawn(deep):
    few, many = (generated(deep, n=n, pixels="sample") for n in (3, 9))
    np.testing.assert_allclose(few["latents"], many["latents"][:3], rtol=1e-6)
    np.testing.assert_array_equal(few["samples"], many["samples"][:3])
    assert len(np.unique(many["latents"][:, 0])) == 9
    assert len(np.unique(many["samples"], axis=0)) > 3


def test_drawn_pixels_have_the_values_of_the_likelihood_and_means_have_not(deep):
    assert set(np.unique(generated(deep, n=9, pixels="sample")["samples"])) == {-1.0, 1.0}
    assert np.abs(generated(deep, n=9)["samples"]).max() < 1


def test_temperature_scales_the_noise_of_every_group(deep):
    warm, half, cold = (generated(deep, n=9, temperature=t)["latents"] for t in (1.0, 0.5, 1e-6))
    np.testing.assert_allclose(half[:, :2], warm[:, :2] / 2, rtol=1e-6)
    np.testing.assert_allclose(cold[:, :2], 0, atol=1e-5)
    np.testing.assert_allclose(cold[:, 2:], np.broadcast_to(cold[0, 2:], (9, 3)), atol=1e-4)
    assert np.abs(warm[:, 2:] - cold[:, 2:]).max() > 0.1


def test_reconstructions_stand_beside_the_images_and_interpolations_lead_from_one_to_the_next(deep, given):
    pairs = generated(deep, given, mode="reconstruct", n=3)
    np.testing.assert_array_equal(pairs["samples"][:, 0], given["image"])
    between = generated(deep, given, mode="interpolate", n=16)
    ends = between["latents"].reshape(2, 8, 5)[:, [0, -1]]
    means = pairs["latents"]
    np.testing.assert_allclose(ends, np.stack([means[:2], means[1:]], axis=1), atol=1e-6)
    np.testing.assert_allclose(between["samples"][:, 0], pairs["samples"][:2, 1], atol=1e-5)


def test_a_traversal_moves_one_latent_at_a_time_by_falling_kl(deep, given):
    z = generated(deep, given, mode="traverse", n=24)["latents"].reshape(3, 8, 5)
    mean = generated(deep, given, mode="reconstruct", n=3)["latents"][0]
    for row, moved in zip(z, (1, 3, 4), strict=True):
        np.testing.assert_allclose(row[:, moved], np.linspace(-3, 3, 8), atol=1e-6)
        np.testing.assert_allclose(np.delete(row, moved, 1), np.broadcast_to(np.delete(mean, moved), (8, 4)), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "iwae", "beta": 2.0}, "objective elbo"),
        ({"objective": "iwae", "beta": Warmup(1.0, 10)}, "objective elbo"),
        ({"objective": "iwae", "free_bits": 0.1}, "objective elbo"),
        ({"dreg": True}, "--model.objective iwae"),
        ({"dreg": True, "objective": "iwae", "latents": (2, 2)}, "one latent group"),
        ({"conditional": True, "prior": VampPrior(3)}, "pseudo-inputs"),
        ({"latents": ()}, "latents"),
        ({"latents": (2, 0)}, "latents"),
        ({"samples": 0}, "samples"),
        ({"validation_samples": 0}, "validation_samples"),
        ({"test_samples": -1}, "test_samples"),
        ({"ema": 1.0}, "ema"),
        ({"free_bits": -1.0}, "free_bits"),
        ({"beta": -1.0}, "beta"),
    ],
)
def test_an_impossible_config_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Perceptron(()), "hidden"),
        (lambda: Residual(()), "widths"),
        (lambda: Residual((4,), blocks=-1), "blocks"),
        (lambda: Gaussian(0.0), "std"),
        (lambda: DiscretizedLogistic(1), "levels"),
        (lambda: DiscretizedLogistic(17, components=0), "components"),
        (lambda: VampPrior(0), "components"),
        (lambda: Request(n=0), "n is 0"),
        (lambda: Request(temperature=-1.0), "temperature"),
        (lambda: replace(TINY, likelihood=DiscretizedLogistic(256)).build(GREY, 1), "--model.likelihood.levels 17"),
        (lambda: replace(TINY, conditional=True).build(GREY, 1), "labels"),
        (lambda: TINY.build({"tokens": Feature((8,), "int32", vocab=9)}, 1), "images, and the data have tokens"),
        (lambda: replace(TINY, network=Residual((4, 4))).build(BINARY, 1), "fewer widths"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_built_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "widths"),
    [(8, (4,)), (8, (4, 6)), (28, (4, 6)), (28, (4, 6, 8)), (32, (4, 6, 8)), (64, (4,) * 4), (9, (4,))],
)
def test_a_residual_network_has_the_shapes_of_its_images(size, widths, channels):
    image, dtypes = Feature((size, size + (size == 9), channels), levels=256), {"param_dtype": "float32"}
    for likelihood, outputs in ((Bernoulli(), channels), (DiscretizedLogistic(256, components=2), 2 + 4 * channels)):
        network, shape = Residual(widths), (*image.shape[:2], outputs)
        encoder, decoder = network.encoder((2,), dtypes), network.decoder((2,), shape, dtypes)
        model = LatentModel(encoder, decoder, StandardNormal(), likelihood, image)
        params = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), None, dtypes))
        features = jax.eval_shape(lambda p, m=model: m.encode(p, jnp.zeros((3, *image.shape)), None), params)
        height, width = (-(-pixels // 2 ** len(widths)) for pixels in image.shape[:2])
        assert features.shape == (1, 3, height * width * widths[-1])
        z = jnp.zeros((5, 3, 2))
        decoded = jax.eval_shape(lambda p, m=model, z=z: m.decode(p, m.given(p, [z], [None]), None), params)
        assert decoded.shape == (5, 3, *shape)
