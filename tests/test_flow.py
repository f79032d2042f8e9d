"""The flow family: its losses, samplers and likelihood against known answers, its samples, and its errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import Array, Feature, Params, State
from gen.errors import UserError
from gen.families.conditions import Condition, Conditions
from gen.families.flow import DiT, Flow, FlowMatching, MeanFlow, OneStepRequest, Request, Scattered, UNet
from gen.families.flow.likelihood import draw_probes, log_density
from gen.families.flow.model import FlowModel
from gen.families.flow.objectives import expand
from gen.families.flow.samplers import SAMPLERS, Velocity, no_jumps
from gen.families.flow.sampling import generate, invert
from gen.optim import Optimizer

LABEL = Feature((), "int32", classes=3)
SPEC = {"image": Feature((5, 4, 1), levels=17, dequantized=True), "label": LABEL}
TINY = Flow(network=UNet((4,)), conditional=True, likelihood_steps=2)
KEYS = jax.random.split(jax.random.key(3), 4000)


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# Samplers


def oscillating(x: Array, t: Array, s: Array) -> Array:
    """dx/dt = x cos(5 t), whose solution is x(t) = x(0) exp(sin(5 t) / 5)."""
    return x * jnp.cos(5 * t)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("multistep", 2)])
@pytest.mark.parametrize("warp", [1, 2], ids=["equal steps", "unequal steps"])
def test_samplers_converge_with_their_order(name: str, order: int, warp: int, double: None):
    x = jnp.asarray([[1.0], [-2.0]])

    def error(steps: int) -> float:
        times = jnp.linspace(1, 0, steps + 1) ** warp
        found = SAMPLERS[name](oscillating, x, times, no_jumps)
        return float(jnp.abs(found - x * jnp.exp(-jnp.sin(5.0) / 5)).max())

    assert np.log2(error(64) / error(128)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("follow", "interval"), [(generate, {"guidance_to": 0.5}), (invert, {"guidance_from": 0.5})], ids=["down", "up"]
)
def test_multistep_begins_again_where_the_velocity_jumps(follow, interval, double: None):
    """At an end of the interval of guidance, a line through both sides of the jump would make an error of order 1."""
    x, sign = jnp.asarray([[1.0], [-2.0]]), -1 if follow is generate else 1

    def error(steps: int) -> float:
        request = Request(steps=steps, guidance=2.0, **interval)

        def velocity(x: Array, t: Array, s: Array) -> Array:
            return oscillating(x, t, s) + jnp.where(request.guided(t), x, 0.0)

        # The jump adds x for half of the time.
        exact = x * jnp.exp(sign * (jnp.sin(5.0) / 5 + 0.5))
        return float(jnp.abs(follow(velocity, x, request) - exact).max())

    assert np.log2(error(64) / error(128)) == pytest.approx(2, abs=0.15)


def test_euler_makes_one_exact_step_with_mean_velocities():
    def mean(x: Array, t: Array, s: Array) -> Array:
        """The mean of `oscillating` over the path from t to s."""
        return x * (jnp.exp((jnp.sin(5 * s) - jnp.sin(5 * t)) / 5) - 1) / (s - t)

    x = jnp.asarray([[1.0], [-2.0]])
    found = SAMPLERS["euler"](mean, x, jnp.asarray([1.0, 0.0]), no_jumps)
    np.testing.assert_allclose(found, x * jnp.exp(-jnp.sin(5.0) / 5), rtol=1e-6)


# Data from a Gaussian, whose velocity, path and density are known

MEAN, COVARIANCE = np.array([0.3, -0.5, 0.1]), np.array([[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.4]])


def gaussian_velocity(x: Array, t: Array, s: Array) -> Array:
    """E[e - x_0 | x_t] for x_0 ~ N(MEAN, COVARIANCE)."""
    covariance, mean = jnp.asarray(COVARIANCE, x.dtype), jnp.asarray(MEAN, x.dtype)
    of_path = (1 - t) ** 2 * covariance + t**2 * jnp.eye(3, dtype=x.dtype)
    whitened = jnp.linalg.solve(of_path, (x - ((1 - t) * mean)[None]).T)
    return (t * whitened - (1 - t) * covariance @ whitened).T - mean[None]


def draw_gaussian(n: int) -> Array:
    return jnp.asarray(np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, n))


@pytest.mark.parametrize("sampler", ["heun", "multistep"])
def test_an_inverted_example_is_generated_again(sampler, double: None):
    x = draw_gaussian(4)

    def error(steps: int) -> float:
        request = Request(n=4, steps=steps, sampler=sampler)
        return float(jnp.abs(generate(gaussian_velocity, invert(gaussian_velocity, x, request), request) - x).max())

    assert error(128) < 1e-3
    assert error(128) < 0.35 * error(64)


def test_noise_of_examples_is_standard_normal(double: None):
    x = draw_gaussian(4000)
    noise = np.asarray(invert(gaussian_velocity, x, Request(steps=64, sampler="heun")))
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(3), atol=0.08)


def gaussian_log_density(x: Array) -> np.ndarray:
    d = np.asarray(x) - MEAN
    quadratic = (d @ np.linalg.inv(COVARIANCE) * d).sum(1)
    return -(quadratic + np.linalg.slogdet(2 * np.pi * COVARIANCE)[1]) / 2


@partial(jax.jit, static_argnums=(0, 2))
def exact_log_density(velocity: Velocity, x: Array, steps: int) -> Array:
    """Returns log p(x) [B] with the exact trace: with unit vectors as probes, the terms v^T J v are the Jacobian's diagonal."""
    n = x[0].size
    basis = jnp.broadcast_to(jnp.eye(n, dtype=x.dtype).reshape(n, 1, *x.shape[1:]), (n, *x.shape))
    terms = log_density(velocity, x, steps, lambda i: basis)
    # A probe of zeros leaves log N(x_1; 0, I), which each row has once, next to one term of the trace.
    log_normal = log_density(velocity, x, steps, lambda i: jnp.zeros_like(basis[:1]))
    return (terms - log_normal).sum(0) + log_normal[0]


