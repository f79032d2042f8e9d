"""The properties that every config and every family must have, tested on configs/*.py and examples/*.py.

To test other configs instead, such as the configs of a fork:

    python -m pytest tests/test_contract.py --config path/to/mine.py --config path/to/other.py

Each file must end with `config = Config(...)`, and its model must have `tiny()`. The data are used as they are, with a batch
size of 8, unless they are images or texts of gen: then small data replace them.
"""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ENGINES, assert_close, assert_engines_agree, assert_same, build, drift, leaves, run

from gen import config as configs
from gen.config import Config, Parallel, Save
from gen.core import Dataset, Family, GenerativeModel, HostBatch, State
from gen.data.preprocess import with_preprocess
from gen.families.gan import GAN
from gen.families.vae import VAE
from gen.runs import checkpoint
from gen.runtime import engine as runtime_engine
from gen.runtime.feed import calls, feed, stacked

DOUBLE = "pmap on 8", "fsdp and tensor 2 on 8"
"""Engines that are compared in double precision, where differences of rounding stay small for many steps."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Chooses the configs that a test runs on. The more a test compiles, the fewer.

    any_file: every config. config_file: every config; fast for one per folder of families on built-in data unless it has a U-Net,
    slow for one per family, and long for the others. family_file: one config per family, long beyond one family per folder.
    engine_file: the same, long beyond VAEs, since the test is about the engine more than about the family.
    """
    given = metafunc.config.getoption("config")
    files = given or contract.config_files()
    families, folders = given or contract.one_per_family(files), given or contract.one_per_folder(files)
    fast = given or [file for file in folders if contract.is_built_in(file) and not contract.has_unet(file)]
    quick = given or [file for file in families if isinstance(contract.load(file).model, VAE)]
    for name, every, marks in (
        ("any_file", files, {}),
        ("config_file", files, {"slow": set(families) - set(fast), "long": set(files) - set(families)}),
        ("family_file", families, {"long": set(families) - set(folders)}),
        ("engine_file", families, {"long": set(families) - set(quick)}),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, contract.as_parameters(every, marks))


@pytest.fixture(autouse=True)
def _shard_small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards tiny arrays too. Otherwise FSDP would leave a tiny model whole, and its tests would test nothing."""
    monkeypatch.setattr("gen.runtime.binding.MIN_SHARDED", 2)


@pytest.fixture(autouse=True)
def _allow_rank_promotion_in_forks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Applies the project's rule against silent broadcasting to the project's configs only. See also contract.as_parameters."""
    parameters = request.node.callspec.params
    own = contract.is_own(next(file for name, file in parameters.items() if name.endswith("_file")))
    with jax.numpy_rank_promotion("raise" if own else "allow"):
        yield


def test_every_config(config_file, tiny):
    config = tiny(config_file)
    data, model, engine, batch = build(config)

    state = engine.init()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), jax.eval_shape(model.init, jax.random.key(0))
    )
    first = leaves(state.params)
    for step in range(3):
        state, metrics = engine.update(state, batch(step))
        assert all(np.isfinite(v) for v in metrics.values()), metrics
    assert set(model.losses) <= metrics.keys()
    assert int(state.step) == 3
    still = [name for name, value in leaves(state.params).items() if np.array_equal(value, first[name])]
    assert not still, f"three updates did not change these parameters: {still}"
    again, _ = run(config, Parallel(devices=1), 3)
    assert_same(state, again)

    check_samples(data, model, state, batch(0))

    sums = engine.evaluate(state, next(data.evaluation("validation", 8)))
    assert all(np.isfinite(v).all() for v in model.summarize(jax.device_get(sums)).values())


@pytest.mark.slow
def test_every_config_has_a_step_and_comes_back_from_json(any_file, tiny):
    """Without compiling: an update keeps the shapes and dtypes of the state, and has the declared losses."""
    config = tiny(any_file)
    data = config.data.build()
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    state, key = jax.eval_shape(model.init, jax.random.key(0)), jax.random.key(0)
    update = jax.vmap(model.update, in_axes=None, out_axes=None, axis_name="data", axis_size=1)
    batch = feed(data, model, config, range(config.data.batch_size))(0)
    new, metrics = jax.eval_shape(update, state, batch, key)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert set(model.losses) <= metrics.keys()
    decoded = configs.decode(Config, json.loads(json.dumps(configs.encode(config))))
    assert decoded == config
    assert configs.digest(decoded) == configs.digest(config)


def check_samples(data: Dataset, model: GenerativeModel, state: State, batch: HostBatch) -> None:
    """Asserts that samples have the declared shape, dtype and range, and differ by key."""
    tokens = data.spec.get("tokens")
    is_text = tokens is not None and tokens.axes is None
    request = replace(model.request(), n=5, **{"tokens": 6} if is_text else {})
    given = {}
    if "source" in data.spec:
        seen = data.preprocess(jax.tree.map(jnp.asarray, batch), jax.random.key(0), False)
        given = {"source": seen["source"][:1]}
    generate = jax.jit(lambda state, key: model.generate(state, key, given, request))
    one, other = (np.asarray(generate(state, jax.random.key(k))["samples"]) for k in (0, 1))
    if tokens is not None:
        assert one.shape == ((5, 6) if is_text else (5, *tokens.shape))
        assert one.dtype == np.int32
        assert one.max() < (tokens.vocab or 0)
    elif "image" in data.spec:
        assert one.shape == (5, *data.spec["image"].shape)
        assert one.dtype == np.float32
        assert np.abs(one).max() <= 1.0001
    elif "audio" in data.spec:
        assert one.shape == (5, *data.spec["audio"].shape)
        assert np.abs(one).max() <= 1
    assert len(one) == 5
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_each_loss_falls_on_a_fixed_batch(family_file, tiny):
    """Trains the player of each loss alone. contract.hold_other_players says which optimizer belongs to a loss."""
    config = tiny(family_file)
    for loss in build(config).model.losses:
        _, _, engine, batch = build(contract.hold_other_players(config, loss))
        state, fixed, losses = engine.init(), batch(0), []
        for _ in range(100):
            state, metrics = engine.update(state, fixed)
            losses.append(float(metrics[loss]))
        assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10]), loss


