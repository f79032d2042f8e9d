"""What every config and every family promise, over configs/*.py: a fork's config is tested as soon as it is there."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CONFIGS

from gen import axis as gen_axis
from gen import config as configs
from gen import core, errors
from gen.config import Config, Parallel, Save
from gen.core import Dataset, GenerativeModel, State
from gen.data.preprocess import with_preprocess
from gen.families.gan import GAN
from gen.optim import Optimizer
from gen.runs import checkpoint
from gen.runtime import engine as runtime_engine
from gen.train import calls, feed, stacked

EVERY = sorted(path.stem for path in CONFIGS.glob("*.py"))
FAMILIES = [
    "vae_digits",
    "gan_digits",
    "lm_pydoc",
    "mlm_pydoc",
    "seq2seq_docstring",
]  # one config a family, for what is dear to compile
HELD = Optimizer(rule="frozen")
PLAYERS = {  # config -> each player's loss, and what holds the others
    "vae_digits": {"loss": {}},
    "gan_digits": {
        "loss/discriminator": {"generator_optim": HELD},
        "loss/generator": {"discriminator_optim": HELD},
    },
    "lm_pydoc": {"loss": {}},
    "mlm_pydoc": {"loss": {}},
    "seq2seq_docstring": {"loss": {}},
}


@pytest.fixture(autouse=True)
def small_arrays_are_sharded_too(monkeypatch):
    monkeypatch.setattr(runtime_engine, "MIN_SHARDED", 2)


def parts(config: Config, engine: Parallel = Parallel(devices=1)):
    """Data, model, engine, and step -> what it is fed. Compiled once for all tests."""
    return _parts(config, engine, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _parts(config: Config, engine: Parallel, double: bool):
    data = config.data.build()
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    compiled = runtime_engine.compile_engine(model, engine, config.seed, config.data.batch_size)
    return data, model, compiled, feed(data, model, config, compiled.rows)


def run(config: Config, engine: Parallel, steps: int) -> tuple[State, list[dict]]:
    _, _, compiled, batch = parts(config, engine)
    state, metrics = compiled.init(), []
    for step in range(steps):
        state, m = compiled.update(state, batch(step))
        metrics.append(jax.device_get(m))
    return state, metrics


def leaves(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_close(a, b, rtol: float) -> None:
    """Largest difference of each leaf, relative to the leaf's size."""
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        scale = max(np.abs(a[name]).max(initial=0), 1e-3)
        assert np.abs(a[name] - b[name]).max(initial=0) <= rtol * scale, name


def assert_same(a, b) -> None:
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("name", EVERY)
def test_every_config(name, tiny):
    config = tiny(name)
    data, model, engine, batch = parts(config)

    state = engine.init()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), jax.eval_shape(model.init, jax.random.key(0))
    )
    first = leaves(state.params)
    for step in range(3):
        state, metrics = engine.update(state, batch(step))
        assert all(np.isfinite(v) for v in metrics.values()), metrics
    assert int(state.step) == 3
    still = [name for name, value in leaves(state.params).items() if np.array_equal(value, first[name])]
    assert not still, f"three updates left these as they were: {still}"
    again, _ = run(config, Parallel(devices=1), 3)
    assert_same(state, again)

    generates(data, model, state, batch(0))

    sums = engine.evaluate(state, next(data.evaluation("validation", 8)))
    assert all(np.isfinite(v).all() for v in model.summarize(jax.device_get(sums)).values())

    decoded = configs.decode(Config, json.loads(json.dumps(configs.encode(config))))
    assert decoded == config
    assert configs.digest(decoded) == configs.digest(config)