def test_the_log_density_with_the_exact_trace(double: None):
    x = draw_gaussian(5)

    def error(steps: int) -> float:
        return float(np.abs(exact_log_density(gaussian_velocity, x, steps) - gaussian_log_density(x)).max())

    assert error(64) < 0.05
    assert np.log2(error(64) / error(128)) == pytest.approx(2, abs=0.4)


def test_a_density_as_narrow_as_the_cell_of_a_byte(double: None):
    std = 2 / 256 / np.sqrt(12)

    def velocity(x: Array, t: Array, s: Array) -> Array:
        """E[e - x_0 | x_t] for x_0 ~ N(-1, std^2)."""
        centred, variance = x + 1 - t, (1 - t) ** 2 * std**2 + t**2
        return (t - (1 - t) * std**2) / variance * centred + 1

    x = -1 + std * jnp.asarray([[-1.0], [0.5]])
    expected = -np.array([[1.0], [0.25]]) / 2 - np.log(std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(exact_log_density(velocity, x, 32), expected[:, 0], atol=0.02)


def test_hutchinsons_estimates_spread_around_the_log_density_as_their_error_says(double: None):
    x, n = jnp.tile(draw_gaussian(1), (500, 1)), 500
    probes = partial(draw_probes, KEYS[:n], 2, x)
    estimates = np.asarray(log_density(gaussian_velocity, x, 64, probes))
    error = np.sqrt((estimates.var(0, ddof=1) / 2).mean() / n)
    assert estimates.mean() == pytest.approx(gaussian_log_density(x[:1])[0], abs=4 * error + 5e-3)
    # The standard error itself, against the spread of the means of many examples.
    assert error == pytest.approx(estimates.mean(0).std(ddof=1) / np.sqrt(n), rel=0.15)
    assert 0 < error < 0.05


# Objectives


def losses(objective: FlowMatching | MeanFlow, u: Callable[..., Array], x: Array, params: Params = None) -> Array:
    return objective.loss(u, params, x, KEYS[: len(x)])


@pytest.mark.parametrize("weight", ["velocity", "data", "noise", "likelihood"])
def test_the_weights_of_flow_matching_are_those_of_the_error_that_they_name(weight):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 3)), jnp.float32)
    seen: list[Array] = []

    def u(params: Params, x_t: Array, r: Array, t: Array) -> Array:
        assert r is t
        seen[:] = [x_t, t]
        return 0.5 * x_t

    found = losses(FlowMatching(weight=weight), u, x)
    x_t, t = seen
    e = (x_t - (1 - expand(t, x)) * x) / expand(t, x)
    of_data = (x_t - expand(t, x) * 0.5 * x_t) - x
    error = {
        "velocity": 0.5 * x_t - (e - x),
        "data": of_data,
        "noise": (x_t + (1 - expand(t, x)) * 0.5 * x_t) - e,
        # -1/2 d/dt of the signal-to-noise ratio, by finite differences.
        "likelihood": of_data * jnp.sqrt(expand((snr(t - 1e-3) - snr(t + 1e-3)) / 4e-3, x)),
    }[weight]
    np.testing.assert_allclose(found, jnp.square(error).mean((1, 2)), rtol=2e-3)


