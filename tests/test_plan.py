"""Plans: communication, FLOPs and activations, compared with figures computed by hand."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen import axis, core
from gen import config as configs
from gen.config import Config, Parallel
from gen.core import GenerativeModel, State
from gen.data.images import Images
from gen.data.text import Text
from gen.derived import Encoded
from gen.errors import UserError
from gen.families.conditions import Condition
from gen.families.flow import DiT, Flow
from gen.families.language import LM
from gen.optim import descend
from gen.plan import count as plan_count
from gen.plan import devices as plan_devices
from gen.plan import hlo, inputs, report
from gen.runtime import engine as runtime_engine

ROOT = Path(__file__).parent.parent
LAYERS, WIDTH, BATCH = 5, 64, 8
KEY = jax.random.key(0)
shape = jax.ShapeDtypeStruct


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def sent(compiled) -> dict[str, tuple[int, int]]:
    found = hlo.traffic(compiled.as_text())
    assert not found.unknown
    of = lambda kind: [c for c in found.collectives if c.kind == kind]
    return {k: (sum(c.count for c in of(k)), sum(c.count * c.bytes for c in of(k))) for k in hlo.KINDS if of(k)}


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
    def body(x, w):
        return jax.lax.psum(x * w, "data"), None

    def f(x, w):
        return jax.lax.all_gather(jax.lax.scan(body, x, w)[0], "data")

    mapped = jax.shard_map(f, mesh=mesh(), in_specs=(P(), P()), out_specs=P(), check_vma=False)
    x, w = shape((WIDTH,), jnp.float32), shape((LAYERS, WIDTH), jnp.float32)
    found = sent(jax.jit(mapped).lower(x, w).compile())
    assert found == {"all-reduce": (LAYERS, LAYERS * WIDTH * 4), "all-gather": (1, 8 * WIDTH * 4)}


def test_sharded_weights_are_gathered_in_each_layer():
    def f(x, w):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]

    rows, columns = NamedSharding(mesh(), P("data")), NamedSharding(mesh(), P(None, None, "data"))
    compiled = jax.jit(f, in_shardings=(rows, columns), out_shardings=rows)
    x, w = shape((64 * BATCH, WIDTH), jnp.float32), shape((LAYERS, WIDTH, WIDTH), jnp.float32)
    assert sent(compiled.lower(x, w).compile()) == {"all-gather": (LAYERS, LAYERS * WIDTH * WIDTH * 4)}


TPU = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%start (p: bf16[1,8]) -> (bf16[1,8], bf16[1,64]) {
  %p = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[1,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=8, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}
  ROOT %t = (bf16[1,8]{1,0:T(8,128)}, bf16[1,64]{1,0:T(8,128)}) tuple(%p, %all-gather.1)
}

%done (p: bf16[1,8]) -> bf16[1,64] {
  %p = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,64]{1,0:T(8,128)} all-gather(%p), channel_id=8, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}
}

%body (s: (s32[], bf16[1,8])) -> (s32[], bf16[1,8]) {
  %s = (s32[]{:T(128)}, /*index=1*/bf16[1,8]{1,0}) parameter(0)
  %x = bf16[1,8]{1,0} get-tuple-element(%s), index=1
  %i = s32[] get-tuple-element(%s), index=0
  %began = (bf16[1,8]{1,0}, bf16[1,64]{1,0}) fusion(%x), kind=kCustom, calls=%start
  %ended = bf16[1,64]{1,0} fusion(%x), kind=kCustom, calls=%done
  ROOT %r = (s32[], bf16[1,8]{1,0}) tuple(%i, %x)
}

%condition (s: (s32[], bf16[1,8])) -> pred[] {
  %s = (s32[], bf16[1,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[]{:T(128)} constant(22)
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%none (x: f32[4]) -> f32[4] {
  ROOT %x = f32[4]{0} parameter(0)
}

%some (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %start = f32[4]{0} all-reduce-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %y = f32[4]{0} all-reduce-done(%start)
}

ENTRY %main (x: bf16[1,8], y: f32[4], p: pred[]) -> f32[4] {
  %x = bf16[1,8]{1,0} parameter(0)
  %y = f32[4]{0} parameter(1)
  %p = pred[] parameter(2)
  %two = s32[] constant(2)
  %copied = s32[] copy(%two)
  %begin = (s32[], bf16[1,8]{1,0}) tuple(%copied, %x)
  %loop = (s32[], bf16[1,8]{1,0}) while(%begin), condition=%condition, body=%body
  %z = f32[4]{0} conditional(%p, %y, %y), true_computation=%some, false_computation=%none
  ROOT %w = f32[4]{0} collective-permute(%z), channel_id=9, source_target_pairs={{0,1},{1,0}}
}
"""


