"""Training of a GAN: a step of both players is compared with a computation by hand, and the parts of the family work together."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ENGINES, assert_close, run
from contract import build as parts
from test_gan_losses import FORMULAS, numerical_gradient
from tiny_gan import HIDDEN, KEY, LR, PIXELS, SGD, SPEC, TINY, batches_of, blank, normal, on_one_device, reset

from gen.config import Config, Parallel
from gen.core import Params
from gen.data.images import Images
from gen.families.gan import (
    ADA,
    GAN,
    DiffAugment,
    Hinge,
    LeastSquares,
    NonSaturating,
    Relativistic,
    RelativisticAverage,
    Request,
    Wasserstein,
)
from gen.networks import discriminator, generator
from gen.optim import Optimizer, Scalar, Warmup, WarmupLinear
from gen.optim.historical import historical_averaging
from gen.runtime.feed import feed

DURATION = 100


@pytest.fixture(autouse=True)
def seed():
    reset()


def split_theta(theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """The parameters w1, b1, w2, b2 of a discriminator with one hidden layer."""
    return theta[: 4 * HIDDEN].reshape(4, HIDDEN), *theta[4 * HIDDEN : -1].reshape(2, HIDDEN), theta[-1:]


def players(theta: np.ndarray, c: np.ndarray, biased: bool) -> Params:
    """The parameters of TINY: D is theta, and G makes the image tanh(c) from every z."""
    w1, b1, w2, b2 = split_theta(theta)
    d = {
        "Dense_0": {"Dense_0": {"kernel": w1, "bias": b1}},
        "Dense_1": {"kernel": w2[:, None]} | ({"bias": b2} if biased else {}),
    }
    g = {"Dense_0": {"kernel": np.zeros((3, PIXELS)), "bias": c}}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), {"discriminator": d, "generator": g})


class Judged(NamedTuple):
    """D's output by hand."""

    scores: np.ndarray
    features: np.ndarray
    squares: np.ndarray
    """Squared norms of the gradients of the scores with respect to their images."""


def judge(theta: np.ndarray, x: np.ndarray) -> Judged:
    w1, b1, w2, b2 = split_theta(theta)
    h = x @ w1 + b1
    slope = np.where(h >= 0, 1, 0.2)
    return Judged(slope * h @ w2 + b2, slope * h, ((slope * w2 @ w1.T) ** 2).sum(1))