def snr(t: Array) -> Array:
    return ((1 - t) / t) ** 2


def test_times_are_logit_normal():
    times: list[Array] = []

    def u(params: Params, x_t: Array, r: Array, t: Array) -> Array:
        times.append(t)
        return x_t

    losses(FlowMatching(mean=-0.5, std=1.5), u, jnp.zeros((4000, 1)))
    logits = np.log(times[0] / (1 - times[0]))
    assert logits.mean() == pytest.approx(-0.5, abs=0.1)
    assert logits.std() == pytest.approx(1.5, abs=0.1)


def straight(slope: float, params: Params, x_t: Array, r: Array, t: Array) -> Array:
    """The mean velocity if all data are at 0.7, where paths are straight; plus an error of slope (t - r)."""
    return (x_t - 0.7) / expand(t, x_t) + slope * expand(t - r, x_t)


def test_mean_flow_has_no_loss_at_the_mean_velocity():
    x = jnp.full((50, 2), 0.7)
    objective = MeanFlow(equal=0.5)
    assert losses(objective, partial(straight, 0.0), x).max() < 1e-6
    # du/dt along the path is the slope, so u and its target differ by twice the error.
    times: list[Array] = []

    def recorded(params: Params, x_t: Array, r: Array, t: Array) -> Array:
        times[:] = [r, t]
        return straight(0.3, params, x_t, r, t)

    found = losses(objective, recorded, x)
    r, t = times
    np.testing.assert_allclose(found, jnp.square(0.6 * (t - r)), atol=1e-5)


def test_the_gradient_of_mean_flow_is_weighted_and_leaves_the_target_fixed():
    x = jnp.full((50, 3), 0.7)

    def u(params: Array, x_t: Array, r: Array, t: Array) -> Array:
        return straight(0.0, None, x_t, r, t) + params * expand(t - r, x_t)

    def gradients(power: float) -> np.ndarray:
        objective = MeanFlow(equal=0.0, power=power)
        return np.asarray(jax.jacobian(lambda slope: losses(objective, u, x, slope))(jnp.float32(0.3)))

    plain, weighted = gradients(0.0), gradients(1.0)
    # The error of each of the three numbers is (t - r) (slope + the fixed slope): its square has the gradient 2 (0.6 (t - r)) (t - r).
    error = 0.3 * plain
    # The weight is that of their sum, and the value of the loss is their mean.
    np.testing.assert_allclose(losses(MeanFlow(equal=0.0), u, x, jnp.float32(0.3)), error / 3, rtol=1e-4)
    np.testing.assert_allclose(weighted, plain / (error + 1e-3), rtol=1e-3)


def test_a_fraction_of_mean_flows_pairs_is_equal():
    r, t = MeanFlow(equal=0.75).draw_times(jnp.zeros((4000, 1)), KEYS, KEYS[::-1], jax.random.split(KEYS[0], 4000))
    assert float((r == t).mean()) == pytest.approx(0.75, abs=0.03)
    assert bool((r <= t).all())


# Models


@pytest.fixture(scope="module")
def params() -> dict[str, Params]:
    """Parameters of TINY, away from their small initial values."""

    def init(key: Array) -> dict[str, Params]:
        params = TINY.flow_model(SPEC).init(key)
        return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)

    return jax.jit(init)(jax.random.key(0))


