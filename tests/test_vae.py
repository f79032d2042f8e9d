"""The bounds of VAEs against closed forms and quadrature, and the family's configs, training losses and requests."""

import functools
import math
import operator
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

from gen import core
from gen.core import Array, Feature, GenerativeModel, Params, State
from gen.errors import UserError
from gen.evaluation.measure import measure
from gen.families.vae import (
    VAE,
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    StandardNormal,
    VampPrior,
    bounds,
    losses,
)
from gen.families.vae.latent import Draw, LatentModel, Terms
from gen.families.vae.sampling import GENERATE_CHUNK, Request
from gen.networks.vae import Decoder, Encoder, Perceptron, Residual
from gen.optim import Optimizer, Warmup

RNG = np.random.default_rng(0)


class Flat(nn.Module):
    def __call__(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1)


class Affine(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, z: Array) -> Array:
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


def linear_params(off: float = 0.0) -> Params:
    """Returns the parameters for which q is the exact posterior. `off` moves and widens q."""
    inverse = np.linalg.inv(W.T @ W + STD**2 * np.eye(2))
    kernel = np.concatenate([(1 - off) * W @ inverse, np.zeros((3, 2))], axis=1)
    bias = np.concatenate([-inverse @ W.T @ MU + off, 0.5 * np.log(STD**2 * np.diag(inverse)) + off])
    params = {
        "encoder": {"heads_0": {"Dense_0": {"kernel": kernel, "bias": bias}}},
        "decoder": {"trunk": {"Dense_0": {"kernel": W.T, "bias": MU}}},
    }
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


@jax.jit
def linear_bounds(params: Params, eps: Array) -> tuple[Array, Array]:
    """Returns the ELBO with the KL in closed form, and the log weights, [K, B]."""
    draw = LINEAR.infer(params, LINEAR.encode(params, X, None), [eps])
    terms = LINEAR.terms(params, X, None, draw)
    return terms.log_px - terms.kl[0].sum(-1), LINEAR.log_weight(params, X, None, draw)


def test_the_bounds_of_a_linear_vae_at_its_optimum_equal_the_likelihood():
    """At the optimum every sample has the same log weight. The ELBO with the KL in closed form is equal on average."""
    elbo, log_w = linear_bounds(linear_params(), jax.random.normal(jax.random.key(0), (K, 4, 2)))
    np.testing.assert_allclose(log_w, np.broadcast_to(EXACT, (K, 4)), atol=1e-5)
    np.testing.assert_allclose(losses.importance_weighted_bound(log_w), EXACT, atol=1e-5)
    # The ELBO is quadratic in the noise. Its average over these points, +-sqrt(2) on each axis, is its exact expectation.
    points = np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)]).astype(np.float32)
    elbo, _ = linear_bounds(linear_params(), jnp.asarray(np.broadcast_to(points[:, None], (4, 4, 2))))
    np.testing.assert_allclose(elbo.mean(0), EXACT, atol=1e-5)


def test_away_from_the_optimum_the_bound_rises_with_samples_and_stays_below_the_likelihood():
    eps = jax.random.normal(jax.random.key(1), (256 * 64, 4, 2))
    _, log_w = linear_bounds(linear_params(0.3), eps)

    def bound(k: int) -> Array:
        return losses.importance_weighted_bound(jnp.swapaxes(log_w.reshape(-1, k, 4), 0, 1)).mean(0)

    values = np.stack([np.asarray(bound(k)) for k in (1, 2, 8, 64)] + [EXACT])
    assert (np.diff(values, axis=0) > 0).all(), values
    assert (EXACT - values[-2] < 0.2 * (EXACT - values[0])).all()


DEEP, M = latent_model((2, 1), 1.0), 30_000
DEEP_X, DEEP_PIXELS = 0.1 * X, 0.1 * PIXELS  # near zero, so that samples of the prior explain them too


@pytest.fixture(scope="module")
def deep_params() -> Params:
    shapes = jax.eval_shape(functools.partial(DEEP.init, param_dtype="float32"), jax.random.key(0))
    return jax.tree.map(lambda p: jnp.asarray(RNG.normal(0, 0.25, p.shape), p.dtype), shapes)