def test_programs_of_other_compilers_are_read():
    """A loop without a noted length, one operation in two fusions, an asynchronous one, a conditional, groups in two notations."""
    gather, reduce, permute = hlo.traffic(TPU).collectives
    assert (gather.kind, gather.count, gather.bytes) == ("all-gather", 20, 128)
    assert gather.groups == reduce.groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert (reduce.kind, reduce.count, reduce.bytes) == ("all-reduce", 1, 16)
    assert (permute.kind, permute.groups) == ("collective-permute", ((0, 1), (1, 0)))
    assert not gather.crosses([0, 0, 0, 0, 1, 1, 1, 1])
    assert gather.crosses([0, 0, 1, 1, 2, 2, 3, 3])
    assert permute.crosses([0, 1]) and not permute.crosses([0, 0])


def test_groups_counted_by_strides_are_read():
    read = lambda text: hlo.device_groups(f", replica_groups={text}, dimensions={{0}}")
    assert read("[2,4]<=[8]") == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert read("[4,2]<=[2,4]T(1,0)") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert read("{}") is None


def test_eight_devices_hold_an_eighth_of_a_state_each():
    """GPT-2 small has few small arrays, which stay whole."""
    config = configs.load("lm_gpt2_small", ROOT / "configs")
    data, _ = inputs.open_data(config)
    model = config.model.build(data.spec, config.steps)
    held = {}
    for fsdp in (False, True):
        how = Parallel(engine="jit", fsdp=fsdp, devices=8)
        abstract = runtime_engine.compile_engine(model, how, 0, config.data.batch_size).abstract
        held[fsdp] = plan_count.bytes_per_device(abstract.params) + plan_count.bytes_per_device(abstract.opt_state)
    assert held[True] == pytest.approx(held[False] / 8, rel=0.01)


def test_averages_and_moments_of_bfloat16_parameters_count_four_bytes_each():
    config = replace(of_layers(1), model=replace(of_layers(1).model, param_dtype="bfloat16", ema=0.9))
    data, _ = inputs.open_data(config)
    model = config.model.build(data.spec, config.steps)
    abstract = runtime_engine.compile_engine(model, Parallel(devices=1), 0, config.data.batch_size).abstract
    n = sum(x.size for x in jax.tree.leaves(abstract.params))
    assert plan_count.bytes_per_device(abstract.params) == 2 * n
    assert plan_count.bytes_per_device(abstract.ema) == 4 * n
    assert plan_count.bytes_per_device(abstract.opt_state) == pytest.approx(8 * n, abs=100)  # and counts of steps


def flops(f, *arguments) -> float:
    return plan_count.flops(jax.make_jaxpr(f)(*arguments))


def test_a_multiplication_with_its_addition_is_two_flops():
    x, w = shape((7, 32), jnp.float32), shape((32, 48), jnp.float32)
    assert flops(jnp.matmul, x, w) == 2 * 7 * 32 * 48
    # The gradient of a sum of products adds two products.
    loss = lambda x, w: jnp.square(x @ w).sum()
    assert flops(jax.grad(loss, argnums=(0, 1)), x, w) == 3 * 2 * 7 * 32 * 48


def test_flops_of_a_convolution():
    image, kernel = shape((2, 8, 8, 3), jnp.float32), shape((3, 3, 3, 16), jnp.float32)
    convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert flops(lambda x, k: convolve(x, k, (2, 2), "SAME"), image, kernel) == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)


def of_layers(n: int, **changes) -> Config:
    """Returns the config of a language model with n layers."""
    config = configs.load("lm_pydoc", ROOT / "configs")
    assert isinstance(config.model, LM)
    network = replace(config.model.network, layers=n, unroll=1, dropout=0.0, **changes)
    data = Text(name="text:not_there", tokenizer="byte", length=32, batch_size=8)
    return replace(config, model=replace(config.model, network=network), data=data)


def count_step(config: Config, devices: int) -> tuple[float, int]:
    data, _ = inputs.open_data(config)
    return plan_count.count_step(config, data, config.model.build(data.spec, config.steps), devices)