def test_guidance_extrapolates_from_no_label_inside_its_interval(params):
    flow, request = TINY.flow_model(SPEC), Request(guidance=3.0, guidance_from=0.2, guidance_to=0.5)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5, 4, 1)), jnp.float32)

    @jax.jit
    def velocities(t: Array) -> list[Array]:
        """Returns the guided velocity, that of the labels, and that of no label."""
        classes = jnp.arange(3), jnp.full(3, 3)
        plain = [flow.velocity(params, Condition(label))(x, t, t) for label in classes]
        return [flow.velocity(params, Condition(classes[0]), request)(x, t, t), *plain]

    assert request.guided(jnp.asarray([0.1, 0.2, 0.3, 0.5, 0.6])).tolist() == [False, True, True, True, False]
    assert not Request().guided(jnp.asarray([0.2, 0.8])).any(), "without guidance there is no jump"
    for time, w in ((0.1, 1), (0.3, 3), (0.6, 1)):
        guided, v, base = velocities(jnp.float32(time))
        assert jnp.abs(v - base).max() > 1e-2
        np.testing.assert_allclose(guided, base + w * (v - base), atol=1e-5)


def test_a_sample_depends_on_its_key_alone(params, monkeypatch):
    model = TINY.flow_model(SPEC)
    monkeypatch.setattr("gen.families.flow.model.GENERATE_CHUNK", 4)
    many, few = (
        jax.jit(lambda params, n=n: model.sample(params, KEYS[:n], {}, Request(n=n, steps=2)))(params) for n in (10, 2)
    )
    assert many["samples"].shape == (10, 5, 4, 1)
    np.testing.assert_array_equal(many["labels"], np.arange(10) % 3)
    np.testing.assert_allclose(many["samples"][:2], few["samples"], atol=1e-5)


class Watched:
    """A network that keeps what it was last given."""

    def apply(self, variables: Params, read: Array, *given: Array) -> Array:
        self.given = read, *given
        return read[..., :1]


@pytest.mark.parametrize(("objective", "r"), [(FlowMatching(), 0.75), (MeanFlow(), 0.25)])
def test_samplers_get_means_over_intervals_only_if_these_are_trained(objective, r):
    """From t = 0.75 to 0.25, a network that was trained on velocities must not be asked for r < t."""
    network = Watched()
    flow = replace(replace(TINY, objective=objective).flow_model(SPEC), network=network)
    velocity, x = flow.velocity({"velocity": {}}, Condition(jnp.zeros(3, int))), jnp.zeros((3, 5, 4, 1))
    for t, s, begin in ((0.75, 0.25, r), (0.25, 0.75, 0.25), (0.5, 0.5, 0.5)):
        velocity(x, jnp.float32(t), jnp.float32(s))
        _, *times, _, _ = network.given
        np.testing.assert_array_equal(times, [[begin] * 3, [t] * 3])


@pytest.mark.parametrize("objective", [FlowMatching(), MeanFlow(equal=0.25)])
def test_draws_of_an_example_do_not_depend_on_each_other(objective):
    """A key that two of them share would change what is learned, and no loss would show it."""
    n, network = len(KEYS), Watched()
    spec = {"image": Feature((2, 2, 1), levels=256), "label": LABEL}
    config = replace(TINY, given=Scattered(), label_dropout=0.5)
    flow = replace(config.flow_model(spec), network=network)
    # The examples are 0, so x_t is t e.
    flow.loss(objective, {"velocity": {}}, {"image": jnp.zeros((n, 2, 2, 1)), "label": jnp.zeros(n, int)}, KEYS)
    read, r, t, label, _ = map(np.asarray, network.given)
    assert ((r < t).mean() == pytest.approx(0.75, abs=0.04)) if isinstance(objective, MeanFlow) else (r == t).all()
    draws = {
        "times": np.stack([r, t], 1),
        "noise": read[..., 0].reshape(n, -1) / t[:, None],
        "mask": read[..., 2].reshape(n, -1),
        "no label": label[:, None] == 3,
    }
    for a, b in itertools.combinations(draws, 2):
        for x, y in itertools.product(draws[a].T, draws[b].T):
            # The correlation of 4000 independent pairs has a standard deviation of 0.016.
            assert abs(np.corrcoef(x, y)[0, 1]) < 0.08, f"{a} depends on {b}"


