"""Whether decoding with a cache is what whole passes say, and how long programs take to compile by depth:
python -m benchmarks.transformer [--steps 512] [--batches 1 16]

For each kind of positions, a network of random weights writes greedily. All logits of the cache are compared with those of one
forward pass over the text, and the tokens with its most likely ones, but where the two likeliest are closer than TOLERANCE.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen.config import Parallel
from gen.core import Array, Feature
from gen.data.text import Text
from gen.errors import run_command
from gen.families.language import LM, decoding
from gen.networks.positions import places
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


def compared(arch: Architecture, batch: int, steps: int) -> tuple[float, int, int, float]:
    """(largest difference of a logit, tokens that differ, of how many, tokens a second)."""
    context = PROMPT + steps
    dtypes = {"dtype": jnp.dtype("float32"), "param_dtype": jnp.dtype("float32")}
    network: Any = Transformer(arch, VOCAB, context, causal=True, dtypes=dtypes)
    prompt = jax.random.randint(jax.random.key(1), (batch, PROMPT), 1, VOCAB, jnp.int32)
    shaped = network.init(jax.random.key(0), prompt, *places(prompt, None))
    large = lambda path, x: x if x.ndim < 2 or "norm" in jax.tree_util.keystr(path) else 4 * x  # so that logits differ
    params = jax.tree_util.tree_map_with_path(large, shaped)
    apart = jax.default_backend() == "cpu"  # as families read
    as_read = {"params": unstack_layers(params["params"])} if apart else params

    def read(tokens: Array, segment: Array, position: Array, cache: Any, begins: bool) -> Any:
        return network.apply(as_read, tokens, segment, position, cache=cache, begins=begins)

    @jax.jit
    def write() -> Array:
        empty = lambda room: empty_cache(arch, batch, room, jnp.float32, apart)
        greedy = decoding.Sampling(temperature=0.0)
        keys = decoding.row_keys(jax.random.key(0), batch)
        how: dict[str, Any] = {"n": steps, "limit": None, "vocab": VOCAB, "end": None}
        return decoding.decode(read, empty, prompt, keys, greedy, **how).tokens

    @jax.jit
    def one_by_one(text: Array) -> Array:
        segment, position = places(text, None)
        start = empty_cache(arch, batch, context, jnp.float32, apart)

        def step(cache: Any, i: Array) -> tuple[Any, Array]:
            at = lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1)
            logits, cache = read(at(text), at(segment), at(position), cache, False)
            return cache, logits[:, 0]

        return jax.lax.scan(step, start, jnp.arange(context))[1].swapaxes(0, 1)

    written = jax.block_until_ready(write())
    begun = time.monotonic()
    jax.block_until_ready(write())
    rate = batch * steps / (time.monotonic() - begun)
    text = jnp.concatenate([prompt, written], axis=1)
    whole = np.asarray(jax.jit(lambda text: network.apply(params, text, *places(text, None))[0])(text))
    difference = np.abs(np.asarray(one_by_one(text)) - whole).max()
    said = whole[:, PROMPT - 1 : -1]
    second, best = np.sort(said, axis=-1)[..., -2:].transpose(2, 0, 1)
    other = (said.argmax(-1) != np.asarray(written)) & (best - second > TOLERANCE)
    assert np.abs(said).max() > 1, "the logits are not trivial"
    return float(difference), int(other.sum()), written.size, rate


def compiled(layers: int) -> float:
    """Seconds to compile an update of so many layers, without a cache of programs."""
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
    print("| positions | batch | largest difference of a logit | other tokens | tokens a second |")
    print("|---|---:|---:|---:|---:|")
    for name, arch in KINDS.items():
        for batch in batches:
            difference, other, n, rate = compared(arch, batch, steps)
            print(f"| {name} | {batch} | {difference:.1e} | {other} of {n:,} | {rate:,.0f} |", flush=True)
    jax.config.update("jax_enable_compilation_cache", False)
    compiled(DEPTHS[0])  # what is done once
    print(f"\nto compile an update: {', '.join(f'{compiled(n):.1f} s of {n} layers' for n in DEPTHS)}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