def generates(data: Dataset, model: GenerativeModel, state: State, batch: core.HostBatch) -> None:
    """Samples have the declared shape, dtype and range, and differ by key."""
    short = {"tokens": 6} if "tokens" in data.spec else {}
    request = replace(model.request(), n=5, **short)
    given = {"source": batch["source"][:1]} if "source" in data.spec else {}
    generate = jax.jit(lambda state, key: model.generate(state, key, given, request))
    one, other = (np.asarray(generate(state, jax.random.key(k))["samples"]) for k in (0, 1))
    if short:
        assert one.shape == (5, 6)
        assert one.dtype == np.int32
        assert one.max() < (data.spec["tokens"].vocab or 0)
    else:
        assert one.shape == (5, *data.spec["image"].shape)
        assert one.dtype == np.float32
        assert np.abs(one).max() <= 1.0001
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("name", "loss"), [(name, loss) for name in FAMILIES for loss in PLAYERS[name]])
def test_the_loss_falls_on_a_fixed_batch(name, loss, tiny):
    """Each player's, the others held."""
    config = tiny(name)
    _, _, engine, batch = parts(replace(config, model=replace(config.model, **PLAYERS[name][loss])))
    state, fixed, losses = engine.init(), batch(0), []
    for _ in range(100):
        state, metrics = engine.update(state, fixed)
        losses.append(float(metrics[loss]))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


@pytest.mark.parametrize("name", FAMILIES)
def test_replicas_are_bitwise_equal_under_pmap(name, tiny):
    state, _ = run(tiny(name), Parallel(devices=4), 3)
    assert drift(state) == []


def test_a_forgotten_average_makes_replicas_drift(tiny, monkeypatch):
    """The test above can fail: without the mean over "data" the replicas part."""
    monkeypatch.setattr(gen_axis, "mean", lambda tree: tree)
    config = replace(tiny("vae_digits"), seed=1)  # not compiled yet, nor again
    state, _ = run(config, Parallel(devices=4), 3)
    assert drift(state.params) != []
    with pytest.raises(ValueError, match="axis"):
        run(config, Parallel(engine="jit", devices=4), 1)