@pytest.mark.slow
def test_bits_per_dimension_of_the_test(params):
    model = TINY.build(SPEC, 10)
    state = State(jnp.int32(0), params, {}, {})
    x = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, size=(4, 5, 4, 1)), jnp.float32)
    batch = {"image": x, "label": jnp.arange(4) % 3, "row": jnp.arange(4), "weight": jnp.asarray([1.0, 1, 1, 0])}
    assert model.test is not None
    run = jax.jit(jax.vmap(model.test, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=1))
    found = model.summarize(run(state, jax.tree.map(lambda x: x[None], batch), jax.random.key(0)))
    # The same with the exact trace, and without the padding.
    exact = exact_log_density(TINY.flow_model(SPEC).velocity(params, Condition(batch["label"])), x, 2)
    bits = -(exact[:3].mean() / 20 + np.log(2 / 17)) / np.log(2)
    assert found["bits_per_dim"] == pytest.approx(float(bits), abs=4 * found["bits_per_dim_error"])
    assert 0 < found["bits_per_dim_error"] < 1
    assert model.protocol["bits_per_dim"]["steps"] == 2


def test_held_out_examples_keep_their_labels(monkeypatch):
    """Label dropout is for training alone."""
    model = TINY.build(SPEC, 10)
    dropped: list[float] = []

    def drop(self, condition, keys, rate):
        dropped.append(rate)
        return condition

    monkeypatch.setattr(Conditions, "drop", drop)
    state = jax.eval_shape(model.init, jax.random.key(0))
    batch = {"image": jnp.zeros((4, 5, 4, 1)), "label": jnp.arange(4) % 3, "row": jnp.arange(4), "weight": jnp.ones(4)}
    for function, rates in ((model.evaluate, []), (model.update, [0.1])):
        one = jax.vmap(function, in_axes=(None, None, None), axis_name="data", axis_size=1)
        jax.eval_shape(one, state, batch, jax.random.key(0))
        assert dropped == rates


def test_protocols_say_what_is_given():
    sources = {"image": SPEC["image"], "source": Feature((5, 4, 3))}
    for config, spec, given in (
        (TINY, SPEC, ("label",)),
        (replace(TINY, conditional=False), SPEC, ()),
        (replace(TINY, conditional=False), sources, ("source",)),
        (TINY, {"image": SPEC["image"], "caption": Feature((3,), "int32", vocab=5, end=0)}, ("caption",)),
    ):
        protocol = config.build(spec, 10).protocol
        assert {protocol[name]["conditional"] for name in ("loss", "nll_bound", "bits_per_dim")} == {given}


def test_discrete_pixels_have_no_density():
    model = TINY.build({**SPEC, "image": Feature((5, 4, 1), levels=17)}, 10)
    assert model.test is None
    assert "--data.dequantize" in str(model.protocol["bits_per_dim"]["refused"])


def test_latents_of_any_number_of_axes_are_modelled():
    spec = {"latent": Feature((5, 3))}
    flow = Flow(network=DiT(1, 8, 2, (2,))).flow_model(spec)
    out = jax.jit(lambda key: flow.sample(flow.init(key), KEYS[:2], {}, Request(n=2, steps=1)))(jax.random.key(0))
    assert out["samples"].shape == (2, 5, 3)
    assert jnp.abs(out["samples"]).max() > 1, "latents are not limited to [-1, 1]"
    assert out.keys() == {"samples"}