def test_48_layers_have_24_times_the_flops_of_2():
    of = [count_step(of_layers(n), 1)[0] for n in (2, 48)]
    tokens, width, hidden, length = 8 * 32, 128, 342, 32
    layer = 2 * tokens * (4 * width**2 + 3 * width * hidden) + 2 * 2 * tokens * length * width
    head = 2 * tokens * width * 257
    assert of == [3 * (n * layer + head) for n in (2, 48)]
    assert (of[1] - 3 * head) / (of[0] - 3 * head) == 24


def test_several_devices_divide_a_step():
    (one, kept), (four, kept_of_four) = (count_step(of_layers(2), n) for n in (1, 4))
    assert one == 4 * four
    assert kept == 4 * kept_of_four


def perceptron(hidden: int) -> GenerativeModel:
    tx = optax.sgd(0.1)

    def init(key):
        params = {"in": jnp.zeros((6, hidden)), "out": jnp.zeros((hidden, 3))}
        return State(jnp.zeros((), jnp.int32), params, {"sgd": tx.init(params)})

    def update(state, batch, key):
        loss = lambda p, batch: ((jnp.exp(batch["x"] @ p["in"]) @ p["out"]).sum(), None)
        params, opt_state, value, _, _ = descend.descend(loss, state.params, state.opt_state["sgd"], tx, batch)
        return replace(state, params=params, opt_state={"sgd": opt_state}), {"loss": axis.mean(value)}

    none: Any = None
    return GenerativeModel(init, update, evaluate=none, generate=none, request=none)


def test_a_perceptron_keeps_its_inputs_and_its_hidden_layer():
    config = of_layers(1)
    example = lambda seed, step, rows: {"x": np.zeros((len(rows), 6), np.float32)}
    data = inputs.imply_dataset(config.data)
    assert data is not None
    count, kept = plan_count.count_step(config, data._replace(batch=example), perceptron(10), 2)
    assert kept == 4 * (4 * 6 + 4 * 10)  # float32 of 4 examples
    assert count == 2 * 4 * (2 * 6 * 10 + 3 * 10 * 3)  # two products of the first layer, three of the second


def test_remat_keeps_less():
    layers = 12
    (_, all_), (_, some) = (count_step(of_layers(layers, remat=remat), 1) for remat in (False, True))
    entering = layers * 8 * 32 * 128 * 4  # of each block
    assert entering <= some < 2 * entering < all_ / 4


def test_a_missing_text_is_planned_by_the_config():
    data, note = inputs.open_data(configs.load("lm_1b", ROOT / "configs"))
    assert data.spec["tokens"] == core.Feature((2049,), "int32", vocab=32_000, end=0)
    assert "without the data" in note
    character = replace(of_layers(1).data, tokenizer="character")
    with pytest.raises(UserError):
        inputs.open_data(replace(of_layers(1), data=character))


def count_flow(family: Flow, data: core.Dataset) -> tuple[int, float]:
    """Returns the number of parameters of a flow of latents, and the FLOPs of its velocity at one example."""
    flow = family.flow_model(data.spec)
    params = jax.eval_shape(flow.init, KEY)
    x, t, label = shape((1, *flow.shape), jnp.float32), shape((1,), jnp.float32), shape((1,), jnp.int32)
    apply = lambda params, x, t, label: flow.apply(params, Condition(label), None, x, t, t)
    return sum(x.size for x in jax.tree.leaves(params)), flops(apply, params, x, t, label)