def drift(tree) -> list[str]:
    shards = {
        jax.tree_util.keystr(path): [np.asarray(s.data) for s in x.addressable_shards]
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert all(len(replicas) == 4 for replicas in shards.values())
    return [name for name, replicas in shards.items() if any(not np.array_equal(replicas[0], r) for r in replicas)]


ENGINES = {
    "pmap on 1": Parallel(devices=1),
    "pmap on 2": Parallel(devices=2),
    "pmap on 4": Parallel(devices=4),
    "pmap on 8": Parallel(devices=8),
    "jit on 1": Parallel(engine="jit", devices=1),
    "jit on 4": Parallel(engine="jit", devices=4),
    "fsdp on 4": Parallel(engine="jit", devices=4, fsdp=True),
    "tensor 2 on 2": Parallel(engine="jit", devices=2, tensor=2),
    "fsdp and tensor 2 on 8": Parallel(engine="jit", devices=8, fsdp=True, tensor=2),
}


@pytest.mark.parametrize("engine", ["pmap on 1", "pmap on 2", "jit on 4", "fsdp and tensor 2 on 8"])
def test_one_compilation_serves_all_steps(engine, tiny, caplog):
    """The state that a step leaves is placed as the state that it was given."""
    config = replace(tiny("vae_digits"), seed=len(engine))  # compiled by no other test
    run(config, ENGINES[engine], 1)
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(1)
        assert "Compiling" in caplog.text
        caplog.clear()
        run(config, ENGINES[engine], 3)
    assert "Compiling" not in caplog.text


@pytest.mark.parametrize("name", FAMILIES)
def test_engines_and_devices_agree(name, tiny):
    config = tiny(name)
    state, metrics = run(config, Parallel(devices=1), 10)
    for engine in ENGINES.values():
        other, other_metrics = run(config, engine, 10)
        assert_close(state, other, 1e-5)
        assert_close(metrics, other_metrics, 1e-5)


@pytest.mark.parametrize("engine", ["pmap on 2", "fsdp and tensor 2 on 8"])
@pytest.mark.parametrize("name", ["vae_digits", "gan_digits"])
def test_several_steps_of_one_call_are_the_same_steps(name, engine, tiny):
    config = replace(tiny(name), steps=5, steps_per_call=3, evaluate_every=0)
    _, model, _, feed = parts(config, ENGINES[engine])
    several = runtime_engine.compile_engine(model, ENGINES[engine], config.seed, config.data.batch_size, several=True)
    batch, state, metrics = stacked(feed, config), several.init(), []
    for call in calls(config, 0):
        state, of_call = several.update(state, batch(call))
        of_call = {name: np.broadcast_to(value, len(call)) for name, value in jax.device_get(of_call).items()}
        metrics += [{name: values[i] for name, values in of_call.items()} for i in range(len(call))]
    alone, alone_metrics = run(config, ENGINES[engine], 5)
    assert_close(alone, state, 1e-5)
    assert_close(alone_metrics, metrics, 1e-5)


def test_calls_end_where_something_is_due(tiny):
    config = replace(tiny("vae_digits"), steps=23, steps_per_call=4, evaluate_every=10, save=Save(every=5))
    found = [(call[0], call[-1]) for call in calls(config, 0)]
    assert found == [(1, 4), (5, 5), (6, 9), (10, 10), (11, 14), (15, 15), (16, 19), (20, 20), (21, 23)]
    for first, _ in found:  # of a resumed run
        assert [(call[0], call[-1]) for call in calls(config, first - 1)] == [x for x in found if x[0] >= first]
    assert list(calls(replace(config, steps_per_call=1), 20)) == [range(21, 22), range(22, 23), range(23, 24)]
    unbroken = replace(config, evaluate_every=0, save=Save(every=100))
    assert [len(call) for call in calls(unbroken, 0)] == [4, 4, 4, 4, 4, 1, 1, 1]
    # of a run that had another steps_per_call
    assert [len(call) for call in calls(unbroken, 6)] == [1, 1, 4, 4, 4, 1, 1, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_engines_and_devices_agree_in_double_precision(name, tiny):
    config = tiny(name)
    config = replace(config, model=replace(config.model, dtype="float64", param_dtype="float64"))
    with jax.enable_x64(True):
        state, metrics = run(config, Parallel(devices=1), 100)
        for engine in ("pmap on 8", "jit on 4", "fsdp and tensor 2 on 8"):
            other, other_metrics = run(config, ENGINES[engine], 100)
            assert_close(state, other, 1e-9)
            assert_close(metrics, other_metrics, 1e-9)


def test_fsdp_shards_the_state(tiny):
    state, _ = run(tiny("vae_digits"), ENGINES["fsdp on 4"], 1)
    kernel = state.params["decoder"]["trunk"]["Dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    moment = jax.tree.leaves(state.opt_state)
    assert any(x.addressable_shards[0].data.size == x.size // 4 for x in moment)


def test_tensor_parallelism_divides_the_matrices(tiny):
    config = tiny("lm_pydoc")
    config = replace(config, model=replace(config.model, network=replace(config.model.network, hidden=32)))
    state, _ = run(config, ENGINES["tensor 2 on 2"], 1)
    layers = state.params["transformer"]["layers"]
    part = lambda x: x.addressable_shards[0].data.shape
    for kernel, axis in (
        (layers["attention"]["query"]["kernel"], 2),
        (layers["attention"]["out"]["kernel"], 1),
        (layers["feed_forward"]["up"]["kernel"], 2),
        (layers["feed_forward"]["down"]["kernel"], 1),
    ):
        assert part(kernel) == tuple(n // (2 if i == axis else 1) for i, n in enumerate(kernel.shape))


def alone(model):
    """A model whose examples don't see each other."""
    if isinstance(model, GAN):
        discriminator = replace(model.discriminator, minibatch=0)
        return replace(model, generator=replace(model.generator, norm="layer"), discriminator=discriminator)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_microbatches_give_the_gradient_of_the_whole_batch(name, tiny):
    config = tiny(name)
    doubled = replace(alone(config.model), dtype="float64", param_dtype="float64")
    whole, parts = (replace(config, model=replace(doubled, microbatches=n)) for n in (1, 2))
    with jax.enable_x64(True):
        state, metrics = run(whole, Parallel(devices=2), 5)
        for engine in (Parallel(devices=2), ENGINES["jit on 4"]):
            other, other_metrics = run(parts, engine, 5)
            assert_close(state, other, 1e-9)
            assert_close(metrics, other_metrics, 1e-9)


def test_microbatches_that_would_change_the_update_are_refused(tiny):
    for name, change, cause in (
        ("gan_digits", {}, "batch normalization|minibatch"),
        ("vae_digits", {"free_bits": 0.1}, "free bits"),
    ):
        with pytest.raises(errors.UserError, match=cause):
            replace(tiny(name).model, microbatches=2, **change)
    with pytest.raises(errors.UserError, match="batch of 8 can't be divided among 4 devices in packs of 3"):
        parts(
            replace(tiny("vae_digits"), model=replace(tiny("vae_digits").model, microbatches=3)),
            Parallel(devices=4),
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_state_of_four_devices_continues_on_two_and_one_and_another_engine(name, tiny, tmp_path: Path):
    config = tiny(name)
    _, _, engine, batch = parts(config, Parallel(devices=4))
    state = engine.init()
    for step in range(3):
        state, _ = engine.update(state, batch(step))
    with checkpoint.saver(tmp_path, Save(), 0) as save:
        save(state, {"validation": {}})
    state, expected = engine.update(state, batch(3))
    for other in (Parallel(devices=4), Parallel(devices=2), ENGINES["jit on 1"], ENGINES["fsdp on 4"]):
        _, _, engine, _ = parts(config, other)
        restored = checkpoint.restore(tmp_path, 3, engine.abstract)
        restored, metrics = engine.update(restored, batch(3))
        check = assert_same if other.engine == "pmap" and other.devices == 4 else lambda a, b: assert_close(a, b, 1e-5)
        check(state, restored)
        check(expected, metrics)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_state_can_start_from_other_parameters(name, tiny):
    config = tiny(name)
    model = config.model.build(config.data.build().spec, config.steps)
    base = jax.jit(model.init)(jax.random.key(0)).params
    assert_same(jax.jit(model.init)(jax.random.key(1), base).params, base)
    other = leaves(jax.jit(model.init)(jax.random.key(1)).params)
    assert any(not np.array_equal(x, other[path]) for path, x in leaves(base).items())


def test_a_batch_that_devices_cannot_share_is_refused(tiny):
    with pytest.raises(errors.UserError, match="batch of 8 can't be divided among 3 devices"):
        parts(tiny("vae_digits"), Parallel(devices=3))


def test_examples_that_belong_together_are_not_divided(tiny):
    config = tiny("vae_digits")
    _, model, _, _ = parts(config)
    packs = r"batch of 8 can't be divided among 4 devices in packs of 3; the fix: --data.batch-size 12"
    with pytest.raises(errors.UserError, match=packs):
        runtime_engine.compile_engine(model._replace(together=3), Parallel(devices=4), 0, 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_hosts_read_is_the_batch_in_parts(name, tiny):
    data = tiny(name).data.build()
    hosts = range(0, 2), range(2, 8)
    batches = [(data.batch(3, 5, range(8)), *(data.batch(3, 5, rows) for rows in hosts))]
    batches += zip(data.evaluation("test", 8), *(data.evaluation("test", 8, rows) for rows in hosts), strict=True)
    for whole, *own in batches:
        for key, value in whole.items():
            np.testing.assert_array_equal(value, np.concatenate([part[key] for part in own]), err_msg=key)


@pytest.mark.parametrize(("devices", "averaged"), [(1, False), (2, True)])
def test_one_device_averages_with_nobody(devices, averaged, tiny):
    _, _, compiled, batch = parts(tiny("vae_digits"), Parallel(devices=devices))
    assert ("all_reduce" in compiled.lower(batch(0)).as_text()) == averaged
