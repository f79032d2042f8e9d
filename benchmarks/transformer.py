"""Compares decoding with a cache to full forward passes, and measures compile times of deep networks:
python -m benchmarks.transformer [--steps 512] [--batches 1 16]

For each kind of positions, a network with random weights generates a text with a cache, always the most likely token. Then one
forward pass reads the whole text. It must give the same logits, and its most likely tokens must be the tokens of the text, except
where the logits of the two most likely tokens differ by less than TOLERANCE. Times during which other programs used the machine are
measured again, and the command ends if the machine stays busy.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import machine
from benchmarks.machine import Watch
from gen.axis import example_keys
from gen.config import Parallel
from gen.core import Array, Feature
from gen.data.text import Text
from gen.errors import run_command
from gen.families.language import LM, decoding
from gen.networks.positions import locate_tokens
from gen.networks.transformer import Architecture, Transformer, empty_cache, unstack_layers
from gen.optim import Optimizer
from gen.runtime import engine as runtime_engine

TOLERANCE = 1e-4
VOCAB, PROMPT = 256, 8
SMALL = Architecture(layers=4, width=128, heads=4)
KINDS = {
    "learned": SMALL,
    "rotary": replace(SMALL, positions="rotary", norm="rms", activation="swiglu", kv_heads=2, bias=False),
    "rotary, window 128": replace(SMALL, positions="rotary", window=128),
    "relative": replace(SMALL, positions="relative", qk_norm=True),
}
DEPTHS = (2, 48)


def compare(arch: Architecture, batch: int, steps: int, watch: Watch) -> tuple[float, int, int, float]:
    """Returns (largest difference of a logit, number of different tokens, number of tokens, tokens per second).

    Raises: Busy if the machine stays busy.
    """
    context = PROMPT + steps
    dtypes = {"dtype": jnp.dtype("float32"), "param_dtype": jnp.dtype("float32")}
    network: Any = Transformer(arch, VOCAB, context, causal=True, dtypes=dtypes)
    prompt = jax.random.randint(jax.random.key(1), (batch, PROMPT), 1, VOCAB, jnp.int32)
    shaped = network.init(jax.random.key(0), prompt, *locate_tokens(prompt, None))
    # With the initial weights all logits are nearly equal, so matrices are multiplied by 4.
    large = lambda path, x: x if x.ndim < 2 or "norm" in jax.tree_util.keystr(path) else 4 * x
    params = jax.tree_util.tree_map_with_path(large, shaped)
    apart = jax.default_backend() == "cpu"  # as the language families do
    as_read = {"params": unstack_layers(params["params"])} if apart else params

    def read(tokens: Array, segment: Array, position: Array, cache: Any, begins: bool) -> Any:
        return network.apply(as_read, tokens, segment, position, cache=cache, begins=begins)

    @jax.jit
    def write() -> Array:
        empty = lambda room: empty_cache(arch, batch, room, jnp.float32, apart)
        greedy = decoding.Sampling(temperature=0.0)
        keys = example_keys(jax.random.key(0), jnp.arange(batch))
        how: dict[str, Any] = {"n": steps, "limit": None, "vocab": VOCAB, "end": None}
        return decoding.decode(read, empty, prompt, keys, greedy, **how).tokens

    @jax.jit
    def one_by_one(text: Array) -> Array:
        segment, position = locate_tokens(text, None)
        start = empty_cache(arch, batch, context, jnp.float32, apart)

        def step(cache: Any, i: Array) -> tuple[Any, Array]:
            at = lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1)
            logits, cache = read(at(text), at(segment), at(position), cache, False)
            return cache, logits[:, 0]

        return jax.lax.scan(step, start, jnp.arange(context))[1].swapaxes(0, 1)

    def seconds_to_write() -> float:
        begun = time.monotonic()
        jax.block_until_ready(write())
        return time.monotonic() - begun

    written = jax.block_until_ready(write())
    rate = batch * steps / watch.measure(seconds_to_write)
    text = jnp.concatenate([prompt, written], axis=1)
    whole = np.asarray(jax.jit(lambda text: network.apply(params, text, *locate_tokens(text, None))[0])(text))
    difference = np.abs(np.asarray(one_by_one(text)) - whole).max()
    said = whole[:, PROMPT - 1 : -1]
    second, best = np.sort(said, axis=-1)[..., -2:].transpose(2, 0, 1)
    other = (said.argmax(-1) != np.asarray(written)) & (best - second > TOLERANCE)
    assert np.abs(said).max() > 1, "all logits are nearly equal, so the comparison proves nothing"
    return float(difference), int(other.sum()), written.size, rate


def compile_seconds(layers: int) -> float:
    """Returns the seconds to compile an update of a network with this many layers. Disable the compilation cache before."""
    arch = Architecture(layers=layers, width=64, heads=4)
    spec = {"tokens": Feature((65,), "int32", vocab=VOCAB, end=0)}
    model = LM(network=arch, optim=Optimizer()).build(spec, 1)
    engine = runtime_engine.compile_engine(model, Parallel(devices=1), 0, Text().batch_size)
    rows = np.arange(Text().batch_size)
    tokens = np.zeros((len(rows), 65), np.int32)
    batch = {
        "tokens": tokens,
        "counted": tokens > -1,
        "bytes": rows,
        "weight": np.ones(len(rows), np.float32),
        "row": rows,
    }
    lowered = engine.lower(batch | {"index": rows})
    begun = time.monotonic()
    lowered.compile()
    return time.monotonic() - begun


def main(steps: int = 512, batches: tuple[int, ...] = (1, 16)) -> None:
    """Prints the comparison as a table, and the compile times. steps: tokens to generate. batches: numbers of samples."""
    print(machine.begin() + "\n")
    print("| positions | batch | largest difference of a logit | different tokens | tokens per second |")
    print("|---|---:|---:|---:|---:|")
    for name, arch in KINDS.items():
        for batch in batches:
            difference, other, n, rate = compare(arch, batch, steps, Watch())
            print(f"| {name} | {batch} | {difference:.1e} | {other} of {n:,} | {rate:,.0f} |", flush=True)
    jax.config.update("jax_enable_compilation_cache", False)
    compile_seconds(DEPTHS[0])  # a warm-up, for all that happens only once
    watch = Watch()
    seconds = {n: watch.measure(partial(compile_seconds, n)) for n in DEPTHS}
    print(f"\ncompile time of an update: {', '.join(f'{s:.1f} s for {n} layers' for n, s in seconds.items())}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