@pytest.fixture(scope="module")
def deep_draw(deep_params) -> tuple[Draw, Terms, np.ndarray]:
    """Posterior samples, their terms and their log weights."""

    @jax.jit
    def draw(params, key):
        eps = [jax.random.normal(k, (M, 4, d)) for k, d in zip(jax.random.split(key), (2, 1), strict=True)]
        found = DEEP.infer(params, DEEP.encode(params, DEEP_X, None), eps)
        return found, DEEP.terms(params, DEEP_X, None, found), DEEP.log_weight(params, DEEP_X, None, found)

    found, terms, log_w = jax.device_get(draw(deep_params, jax.random.key(1)))
    return found, terms, log_w.astype(np.float64)


def test_the_log_weight_of_a_hierarchy_agrees_with_scipy(deep_params, deep_draw):
    draw, _, log_w = jax.tree.map(operator.itemgetter(slice(5)), deep_draw)
    mean = DEEP.decode(deep_params, draw, None).reshape(5, 4, 3)
    log_p: Any = stats.norm.logpdf(DEEP_PIXELS, mean, 1.0).sum(-1) + stats.norm.logpdf(draw.z[0]).sum(-1)
    log_p += stats.norm.logpdf(draw.z[1], draw.p[0].mean, np.exp(draw.p[0].log_std)).sum(-1)
    log_q: Any = sum(
        stats.norm.logpdf(z, q.mean, np.exp(q.log_std)).sum(-1) for z, q in zip(draw.z, draw.q, strict=True)
    )
    np.testing.assert_allclose(log_w, log_p - log_q, rtol=1e-5, atol=1e-4)


def test_the_posterior_and_the_prior_of_a_hierarchy_give_the_same_likelihood(deep_params, deep_draw):
    """log p(x) = log E_q[w] = log E_p(z)[p(x | z)]. A missing or an extra term would make them differ."""

    @jax.jit
    def log_px(params, key):
        top, below = (jax.random.normal(k, (M, 1, d)) for k, d in zip(jax.random.split(key), (2, 1), strict=True))
        mean = DEEP.decode(params, DEEP.sample_lower(params, top, [below]), None)
        return DEEP.likelihood.log_prob(jnp.broadcast_to(mean, (M, 4, 1, 3, 1)), DEEP_X[None])

    by_posterior, by_prior = deep_draw[2], np.asarray(log_px(deep_params, jax.random.key(2)), np.float64)
    weights = [np.exp(log_w - by_prior.max(0)) for log_w in (by_posterior, by_prior)]
    error: Any = sum(w.std(0) / w.mean(0) for w in weights) / math.sqrt(M)
    assert (error < 0.05).all(), "too few samples to compare"
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