@pytest.mark.slow
def test_a_flow_for_other_classes_starts_from_what_its_base_does_without_a_label():
    network, x, t = DiT(1, 8, 2, (2,)), jnp.ones((1, 4, 4, 1)), jnp.full(1, 0.5)

    def flow(classes: int | None) -> FlowModel:
        label = {} if classes is None else {"label": Feature((), "int32", classes=classes)}
        return Flow(network=network, conditional=classes is not None).flow_model({"image": Feature((4, 4, 1)), **label})

    @jax.jit
    def follow(key: Array) -> list[tuple[Array, Array]]:
        params, found = {n: flow(n).init(key) for n in (None, 3)}, []
        for before, after, label in ((None, 2, 1), (3, 2, 1), (3, None, None)):
            like = jax.eval_shape(flow(after).init, key)
            condition = Condition(None if label is None else jnp.full(1, label))
            adopted = flow(after).apply(Flow().adopt(params[before], like), condition, None, x, t, t)
            found.append((adopted, flow(before).apply(params[before], flow(before).conditions.none(1), None, x, t, t)))
        return found

    for adopted, wanted in follow(jax.random.key(0)):
        np.testing.assert_allclose(adopted, wanted, rtol=1e-5, atol=1e-6)
    # An equal number of classes keeps them.
    params = jax.eval_shape(flow(3).init, jax.random.key(0))
    assert Flow().adopt(params, params)["velocity"] is params["velocity"]


def test_mean_flow_starts_from_a_flow():
    base = replace(TINY, network=DiT(1, 8, 2))
    mean = replace(TINY, objective=MeanFlow()).inherit(base, SPEC)
    assert mean.network == base.network
    assert mean.objective == MeanFlow()
    assert mean.build(SPEC, 10).request().steps == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "size"),
    [pytest.param(FlowMatching(std=2.0), 0.0, marks=pytest.mark.long), (MeanFlow(mean=0.0, equal=0.5), 1.0)],
)
def test_one_step_leads_to_the_data_with_mean_velocities(objective, size):
    """The data are at -1 and 1. One step of a velocity leads to their mean, 0, and one of a mean velocity to one of them."""
    spec = {"latent": Feature((2, 1))}
    model = Flow(network=DiT(1, 32, 2, (2,)), objective=objective, ema=0.99, optim=Optimizer(lr=3e-3)).build(spec, 700)
    update = jax.jit(jax.vmap(model.update, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=1))
    state, row = model.init(jax.random.key(0)), jnp.arange(128)
    x = jnp.where(row % 2 == 0, 1.0, -1.0)[None, :, None, None] * jnp.ones((1, 1, 2, 1))
    for step in range(700):
        state, _ = update(state, {"latent": x, "row": row[None]}, jax.random.key(step))
    request = Request(n=256, steps=1, sampler="euler")
    samples = jax.jit(lambda state: model.generate(state, jax.random.key(0), {}, request))(state)["samples"]
    assert float(jnp.abs(samples.mean((1, 2))).mean()) == pytest.approx(size, abs=0.2)


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request(steps=0), "steps is 0"),
        (lambda: Request(guidance_from=0.5, guidance_to=0.5), "they are times"),
        (lambda: Request(guidance_to=0.5), "guidance_to is not used by guidance 1; .* leave --guidance-to out"),
        (lambda: Request(guidance_from=0.5), "guidance_from is not used by guidance 1"),
        (lambda: Request(strength=0.6), "strength is not used by mode generate; the fix: --mode edit"),
        (lambda: OneStepRequest(mode="colorize", strength=0.6), "not used by mode colorize"),
        (lambda: Request(n=10**6), "other seeds"),
        (lambda: FlowMatching(std=0), "std is 0"),
        (lambda: MeanFlow(equal=1.5), "equal is 1.5"),
        (lambda: Flow(likelihood_probes=1), "use at least 2"),
        (lambda: UNet((4,), attention=(2,)), "stages 1 to 1"),
        (lambda: UNet((6,), attention=(1,)), "can't be shared by 4 heads"),
        (lambda: UNet((4,) * 4).trunk((5, 5, 1), {}), "use fewer widths"),
        (lambda: UNet().trunk((5, 1), {}), "a UNet takes images"),
        (lambda: DiT(width=10, heads=3), "can't be shared by 3 heads"),
        (lambda: DiT(patch=(2, 2)).trunk((5, 1), {}), "patch has 2 sides"),
        (lambda: Flow().flow_model({"tokens": Feature((5,), "int32")}), "the data have tokens"),
        (lambda: Flow(conditional=True).flow_model({"image": SPEC["image"]}), "needs labels"),
        (lambda: Flow().flow_model(SPEC).check_guidance(Request(guidance=2)), "not conditional"),
        (
            lambda: replace(TINY, label_dropout=0.0).flow_model(SPEC).check_guidance(Request(guidance=2)),
            "label_dropout",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