class ByHand(NamedTuple):
    """An update of TINY with the fields of `config`, in numpy and float64, at a step."""

    config: GAN
    step: int

    def at_step(self, value: Scalar) -> float:
        """The value of a number or a warm-up at the step."""
        if isinstance(value, Warmup):
            return value.value * self.step / value.warmup
        assert isinstance(value, float | int)
        return value

    def d_losses(self, theta: np.ndarray, c: np.ndarray, x: np.ndarray) -> np.ndarray:
        """D's objective and its penalty."""
        config, target = self.config, 1 - getattr(self.config.objective, "smoothing", 0.0)
        real, fake = judge(theta, x), judge(theta, np.tile(np.tanh(c), (len(x), 1)))
        # In the cases with a gradient penalty D is linear, so its gradient is the same at every point between.
        off = np.sqrt(real.squares) - 1
        between = config.gradient_penalty * (np.maximum(off, 0) if config.one_sided else off) ** 2
        penalty = (
            between + self.at_step(config.r1) / 2 * real.squares + self.at_step(config.r2) / 2 * fake.squares
        ).mean()
        formula = FORMULAS[type(config.objective)]
        return np.array([formula.discriminator(real.scores, fake.scores, target).mean(), penalty])

    def g_loss(self, theta: np.ndarray, c: np.ndarray, x: np.ndarray) -> float:
        real, fake = judge(theta, x), judge(theta, np.tile(np.tanh(c), (len(x), 1)))
        loss = FORMULAS[type(self.config.objective)].generator(real.scores, fake.scores).mean()
        gap = real.features.mean(0) - fake.features.mean(0)
        return loss + self.config.feature_matching * (gap**2).sum()

    def update(
        self, theta: np.ndarray, c: np.ndarray, xs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Returns D's parameters, c and the metrics after an update on images xs [n, B, 4]."""
        falls, seen = isinstance(self.config.discriminator_optim.lr, WarmupLinear), []
        for i, x in enumerate(xs):
            slope = numerical_gradient(lambda theta, x=x: self.d_losses(theta, c, x).sum(), theta)
            real, fake = judge(theta, x).scores, judge(theta, np.tanh(c)[None]).scores
            scores = (real.mean(), fake.mean(), np.sign(real).mean())
            seen.append((*self.d_losses(theta, c, x), *scores, np.linalg.norm(slope)))
            theta = theta - LR * (1 - i / (len(xs) * DURATION) if falls else 1) * slope
        names = ("loss/discriminator", "penalty", "score/real", "score/fake", "score/sign", "gradient/discriminator")
        metrics = dict(zip(names, np.mean(seen, axis=0), strict=True)) | {
            "loss/generator": self.g_loss(theta, c, xs[-1])
        }
        return theta, c - 2 * LR * numerical_gradient(lambda c: self.g_loss(theta, c, xs[-1]), c), metrics


PENALTIES = {"": {}, "gradient penalty": {"gradient_penalty": 10.0}, "r1 and r2": {"r1": 1.0, "r2": 3.0}}
STEPS = {
    f"{kind.__name__} {name}".strip(): {"objective": kind(), **penalty}
    for kind in FORMULAS
    for name, penalty in PENALTIES.items()
}
STEPS |= {
    "one-sided": {"objective": Wasserstein(), "gradient_penalty": 10.0, "one_sided": True},
    "smoothing": {"objective": NonSaturating(smoothing=0.1)},
    "smoothed squares": {"objective": LeastSquares(smoothing=0.3)},
    "feature matching": {"objective": Hinge(), "feature_matching": 2.0},
    "critic steps": {"objective": Wasserstein(), "critic_steps": 3, "r1": 1.0, "feature_matching": 1.0},
    "a falling rate": {"critic_steps": 3, "discriminator_optim": replace(SGD, lr=WarmupLinear(LR))},
    "a rising penalty": {"objective": Relativistic(), "r1": Warmup(1.0, 10)},
    "microbatches": {"objective": Relativistic(), "r1": 1.0, "critic_steps": 2, "microbatches": 3},
}


@pytest.mark.parametrize("name", STEPS)
def test_an_update_equals_the_step_of_both_players_by_hand(name):
    config, rng, step = replace(TINY, ema=0.9, **STEPS[name]), np.random.default_rng(1), 5
    w1, b1, w2, c = (rng.normal(size=shape) for shape in ((PIXELS, HIDDEN), HIDDEN, HIDDEN, PIXELS))
    if config.gradient_penalty:
        w1, b1 = 0.5 * w1, 3 * np.sign(b1)  # so that D is linear on all images
    if config.one_sided:
        w2 = 0.3 * w2  # so that some norms are below 1
    theta, biased = np.concatenate([w1.ravel(), b1, w2, [0]]), not config.objective.shift_invariant
    model, batches = config.build(SPEC, DURATION), batches_of(config.critic_steps, 6)
    state = replace(blank(model), params=players(theta, c, biased), step=jnp.int32(step))
    after, metrics = on_one_device(model.update, 1)(state, batches, KEY)

    xs = np.asarray(batches["image"], np.float64).reshape(-1, 6, PIXELS)
    theta, c, expected = ByHand(config, step).update(theta, c, xs)
    decay = (1 + step) / (10 + step)  # on its way to 0.9
    average = jax.tree.map(lambda x: (1 - decay) * x, after.params["generator"])  # from an average of zeros
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.ema["generator"], average)
    new, by_z = players(theta, c, biased), after.params["generator"]["Dense_0"].pop("kernel")
    del new["generator"]["Dense_0"]["kernel"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, new)
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.abs(by_z).max() > 0


