"""A model from a loss per example, and the small functions that families share: noise by row, sums, labels, embeddings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import assert_engines_agree

from gen import axis, core
from gen.config import Config
from gen.core import Array, Batch, GenerativeModel, Key, Params, Spec, State
from gen.data.images import Images
from gen.errors import UserError
from gen.families import labels, learner
from gen.networks.embedding import sinusoidal
from gen.optim import Optimizer, Warmup, adapters, schedule

KEY = jax.random.key(0)
ROWS = jnp.arange(8, dtype=jnp.int32)
BATCH = {
    "x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32),
    "row": ROWS,
    "weight": jnp.asarray([1, 1, 1, 1, 1, 0, 0, 0], jnp.float32),
}


@dataclass(frozen=True)
class Mean(learner.LearnedFamily):
    """The mean of the data as a model: the loss is |x - mean + noise|^2."""

    noise: float = 0.0


def begin(key: Key) -> dict[str, Params]:
    return {"mean": {"kernel": jnp.zeros((3, 1))}}


def loss(noise: float) -> Callable[[Params, Batch, Key], tuple[Array, dict[str, Array]]]:
    def of_examples(params: Params, batch: Batch, keys: Key) -> tuple[Array, dict[str, Array]]:
        e = noise * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        difference = batch["x"] - params["mean"]["kernel"][:, 0][None] + e
        return jnp.square(difference).sum(1), {"first": difference[:, 0], "steps": batch["step"]}

    return of_examples


def sample(params: Params, keys: Key, given: Batch, request: core.Request) -> dict[str, Array]:
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return {"samples": params["mean"]["kernel"][:, 0][None] + noise}


def build(config: Mean, **more) -> GenerativeModel:
    parts = {"init": begin, "loss": loss(config.noise), "sample": sample, "request": core.Request}
    return learner.family(config, 10, **parts | more)


def on_one_device(function: Callable) -> Callable:
    return jax.jit(jax.vmap(function, in_axes=None, out_axes=None, axis_name="data", axis_size=1))


SGD = Optimizer(rule="sgd", lr=0.1, b1=0.0)


def test_an_update_descends_the_mean_loss():
    model = build(Mean(optim=SGD))
    state, metrics = on_one_device(model.update)(model.init(KEY), BATCH, KEY)
    x = np.asarray(BATCH["x"])
    np.testing.assert_allclose(state.params["mean"]["kernel"][:, 0], 0.2 * x.mean(0), rtol=1e-5)
    assert int(state.step) == 1
    assert list(metrics) == ["first", "gradient", "loss", "steps"]
    assert metrics["loss"] == pytest.approx((x**2).sum(1).mean(), rel=1e-5)
    assert metrics["first"] == pytest.approx(x[:, 0].mean(), rel=1e-5)
    assert metrics["gradient"] == pytest.approx(np.linalg.norm(2 * x.mean(0)), rel=1e-5)


def test_held_out_metrics_leave_padding_out():
    model = build(Mean())
    found = model.summarize(jax.device_get(on_one_device(model.evaluate)(model.init(KEY), BATCH, KEY)))
    x = np.asarray(BATCH["x"])[:5]
    assert found == pytest.approx({"loss": (x**2).sum(1).mean(), "first": x[:, 0].mean(), "steps": 0.0}, rel=1e-5)


def test_held_out_examples_may_have_another_loss():
    model = build(Mean(noise=5.0), evaluate=loss(0.0))
    found = model.summarize(jax.device_get(on_one_device(model.evaluate)(model.init(KEY), BATCH, KEY)))
    assert found["loss"] == pytest.approx((np.asarray(BATCH["x"])[:5] ** 2).sum(1).mean(), rel=1e-5)


def test_noise_belongs_to_the_row_whatever_the_order_or_microbatch():
    order = jnp.asarray([3, 7, 0, 5, 1, 2, 6, 4])
    shuffled = {name: value[order] for name, value in BATCH.items()}
    whole, parts = (build(Mean(noise=1.0, optim=SGD, microbatches=n)) for n in (1, 4))
    first, _ = on_one_device(whole.update)(whole.init(KEY), BATCH, KEY)
    for model, batch in ((whole, shuffled), (parts, BATCH)):
        state, _ = on_one_device(model.update)(model.init(KEY), batch, KEY)
        np.testing.assert_allclose(state.params["mean"]["kernel"], first.params["mean"]["kernel"], rtol=1e-5)


def test_the_step_reaches_schedules():
    weight = schedule(Warmup(1.0, 4), 10)

    def weighted(params: Params, batch: Batch, keys: Key) -> Array:
        return jnp.asarray(weight(batch["step"])) * jnp.square(batch["x"] - params["mean"]["kernel"][:, 0][None]).sum(1)

    model = build(Mean(), loss=weighted)
    state, found = model.init(KEY), []
    for _ in range(3):
        state, metrics = on_one_device(model.update)(replace(state, params=begin(KEY)), BATCH, KEY)
        found.append(float(metrics["loss"]))
    assert found[0] == 0
    assert found[2] == pytest.approx(2 * found[1], rel=1e-5)


def test_the_moving_average_is_evaluated_and_sampled():
    model = build(Mean(ema=0.5, optim=SGD))
    state, _ = on_one_device(model.update)(model.init(KEY), BATCH, KEY)
    averaged = replace(state, params=state.ema, ema={})
    assert not np.array_equal(state.params["mean"]["kernel"], state.ema["mean"]["kernel"])
    one, other = (model.generate(s, KEY, {}, core.Request(n=4))["samples"] for s in (state, averaged))
    np.testing.assert_array_equal(one, other)


def test_an_adapter_is_trained_and_its_base_is_not():
    lora = adapters.LoRA(rank=1, path="kernel")
    model = build(Mean(adapter=lora, optim=SGD))
    state, _ = on_one_device(model.update)(model.init(KEY), BATCH, KEY)
    assert state.params["mean"]["kernel"].keys() == {"a", "b"}
    np.testing.assert_array_equal(state.frozen["mean"]["kernel"], np.zeros((3, 1)))


def test_samples_do_not_depend_on_how_many_there_are():
    model = build(Mean())
    few, many = (model.generate(model.init(KEY), KEY, {}, core.Request(n=n))["samples"] for n in (2, 6))
    assert many.shape == (6, 3)
    np.testing.assert_allclose(few, many[:2], rtol=1e-6)


def test_a_loss_that_is_a_mean_already_is_refused():
    model = build(Mean(), loss=lambda params, batch, keys: jnp.square(batch["x"]).mean())
    with pytest.raises(ValueError, match=r"loss has the shape \(\) for 8 examples; return one number per example"):
        on_one_device(model.update)(model.init(KEY), BATCH, KEY)


# --- a family that draws its noise wrongly ---


@dataclass(frozen=True)
class Blur(learner.LearnedFamily):
    """A model of the mean image of noisy images, trained by its own update."""

    by_row: bool = True
    """Whether noise is drawn from (key, row), as it must be."""

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        shape = spec["image"].shape
        trained = learner.make_learner(self, steps, "blur", lambda key: {"mean": jnp.zeros(shape)})

        def update(state: State, batch: Batch, key: Key) -> tuple[State, dict[str, Array]]:
            row = batch["row"]
            keys = axis.example_keys(key, row) if self.by_row else jax.random.split(key, len(row))
            noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

            def mean_loss(params: Params, part: Batch) -> tuple[Array, None]:
                return jnp.square(part["image"] + part["noise"] - params["mean"][None]).mean(), None

            state, _, gradient = trained.step(state, mean_loss, batch | {"noise": noise})
            return state, {"loss": gradient}

        return GenerativeModel(trained.init, update, SimpleNamespace(), SimpleNamespace(), core.Request)  # pyright: ignore


@pytest.mark.parametrize("by_row", [True, False])
def test_noise_by_position_on_the_device_fails_the_contract(by_row):
    config = Config(model=Blur(by_row=by_row), data=Images(name="digits", batch_size=8), steps=3)
    if by_row:
        assert_engines_agree(config, 3, 1e-5, ["pmap on 2"])
    else:
        with pytest.raises(AssertionError, match="mean"):
            assert_engines_agree(config, 3, 1e-5, ["pmap on 2"])


FORK = '''
"""A family from outside of the project, with its habits: it warns, and it lets ranks differ."""

import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gen.config import Config
from gen.core import Request
from gen.data.images import Images
from gen.families import learner


@dataclass(frozen=True)
class Constant(learner.LearnedFamily):
    def tiny(self):
        return self

    def build(self, spec, steps):
        warnings.warn("this fork warns", stacklevel=1)
        shape = spec["image"].shape
        return learner.family(
            self,
            steps,
            init=lambda key: {"image": jax.random.normal(key, shape)},
            loss=lambda params, batch, keys: jnp.square(batch["image"] - params["image"]).mean((1, 2, 3)),
            sample=lambda params, keys, given, request: {
                "samples": jax.vmap(lambda key: jnp.clip(params["image"] + jax.random.normal(key, shape), -1, 1))(keys)
            },
            request=Request,
        )


config = Config(model=Constant(), data=Images(name="digits"), steps=10)
'''


@pytest.mark.slow
def test_a_fork_runs_the_contract_on_its_own_config(tmp_path: Path):
    (tmp_path / "constant.py").write_text(FORK)
    options = ["-p", "no:cacheprovider", "--config", str(tmp_path / "constant.py"), "-k", "every or start_from"]
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_contract.py")), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout, done.stdout


# --- small functions ---


def test_mean_sums_weigh_examples():
    values = {"a": jnp.arange(8.0), "vector": jnp.ones((8, 2), jnp.bfloat16)}
    sums = on_one_device(axis.mean_sums)(BATCH, values)
    assert [float(x) for x in sums["a"]] == [0 + 1 + 2 + 3 + 4, 5]
    np.testing.assert_array_equal(sums["vector"][0], [5, 5])
    assert sums["vector"][0].dtype == jnp.float32


def test_example_keys_are_those_of_per_example():
    keys = axis.example_keys(KEY, ROWS)
    np.testing.assert_array_equal(
        jax.vmap(jax.random.normal)(keys), axis.per_example(lambda key: jax.random.normal(key), KEY, ROWS)
    )
    first, second = axis.split_keys(keys, 2)
    assert first.shape == second.shape == (8,)
    assert first[3] == jax.random.split(keys[3])[0]
    assert second[3] == jax.random.split(keys[3])[1]


def test_labels_are_dropped_at_their_rate_and_by_row():
    rows = jnp.arange(4000, dtype=jnp.int32)
    label = rows % 10
    dropped = labels.drop_labels(label, axis.example_keys(KEY, rows), 0.25, 10)
    gone = np.asarray(dropped == 10)
    assert gone.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(np.asarray(dropped)[~gone], np.asarray(label)[~gone])
    part = labels.drop_labels(label[7:9], axis.example_keys(KEY, rows[7:9]), 0.25, 10)
    np.testing.assert_array_equal(part, dropped[7:9])
    keys = axis.example_keys(KEY, rows)
    np.testing.assert_array_equal(labels.drop_labels(label, keys, 0.0, 10), label)
    assert (labels.drop_labels(label, keys, 1.0, 10) == 10).all()


def test_labels_to_generate():
    np.testing.assert_array_equal(labels.labels_to_generate(5, None, 3), [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(labels.labels_to_generate(2, 1, 3), [1, 1])
    assert labels.labels_to_generate(2, None, None) is None
    given = {labels.GIVEN: jnp.asarray([2, 0])}
    np.testing.assert_array_equal(labels.labels_to_generate(2, None, 3, given), [2, 0])
    np.testing.assert_array_equal(labels.labels_to_generate(2, 1, 3, given), [1, 1])
    assert labels.labels_to_generate(2, None, None, given) is None
    with pytest.raises(UserError, match="labels 0 to 2"):
        labels.labels_to_generate(2, 3, 3)
    with pytest.raises(UserError, match="not conditional"):
        labels.labels_to_generate(2, 0, None)


def test_a_sinusoidal_embedding_has_its_frequencies():
    x = jnp.asarray([0.0, 1.5, 700.0])
    found = sinusoidal(x, 8, max_period=100.0)
    frequency = 100.0 ** -np.linspace(0, 1, 4)
    angle = np.asarray(x, np.float64)[:, None] * frequency
    np.testing.assert_allclose(found, np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=1e-4)
    odd = sinusoidal(x, 9, max_period=100.0)
    np.testing.assert_array_equal(odd[:, :8], found)
    np.testing.assert_array_equal(odd[:, 8], 0)
    assert sinusoidal(x.reshape(3, 1), 2).shape == (3, 1, 2)
