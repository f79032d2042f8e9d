"""Engines: when they compile, what they shard, and which batches they refuse."""

from dataclasses import replace

import jax
import pytest
from contract import ENGINES, build, drift, run

from gen import axis, errors
from gen.config import Parallel, Save
from gen.runtime import engine as runtime_engine
from gen.runtime.feed import calls


@pytest.fixture(autouse=True)
def _shard_small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gen.runtime.binding.MIN_SHARDED", 2)


@pytest.mark.slow
def test_replicas_drift_without_the_mean_over_devices(tiny, monkeypatch):
    """Shows that the contract's test of replicas can fail."""
    monkeypatch.setattr(axis, "mean", lambda tree: tree)
    config = replace(tiny("vae_digits"), seed=1)  # a config that no other test compiles
    state, _ = run(config, Parallel(devices=4), 3)
    assert drift(state.params) != []
    with pytest.raises(ValueError, match="axis"):
        run(config, Parallel(engine="jit", devices=4), 1)


@pytest.mark.parametrize("engine", ["pmap on 1", "pmap on 2", "jit on 4", "fsdp and tensor 2 on 8"])
@pytest.mark.slow
def test_one_compilation_serves_all_steps(engine, tiny, caplog):
    """The state after a step must be placed like the state before it, or the next step would compile again."""
    config = replace(tiny("vae_digits"), seed=len(engine))  # a config that no other test compiles
    run(config, ENGINES[engine], 1)
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(1)
        assert "Compiling" in caplog.text
        caplog.clear()
        run(config, ENGINES[engine], 3)
    assert "Compiling" not in caplog.text


def test_calls_end_at_evaluations_and_saves(tiny):
    config = replace(tiny("vae_digits"), steps=23, steps_per_call=4, evaluate_every=10, save=Save(every=5))
    found = [(call[0], call[-1]) for call in calls(config, 0)]
    assert found == [(1, 4), (5, 5), (6, 9), (10, 10), (11, 14), (15, 15), (16, 19), (20, 20), (21, 23)]
    for first, _ in found:  # a resumed run makes the same calls
        assert [(call[0], call[-1]) for call in calls(config, first - 1)] == [x for x in found if x[0] >= first]
    assert list(calls(replace(config, steps_per_call=1), 20)) == [range(21, 22), range(22, 23), range(23, 24)]
    unbroken = replace(config, evaluate_every=0, save=Save(every=100))
    assert [len(call) for call in calls(unbroken, 0)] == [4, 4, 4, 4, 4, 1, 1, 1]
    # A run that had another steps_per_call before may resume between two calls.
    assert [len(call) for call in calls(unbroken, 6)] == [1, 1, 4, 4, 4, 1, 1, 1]


def test_fsdp_shards_the_state(tiny):
    state, _ = run(tiny("vae_digits"), ENGINES["fsdp on 4"], 1)
    kernel = state.params["decoder"]["trunk"]["Dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    moment = jax.tree.leaves(state.opt_state)
    assert any(x.addressable_shards[0].data.size == x.size // 4 for x in moment)


@pytest.mark.slow
def test_tensor_parallelism_divides_the_matrices(tiny):
    config = tiny("lm_pydoc")
    config = replace(config, model=replace(config.model, network=replace(config.model.network, hidden=32)))
    state, _ = run(config, ENGINES["tensor 2 on 2"], 1)
    layers = state.params["transformer"]["layers"]
    for kernel, axis_ in (
        (layers["attention"]["query"]["kernel"], 2),
        (layers["attention"]["out"]["kernel"], 1),
        (layers["feed_forward"]["up"]["kernel"], 2),
        (layers["feed_forward"]["down"]["kernel"], 1),
    ):
        part = kernel.addressable_shards[0].data.shape
        assert part == tuple(n // (2 if i == axis_ else 1) for i, n in enumerate(kernel.shape))


def test_microbatches_that_would_change_the_update_are_refused(tiny):
    for name, change, cause in (
        ("gan_digits", {}, "batch normalization|minibatch"),
        ("vae_digits", {"free_bits": 0.1}, "free bits"),
    ):
        with pytest.raises(errors.UserError, match=cause):
            replace(tiny(name).model, microbatches=2, **change)
    config = tiny("vae_digits")
    with pytest.raises(errors.UserError, match="batch of 8 can't be divided among 4 devices in packs of 3"):
        build(replace(config, model=replace(config.model, microbatches=3)), Parallel(devices=4))


def test_a_batch_that_devices_cannot_share_is_refused(tiny):
    with pytest.raises(errors.UserError, match="batch of 8 can't be divided among 3 devices"):
        build(tiny("vae_digits"), Parallel(devices=3))


def test_examples_that_belong_together_are_not_divided(tiny):
    model = build(tiny("vae_digits")).model
    packs = r"batch of 8 can't be divided among 4 devices in packs of 3; the fix: --data.batch-size 12"
    with pytest.raises(errors.UserError, match=packs):
        runtime_engine.compile_engine(model._replace(together=3), Parallel(devices=4), 0, 8)


@pytest.mark.parametrize(("devices", "averaged"), [(1, False), (2, True)])
def test_one_device_needs_no_all_reduce(devices, averaged, tiny):
    _, _, engine, batch = build(tiny("vae_digits"), Parallel(devices=devices))
    assert ("all_reduce" in engine.lower(batch(0)).as_text()) == averaged