def test_the_gradient_penalty_is_at_uniform_points_between_a_real_and_a_generated_image():
    """D bends a quarter of the way from images of -1 to real ones of 1, and is 5 times as steep after."""
    config = replace(TINY, discriminator=discriminator.Perceptron((1,)), gradient_penalty=1.0, objective=Wasserstein())
    model, n = config.build(SPEC, 1), 4000
    hidden = {"kernel": jnp.ones((PIXELS, 1)), "bias": jnp.full(1, 0.5 * PIXELS)}
    d = {"Dense_0": {"Dense_0": hidden}, "Dense_1": {"kernel": jnp.ones((1, 1))}}
    g = {"Dense_0": {"kernel": jnp.zeros((3, PIXELS)), "bias": jnp.full(PIXELS, -20.0)}}
    state = replace(blank(model), params={"generator": g, "discriminator": d})
    batch = {**batches_of(1, n), "image": jnp.ones((1, n, 2, 2, 1))}
    _, metrics = jax.jit(on_one_device(model.update, 1))(state, batch, KEY)
    steep, flat = (np.sqrt(PIXELS) * np.array([1, 0.2]) - 1) ** 2
    share = (float(metrics["penalty"]) - flat) / (steep - flat)
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / n)


def test_the_gradient_penalty_of_packs_is_on_the_line_between_two_packs():
    """D is steep where the mean of a pack is above -0.8, which is 90% of the line between packs of -1 and of 1."""
    config = replace(TINY, pack=2, discriminator=discriminator.Perceptron((1,)), gradient_penalty=1.0)
    model, n = replace(config, objective=Wasserstein()).build(SPEC, 1), 4000
    d = {
        "Dense_0": {"Dense_0": {"kernel": jnp.ones((2 * PIXELS, 1)), "bias": jnp.full(1, 2 * 0.8 * PIXELS)}},
        "Dense_1": {"kernel": jnp.ones((1, 1))},
    }
    g = {"Dense_0": {"kernel": jnp.zeros((3, PIXELS)), "bias": jnp.full(PIXELS, -20.0)}}
    state = replace(blank(model), params={"generator": g, "discriminator": d})
    batch = {**batches_of(1, n), "image": jnp.ones((1, n, 2, 2, 1))}
    _, metrics = jax.jit(on_one_device(model.update, 1))(state, batch, KEY)
    steep, flat = (np.sqrt(2 * PIXELS) * np.array([1, 0.2]) - 1) ** 2
    share = (float(metrics["penalty"]) - flat) / (steep - flat)
    assert abs(share - 0.9) < 4 * np.sqrt(0.9 * 0.1 / (n / 2)), "98% if each image had its own point"