@pytest.mark.slow
def test_replicas_are_bitwise_equal_under_pmap(family_file, tiny):
    state, _ = run(tiny(family_file), ENGINES["pmap on 4"], 3)
    assert drift(state) == []


@pytest.mark.slow
def test_engines_and_devices_agree(engine_file, tiny):
    """A family whose noise depends on the device fails here: draw it from (key, row), see gen.axis.example_keys."""
    config = tiny(engine_file)
    # What the test in double precision compares needs no second program in single precision.
    tested = DOUBLE if {"dtype", "param_dtype"} <= {f.name for f in fields(config.model)} else ()
    assert_engines_agree(config, 10, 1e-5, [name for name in ENGINES if name not in tested])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pmap on 2", "fsdp and tensor 2 on 8"])
def test_several_steps_of_one_call_are_the_same_steps(engine_file, engine, tiny):
    config = tiny(engine_file)
    _, model, _, batch_of = build(config, ENGINES[engine])
    one_call = replace(config, steps=5, steps_per_call=3, evaluate_every=0)
    several = runtime_engine.compile_engine(model, ENGINES[engine], config.seed, config.data.batch_size, several=True)
    batch, state, metrics = stacked(batch_of, one_call), several.init(), []
    for call in calls(one_call, 0):
        state, of_call = several.update(state, batch(call))
        of_call = {name: np.broadcast_to(value, len(call)) for name, value in jax.device_get(of_call).items()}
        metrics += [{name: values[i] for name, values in of_call.items()} for i in range(len(call))]
    # The same config as in the tests above, so that its program is compiled already.
    alone, alone_metrics = run(config, ENGINES[engine], 5)
    assert_close(alone, state, 1e-5)
    assert_close(alone_metrics, metrics, 1e-5)


@pytest.mark.slow
def test_engines_and_devices_agree_in_double_precision(family_file, tiny):
    config = contract.replace_model(tiny(family_file), dtype="float64", param_dtype="float64")
    with jax.enable_x64(True):
        assert_engines_agree(config, 12, 1e-9, DOUBLE)


def without_batch_coupling(model: Family) -> Family:
    """Returns the family with examples that do not see each other, as microbatches need."""
    if isinstance(model, GAN):
        discriminator = replace(model.discriminator, minibatch=0)
        return replace(model, generator=replace(model.generator, norm="layer"), discriminator=discriminator)
    return model


@pytest.mark.slow
def test_microbatches_give_the_gradient_of_the_whole_batch(family_file, tiny):
    config = tiny(family_file)
    config = replace(config, model=without_batch_coupling(config.model))
    whole, parts = (
        contract.replace_model(config, dtype="float64", param_dtype="float64", microbatches=n) for n in (1, 2)
    )
    with jax.enable_x64(True):
        state, metrics = run(whole, Parallel(devices=2), 5)
        other, other_metrics = run(parts, ENGINES["jit on 4"], 5)
    assert_close(state, other, 1e-9)
    assert_close(metrics, other_metrics, 1e-9)


@pytest.mark.slow
def test_a_state_of_four_devices_continues_on_other_devices_and_engines(family_file, tiny, tmp_path: Path):
    config = tiny(family_file)
    _, _, engine, batch = build(config, ENGINES["pmap on 4"])
    state = engine.init()
    for step in range(3):
        state, _ = engine.update(state, batch(step))
    with checkpoint.saver(tmp_path, Save(), 0) as save:
        save(state)
    state, expected = engine.update(state, batch(3))
    for name in ("pmap on 4", "jit on 1", "fsdp on 4"):
        other = build(config, ENGINES[name]).engine
        restored = checkpoint.restore(tmp_path, 3, other.abstract)
        restored, metrics = other.update(restored, batch(3))
        if name == "pmap on 4":
            assert_same([state, expected], [restored, metrics])
        else:
            assert_close(state, restored, 1e-5)
            assert_close(expected, metrics, 1e-5)


@pytest.mark.slow
def test_a_state_can_start_from_other_parameters(family_file, tiny):
    config = tiny(family_file)
    model = config.model.build(config.data.build().spec, config.steps)
    base = jax.jit(model.init)(jax.random.key(0)).params
    assert_same(jax.jit(model.init)(jax.random.key(1), base).params, base)
    other = leaves(jax.jit(model.init)(jax.random.key(1)).params)
    assert any(not np.array_equal(x, other[path]) for path, x in leaves(base).items())


def test_hosts_read_the_batch_in_parts(config_file, tiny):
    data = tiny(config_file).data.build()
    hosts = range(0, 2), range(2, 8)
    batches = [(data.batch(3, 5, range(8)), *(data.batch(3, 5, rows) for rows in hosts))]
    batches += zip(data.evaluation("test", 8), *(data.evaluation("test", 8, rows) for rows in hosts), strict=True)
    for whole, *own in batches:
        for key, value in whole.items():
            np.testing.assert_array_equal(value, np.concatenate([part[key] for part in own]), err_msg=key)