def batch_of(n: int, start: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    image = np.where(rng.random((64, 2, 2, 1)) < 0.5, np.float32(-1), np.float32(1))[start : start + n]
    row = np.arange(start, start + n, dtype=np.int32)
    arrays = {"image": image, "label": row % 3, "row": row, "weight": np.ones(n, np.float32)}
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def compile_quickly(function: Callable) -> Callable:
    """Compiles a function with little optimization, because these tests compile much and compute little."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def on_one_device(function: Callable) -> Callable:
    """Returns the function under an axis "data" of size one."""
    mapped = jax.vmap(function, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=1)
    return compile_quickly(lambda state, batch, key: mapped(state, jax.tree.map(lambda x: x[None], batch), key))


@functools.cache
def build(config: VAE = TINY) -> tuple[GenerativeModel, State]:
    """Returns the model, with compiled update, evaluate and test, and its state at step 0."""
    model = config.build(BINARY, 100)
    compiled = {name: on_one_device(getattr(model, name)) for name in ("update", "evaluate", "test")}
    return model._replace(**compiled), model.init(jax.random.key(0))


def update(config: VAE, step: int = 0, n: int = 6) -> tuple[State, State, dict[str, float]]:
    """Returns the state before and after one update at this step, and the metrics."""
    model, state = build(config)
    state = replace(state, step=jnp.int32(step))
    after, metrics = model.update(state, batch_of(n), jax.random.key(7))
    return state, after, {name: float(value) for name, value in metrics.items()}


def evaluate(model: GenerativeModel, state: State, n: int) -> dict[str, Any]:
    return model.summarize(model.evaluate(state, batch_of(n), jax.random.key(0)))


def test_evaluation_is_exact_under_padding_and_any_split_into_batches():
    model, state = build()
    engine: Any = lambda state, batch: model.evaluate(state, batch, jax.random.key(1))
    garbage = {"image": jnp.full((2, 2, 2, 1), 9.0), "label": jnp.zeros(2, int), "row": jnp.zeros(2, int)}
    padding = {**garbage, "weight": jnp.zeros(2)}

    def padded(start: int) -> dict[str, Array]:
        return {k: jnp.concatenate([v, padding[k]]) for k, v in batch_of(2, start).items()}

    whole = measure(model, engine, state, [batch_of(6)])  # pyright: ignore[reportArgumentType]
    for batches in ([batch_of(4), padded(4)], [padded(0), padded(2), padded(4)]):
        split = measure(model, engine, state, batches)  # pyright: ignore[reportArgumentType]
        assert split.keys() == whole.keys()
        for name, value in whole.items():
            np.testing.assert_allclose(split[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_bound_with_many_samples_equals_the_likelihood_by_quadrature():
    """499 samples, a prime number, are computed one by one. 1000 samples are computed in chunks of 25."""
    model, state = build(replace(TINY, latents=(1,), validation_samples=499, test_samples=1000))
    head = state.params["encoder"]["heads_0"]["Dense_0"]
    # With a wide posterior, this number of samples is enough.
    wide = {"heads_0": {"Dense_0": {"kernel": 0.3 * head["kernel"], "bias": head["bias"] + 0.3}}}
    state = replace(state, params={**state.params, "encoder": {**state.params["encoder"], **wide}})
    z = np.linspace(-8, 8, 2001, dtype=np.float32)
    latent = replace(TINY, latents=(1,)).latent_model(BINARY)
    draw = latent.with_latents(state.params, [jnp.asarray(z)[:, None]])
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


@pytest.mark.parametrize(("samples", "size"), [(1, 1), (25, 25), (26, 13), (499, 1), (1000, 25)])
def test_a_chunk_is_the_largest_divisor_of_the_number_of_samples(samples, size):
    assert bounds.chunk_size(samples) == size


def test_the_bound_of_one_sample_is_the_elbo_if_the_kl_has_no_closed_form():
    metrics = evaluate(*build(replace(TINY, prior=VampPrior(3), validation_samples=1)), n=6)
    assert metrics["nll_bound"] == pytest.approx(metrics["neg_elbo"], abs=1e-5)


def test_the_bound_is_reported_if_the_likelihood_matches_the_pixels_and_otherwise_the_reason():
    sums = {name: (np.ones(2) if "mean" in name or "latent" in name else 8.0, 2.0) for name in sum_names()}
    metrics = TINY.build(BINARY, 1).summarize(sums)
    assert metrics["nll_bound"] == 4.0
    assert metrics["bits_per_dim"] == pytest.approx(4.0 / (4 * math.log(2)))
    grey = TINY.build(GREY, 1)
    assert grey.summarize(sums).keys() == metrics.keys() - {"nll_bound", "bits_per_dim"}
    assert "--data.binarize" in grey.protocol["nll_bound"]["refused"]
    assert "--data.binarize" in grey.protocol["bits_per_dim"]["refused"]
    assert "refused" not in TINY.build(BINARY, 1).protocol["nll_bound"]
    labelled = {**BINARY, "label": Feature((), "int32", classes=3)}
    for config, given in ((TINY, ()), (replace(TINY, conditional=True), ("label",))):
        protocol = config.build(labelled, 1).protocol
        assert {protocol[name]["conditional"] for name in ("neg_elbo", "nll_bound", "bits_per_dim")} == {given}
    density = replace(TINY, likelihood=ContinuousBernoulli()).build({"image": Feature((2, 2, 1))}, 1).summarize(sums)
    assert "nll_bound" in density and "bits_per_dim" not in density  # the levels are unknown, so no bits


def sum_names() -> list[str]:
    model, state = build()
    return list(jax.eval_shape(model.evaluate, state, batch_of(2), jax.random.key(0)))


def test_a_unit_is_active_if_its_posterior_mean_varies():
    model, state = build(replace(TINY, latents=(5,)))
    head = state.params["encoder"]["heads_0"]["Dense_0"]
    dead = jnp.zeros((8, 10)).at[:, :5].set(jnp.asarray([0, 9.0, 0, 9.0, 9.0]))  # and constant log std
    new = {"heads_0": {"Dense_0": {"kernel": head["kernel"] * dead, "bias": head["bias"] + 1}}}
    state = replace(state, params={**state.params, "encoder": {**state.params["encoder"], **new}})
    metrics = evaluate(model, state, n=32)
    assert metrics["active_units"] == 3
    assert metrics["kl_per_latent"].shape == (5,)
    assert metrics["kl_per_latent"].sum() == pytest.approx(metrics["kl"], rel=1e-5)


def test_the_running_average_agrees_with_numpy_and_is_evaluated():
    model, state = build(replace(TINY, ema=0.3))
    expected = jax.tree.map(np.asarray, state.params)
    for step in range(5):
        state, _ = model.update(state, batch_of(6), jax.random.key(step))
        decay = min(0.3, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25, 0.3, 0.3
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state.params)
    assert_close(state.ema, expected)
    average = evaluate(model, replace(state, params=state.ema), n=6)
    assert evaluate(model, state, n=6)["neg_elbo"] == average["neg_elbo"]


def assert_close(a: Params, b: Params) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (5, 1.5), (10, 3.0), (50, 3.0)])
def test_kl_warm_up_weighs_the_kl_by_the_step(step, weight):
    _, _, metrics = update(replace(TINY, beta=Warmup(3.0, 10)), step)
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + weight * metrics["kl"], abs=1e-5)
    assert metrics["neg_elbo"] == pytest.approx(metrics["reconstruction"] + metrics["kl"], abs=1e-5)
    assert metrics["kl"] > 0.01


def test_a_latent_below_the_floor_of_free_bits_is_not_pushed_further_down():
    """Far below the floor, the loss contains the floor of each latent, and the gradient contains no KL."""
    _, free, metrics = update(replace(TINY, free_bits=50.0))
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + 2 * 50.0, rel=1e-5)
    _, none, _ = update(replace(TINY, beta=0.0))
    assert_close(free.params, none.params)


def test_the_free_bits_of_a_group_without_a_closed_kl_are_summed_over_its_latents():
    _, _, metrics = update(replace(TINY, prior=VampPrior(3), free_bits=50.0))
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + 2 * 50.0, rel=1e-5)


def test_doubly_reparameterized_gradients_change_only_the_encoders_step():
    config = replace(TINY, objective="iwae", samples=4)
    before, plain, metrics = update(config)
    _, doubly, same = update(replace(config, dreg=True))
    assert same["loss"] == pytest.approx(metrics["loss"], rel=1e-5)

    def close(a: Params, b: Params) -> bool:
        return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), a, b)))

    assert close(plain.params["decoder"], doubly.params["decoder"])
    assert not close(plain.params["decoder"], before.params["decoder"])
    assert not close(plain.params["encoder"], doubly.params["encoder"])


def test_the_importance_weighted_loss_is_lower_with_more_samples():
    _, _, one = update(replace(TINY, objective="iwae", samples=1), n=64)
    _, _, many = update(replace(TINY, objective="iwae", samples=50), n=64)
    assert many["loss"] < one["loss"] - 0.05


def generate(
    built: tuple[GenerativeModel, State], given: dict[str, Array] | None = None, **request: Any
) -> dict[str, np.ndarray]:
    """Answers a request with a model and a state."""
    model, state = built
    return jax.device_get(compile_request(model.generate, Request(**request))(state, jax.random.key(3), given or {}))


@functools.cache
def compile_request(function: Callable, request: Request) -> Callable:
    return compile_quickly(lambda state, key, given: function(state, key, given, request))


def test_a_request_of_a_vae_is_a_request_of_the_core():
    assert issubclass(Request, core.Request)
    assert Request() == Request(n=64, mode="generate", label=None, temperature=1.0, pixels="mean")


@pytest.fixture(scope="module")
def conditional() -> tuple[GenerativeModel, State]:
    return build(replace(TINY, conditional=True))


@pytest.fixture(scope="module")
def deep() -> tuple[GenerativeModel, State]:
    return build(replace(TINY, latents=(2, 3)))


@pytest.fixture(scope="module")
def given() -> dict[str, Array]:
    """The inputs that a run keeps for requests to the deep model."""
    return {"image": batch_of(3)["image"], "kl_per_latent": jnp.asarray([0.1, 3.0, 0.0, 2.0, 1.0])}


def test_a_conditional_model_generates_the_requested_label_or_all_in_turn(conditional):
    all_labels = generate(conditional, n=6)
    one_label = generate(conditional, n=6, label=1)
    np.testing.assert_array_equal(all_labels["latents"], one_label["latents"])
    same = [np.allclose(a, b, atol=1e-6) for a, b in zip(all_labels["samples"], one_label["samples"], strict=True)]
    assert same == [False, True, False, False, True, False]


def test_a_conditional_model_reconstructs_with_the_given_label(conditional):
    given = {"image": batch_of(4)["image"], "label": jnp.asarray([0, 1, 2, 0])}
    one = generate(conditional, given, mode="reconstruct", n=4)
    other = generate(conditional, {**given, "label": jnp.asarray([0, 2, 2, 0])}, mode="reconstruct", n=4)
    changed = [not np.allclose(a, b) for a, b in zip(one["latents"], other["latents"], strict=True)]
    assert changed == [False, True, False, False]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_refused(conditional, label):
    with pytest.raises(UserError, match="labels 0 to 2"):
        generate(conditional, n=1, label=label)


def test_an_unconditional_model_refuses_a_label(deep):
    with pytest.raises(UserError, match="not conditional"):
        generate(deep, n=1, label=1)


@pytest.mark.parametrize("name", ["conditional", "deep"])
def test_each_mode_returns_samples_of_its_shape(name, request):
    model, state = request.getfixturevalue(name)
    d = 2 if name == "conditional" else 5
    given = {**{k: batch_of(64)[k] for k in ("image", "label")}, "kl_per_latent": jnp.arange(1.0, 1 + d)}

    def shapes(**request):
        def answer(given: dict[str, Array]) -> dict[str, Array]:
            return model.generate(state, jax.random.key(0), given, Request(**request))

        return [x.shape for x in jax.eval_shape(answer, given).values()][::-1]

    image = (2, 2, 1)
    for n in (1, 5, 16, 64):
        rows = max(1, n // 8)
        assert shapes(n=n) == [(n, *image), (n, d)] + [(n,)] * (name == "conditional")
        pairs = (n // 4, 8) if n % 4 == 0 else (n, 2)
        assert shapes(n=n, mode="reconstruct") == [(*pairs, *image), (n, d)]
        assert shapes(n=n, mode="interpolate") == [(rows, 8, *image), (rows * 8, d)]
        moved = min(rows, d)
        assert shapes(n=n, mode="traverse") == [(moved, 8, *image), (moved * 8, d)]


def test_a_sample_does_not_depend_on_the_number_of_samples(deep):
    few, many = (generate(deep, n=n, pixels="sample") for n in (3, 9))
    np.testing.assert_allclose(few["latents"], many["latents"][:3], rtol=1e-6)
    np.testing.assert_array_equal(few["samples"], many["samples"][:3])
    assert len(np.unique(many["latents"][:, 0])) == 9
    assert len(np.unique(many["samples"], axis=0)) > 3


def test_a_large_request_is_decoded_in_parts():
    """Its samples are those of a small one, and eight parts need hardly more memory than one."""
    model, state = build(replace(TINY, network=Perceptron(hidden=(512,)), conditional=True))

    def memory(n: int) -> int:
        program = (
            jax.jit(lambda state: model.generate(state, jax.random.key(3), {}, Request(n=n))).lower(state).compile()
        )
        size = program.memory_analysis()
        assert size is not None
        return size.temp_size_in_bytes

    assert memory(8 * GENERATE_CHUNK) < 2 * memory(GENERATE_CHUNK)
    few, many = (generate((model, state), n=n, pixels="sample") for n in (3, GENERATE_CHUNK + 44))
    for name in ("latents", "samples", "labels"):
        assert len(many[name]) == GENERATE_CHUNK + 44
        np.testing.assert_allclose(few[name], many[name][:3], rtol=1e-6)


def test_sampled_pixels_are_binary_under_a_bernoulli_and_means_are_not(deep):
    assert set(np.unique(generate(deep, n=9, pixels="sample")["samples"])) == {-1.0, 1.0}
    assert np.abs(generate(deep, n=9)["samples"]).max() < 1


def test_temperature_scales_the_noise_of_every_group(deep):
    warm, half, cold = (generate(deep, n=9, temperature=t)["latents"] for t in (1.0, 0.5, 1e-6))
    np.testing.assert_allclose(half[:, :2], warm[:, :2] / 2, rtol=1e-6)
    np.testing.assert_allclose(cold[:, :2], 0, atol=1e-5)
    np.testing.assert_allclose(cold[:, 2:], np.broadcast_to(cold[0, 2:], (9, 3)), atol=1e-4)
    assert np.abs(warm[:, 2:] - cold[:, 2:]).max() > 0.1


def test_reconstructions_are_next_to_their_images_and_interpolations_connect_them(deep, given):
    pairs = generate(deep, given, mode="reconstruct", n=3)
    np.testing.assert_array_equal(pairs["samples"][:, 0], given["image"])
    between = generate(deep, given, mode="interpolate", n=16)
    ends = between["latents"].reshape(2, 8, 5)[:, [0, -1]]
    means = pairs["latents"]
    np.testing.assert_allclose(ends, np.stack([means[:2], means[1:]], axis=1), atol=1e-6)
    np.testing.assert_allclose(between["samples"][:, 0], pairs["samples"][:2, 1], atol=1e-5)


def test_a_traversal_moves_one_latent_in_each_row_in_order_of_decreasing_kl(deep, given):
    z = generate(deep, given, mode="traverse", n=24)["latents"].reshape(3, 8, 5)
    mean = generate(deep, given, mode="reconstruct", n=3)["latents"][0]
    for row, moved in zip(z, (1, 3, 4), strict=True):
        np.testing.assert_allclose(row[:, moved], np.linspace(-3, 3, 8), atol=1e-6)
        np.testing.assert_allclose(np.delete(row, moved, 1), np.broadcast_to(np.delete(mean, moved), (8, 4)), atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "given", "message"),
    [
        ("reconstruct", {}, "mode reconstruct with n 4 takes 4 held-out examples, and reference.npz has 0"),
        ("reconstruct", {"image": batch_of(3)["image"]}, "reference.npz has 3; the fix: a smaller n"),
        ("traverse", {"image": batch_of(3)["image"]}, "no evaluation yet"),
    ],
)
def test_a_request_without_its_inputs_is_refused(deep, mode, given, message):
    with pytest.raises(UserError, match=message):
        generate(deep, given, mode=mode, n=4)


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
        (lambda: Request(n=100_001), "at most 100000 samples; use other seeds"),
        (lambda: Request(label=1, mode="traverse"), "--label with mode generate"),
        (lambda: Request(temperature=-1.0), "temperature"),
        (lambda: replace(TINY, likelihood=DiscretizedLogistic(256)).build(GREY, 1), "--model.likelihood.levels 17"),
        (lambda: replace(TINY, conditional=True).build(GREY, 1), "labels"),
        (lambda: TINY.build({"tokens": Feature((8,), "int32", vocab=9)}, 1), "images, and the data have tokens"),
        (lambda: replace(TINY, network=Residual((4, 4))).build(BINARY, 1), "fewer widths"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_impossible_object_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "widths"),
    [(8, (4,)), (8, (4, 6)), (28, (4, 6)), (28, (4, 6, 8)), (32, (4, 6, 8)), (64, (4,) * 4), (9, (4,))],
)
@pytest.mark.slow
def test_a_residual_network_encodes_and_decodes_images_of_any_size(size, widths, channels):
    image, dtypes = Feature((size, size + (size == 9), channels), levels=256), {"param_dtype": "float32"}
    for likelihood, outputs in ((Bernoulli(), channels), (DiscretizedLogistic(256, components=2), 2 + 4 * channels)):
        network, shape = Residual(widths), (*image.shape[:2], outputs)
        encoder, decoder = network.encoder((2,), dtypes), network.decoder((2,), shape, dtypes)
        model = LatentModel(encoder, decoder, StandardNormal(), likelihood, image)
        params = jax.eval_shape(functools.partial(model.init, param_dtype="float32"), jax.random.key(0))
        features = jax.eval_shape(functools.partial(model.encode, label=None), params, jnp.zeros((3, *image.shape)))
        height, width = (-(-pixels // 2 ** len(widths)) for pixels in image.shape[:2])
        assert features.shape == (1, 3, height * width * widths[-1])
        draw = jax.eval_shape(model.with_latents, params, [jnp.zeros((5, 3, 2))])
        decoded = jax.eval_shape(functools.partial(model.decode, label=None), params, draw)
        assert decoded.shape == (5, 3, *shape)