DIGITS = Images(name="digits", batch_size=8)
PIECES = {
    "packs": {
        "objective": Wasserstein(),
        "gradient_penalty": 10.0,
        "critic_steps": 2,
        "pack": 2,
        "augment": DiffAugment(("translation", "cutout")),
        "generator": generator.Perceptron((8,), norm="virtual"),
        "discriminator": discriminator.Perceptron((8,), spectral=True),
        "dtype": "bfloat16",
        "param_dtype": "bfloat16",
    },
    "ada": {
        "objective": NonSaturating(smoothing=0.1),
        "discriminator": discriminator.Perceptron((8,), spectral=True, minibatch=2),
        "critic_steps": 2,
        "feature_matching": 1.0,
        "augment": ADA(("color",), target=-0.99, kimg=1.0),
        "generator_optim": Optimizer(historical=0.1),
        "discriminator_optim": Optimizer(historical=0.1, clip=1.0),
        "dtype": "float64",
        "param_dtype": "float64",
    },
    "residual": {
        "objective": Hinge(),
        "conditioning": "projection",
        "generator": generator.Residual((4, 4)),
        "discriminator": discriminator.Residual((4,), 1, attention=(1,), spectral=True, dropout=0.2),
    },
}
LONG = ("residual", "ada", "packs")  # they compile longest


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in PIECES]
)
def test_pieces_train_evaluate_and_generate_together(name):
    config = replace(TINY, ema=0.9, **PIECES[name])
    with jax.enable_x64(name == "ada"):
        data, model, engine, batch = parts(Config(model=config, data=DIGITS, steps=2, seed=1))
        state, _ = engine.update(engine.init(), batch(0))
        state, metrics = engine.update(state, batch(1))
        assert np.isfinite(list(metrics.values())).all()
        found, declared = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, engine.abstract))
        assert found == declared
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(config.param_dtype)}
        # An average in bfloat16 would stand still, and so would the moments of the optimizers.
        averages = [x for x in jax.tree.leaves((state.ema, state.opt_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype for x in averages} == {jnp.promote_types(config.param_dtype, jnp.float32)}
        seen = next(data.evaluation("validation", 8))
        sums = jax.eval_shape(on_one_device(model.evaluate), state, jax.tree.map(jnp.asarray, seen), KEY)
        made = jax.eval_shape(lambda state: model.generate(state, KEY, {}, Request(n=5)), state)
    assert sums.keys() - {"saturation"} == {"score_real", "score_fake", "paired_accuracy"}
    assert ("saturation" in sums) == (name != "packs"), "the loss of a Wasserstein critic has no minimum"
    assert (made["samples"].shape, made["samples"].dtype) == ((5, 8, 8, 1), jnp.float32)
    assert ("scores" in made) == (name == "residual"), "a score of several images belongs to none of them"
    if name == "ada":  # the sign is always above the target, so p rises by a batch at each step of D
        assert float(state.stats["augment"]) == pytest.approx(2 * 2 * 8 / 1000)
        assert float(metrics["augment"]) == pytest.approx((3 + 4) / 2 * 8 / 1000)


@pytest.mark.slow
def test_losses_that_couple_the_batch_agree_on_any_number_of_devices_and_either_engine():
    model = GAN(
        latent=4,
        generator=generator.DCGAN((4,), (2,), kernel=3),
        discriminator=discriminator.DCGAN((4, 4), kernel=3, norm="batch", minibatch=2, dropout=0.2),
        conditioning="concatenation",
        objective=RelativisticAverage(),
        feature_matching=1.0,
        generator_optim=replace(SGD, lr=0.02),
        discriminator_optim=replace(SGD, lr=0.02),
    )
    config = Config(model=model, data=replace(DIGITS, batch_size=16), steps=10)
    state, metrics = run(config, Parallel(devices=1), 10)
    for engine in ("pmap on 4", "jit on 4"):
        other, other_metrics = run(config, ENGINES[engine], 10)
        assert_close(state, other, 1e-5)
        assert_close(metrics, other_metrics, 1e-5)


def test_each_step_of_the_critic_takes_the_next_batch():
    config = Config(model=replace(TINY, critic_steps=3), data=DIGITS, steps=2)
    data = config.data.build()
    steps = [feed(data, config.model.build(data.spec, 2), config, range(8))(step) for step in (0, 1)]
    index = np.concatenate([batch["index"] for batch in steps])
    assert [batch["image"].shape for batch in steps] == [(3, 8, 8, 8, 1)] * 2
    assert len(np.unique(index)) == 48
    for i in range(6):
        one = data.batch(0, i, range(8))
        np.testing.assert_array_equal(index[i], one["index"])
        np.testing.assert_array_equal(steps[i // 3]["image"][i % 3], one["image"])


def test_historical_averaging_adds_the_gradient_of_the_distance_from_the_mean():
    params, grads, tx = normal(5, 4), normal(5, 4), historical_averaging(0.3)
    state = tx.init({"w": jnp.zeros(4)})
    for t in range(5):
        found, state = tx.update({"w": jnp.asarray(grads[t])}, state, {"w": jnp.asarray(params[t])})
        mean = params[: t + 1].mean(0)
        expected = grads[t] + numerical_gradient(lambda p, mean=mean: 0.3 * ((p - mean) ** 2).sum(), params[t])
        np.testing.assert_allclose(jax.tree.leaves(found)[0], expected, rtol=1e-4, atol=1e-5)