def test_missing_images_and_their_codes_are_planned_by_the_config():
    """The network is DiT-XL/2 of Peebles and Xie (2023), table 4: 675 million parameters, and 118.6 billion products and sums."""
    config = configs.load("dit_imagenet_256", ROOT / "configs")
    data, note = inputs.open_data(config)
    assert "the config implies: latent 32x32x4, label of 1000 classes" in note
    # All blocks are alike: the numbers of 1 and 2 blocks tell those of 28.
    assert isinstance(config.model, Flow) and isinstance(config.model.network, DiT)
    one, two = (
        count_flow(replace(config.model, network=replace(config.model.network, layers=n)), data) for n in (1, 2)
    )
    parameters, products = (a + (config.model.network.layers - 1) * (b - a) for a, b in zip(one, two, strict=True))
    assert parameters == pytest.approx(675e6, rel=0.002)
    # A product with its sum counts as two FLOPs here, and as one there.
    assert products == pytest.approx(2 * 118.6e9, rel=0.001)
    batch = jax.eval_shape(lambda b: data.preprocess(b, KEY, True), data.batch(0, 0, range(2)))
    assert {name: (x.shape, x.dtype) for name, x in batch.items() if name in data.spec} == {
        "latent": ((2, 32, 32, 4), jnp.float32),
        "label": ((2,), jnp.int32),
    }
    images, _ = inputs.open_data(configs.load("sngan_cifar10", ROOT / "configs"))
    assert images.spec["image"] == core.Feature((32, 32, 3), levels=256) and images.spec["label"].classes == 10
    seen = images.preprocess(jax.device_put(images.batch(0, 0, range(2))), KEY, True)["image"]
    assert (seen.shape, seen.dtype) == ((2, 32, 32, 3), jnp.float32)


def test_data_whose_shapes_are_not_in_the_config_are_not_implied():
    encoded = Encoded(data=Images(name="cifar10", size=32, colors=3), tokenizer="runs/kl_folder")
    implied = inputs.imply_dataset(encoded)
    assert implied is not None and implied.spec["latent"].shape == (4, 4, 4)
    for data in (
        Images(name="cifar10"),
        replace(encoded, data=Images(name="cifar10")),
        replace(encoded, tokenizer="runs/unknown"),
        replace(encoded, tokenizer="runs/vae_digits"),
    ):
        assert inputs.imply_dataset(data) is None


def test_numbers_as_text():
    assert [report.binary(n) for n in (0, 999, 1000, 2**20, 17 * 2**30, 2**50)] == [
        *("0 B", "999 B", "0.98 KiB", "1.00 MiB", "17.0 GiB", "1,024.0 TiB")
    ]
    assert [report.decimal(n) for n in (7, 1500, 2e12, 3e18)] == ["7 ", "1.5 k", "2 T", "3,000 P"]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    environment = {**processes.inherited(os.environ), "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return call


@pytest.mark.slow
def test_a_plan_for_devices_that_do_not_exist(train):
    done = train("vae_digits", "--dry-run", "--plan.devices", "16", "--plan.hosts", "4")
    assert done.returncode == 0, done.stderr
    assert "16 devices of 4 hosts, engine pmap, 128 examples per step, 8 per device" in done.stdout
    row = lambda name: next(line for line in done.stdout.splitlines() if line.strip().startswith(name))
    assert "122,048 parameters" in row("params/decoder")
    gradients = report.binary(4 * (122_048 + 254_496))
    assert gradients in row("gradients")
    assert "2.50 KiB per host" in row("batch")  # 32 examples: 64 bytes of image, and label, row, index and weight of 4
    assert gradients in row("all-reduce")  # pmap averages the gradients
    assert "FLOPs" in row("compute")


def test_wrong_options_of_a_plan_name_the_fix():
    config = configs.load("vae_digits", ROOT / "configs")
    for arguments, fix in {
        ("--plan.devices", "16"): "the fix: add --dry-run",
        ("--plan.platform", "tpu"): "the fix: add --dry-run",
        ("--dry-run", "--plan.hosts", "2"): "the fix: --plan.devices",
    }.items():
        with pytest.raises(UserError, match=fix):
            configs.override(config, arguments, prog="train.py")
    with pytest.raises(UserError, match="choose a divisor"):
        plan_devices.assign_hosts(jax.devices(), 3)


def test_a_plan_for_a_tpu_without_its_compiler_names_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"tpu-plan"):
        plan_devices.topology(4)


def test_a_step_compiles_for_a_tpu(train):
    pytest.importorskip("libtpu")
    small = ("--model.network.hidden", "16", "--data.batch-size", "8")
    for engine in ((), ("--parallel.engine", "jit", "--parallel.fsdp")):
        done = train("vae_digits", "--dry-run", "--plan.devices", "4", "--plan.platform", "tpu", *small, *engine)
        assert done.returncode == 0, done.stderr
        assert "compiled for v5e:2x2" in done.stdout
        assert "all-reduce" in done.stdout
    done = train("vae_digits", "--dry-run", "--plan.devices", "3", "--plan.platform", "tpu", "--data.batch-size", "6")
    assert done.returncode == 2
    assert "choose one of 1, 2, 4" in done.stderr
