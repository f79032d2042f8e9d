"""The side of gen in the benchmarks against PyTorch: the compiled update of a config, decoding, or features for FID.

`python -m benchmarks` starts it in a separate process: python -m benchmarks.ours JOB DTYPE
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks import turns
from benchmarks.turns import Side
from gen import axis, core, files, train
from gen.config import Config, Parallel, load
from gen.data import cache, from_arrays
from gen.data.arrays import SPLITS
from gen.data.audio import Audio
from gen.data.images import Images
from gen.data.text import Text
from gen.data.text.documents import pydoc
from gen.families.flow import DiT, Flow
from gen.families.flow.objectives import FlowMatching, draw_normal, draw_time
from gen.families.flow.sampling import Request
from gen.families.gan import GAN
from gen.families.grid import GridLM
from gen.families.grid.grid import GridRequest
from gen.families.labels import drop_labels
from gen.families.language import LM, lm
from gen.families.tokenizer import FSQ, Spectral, Tokenizer
from gen.families.tokenizer import Residual as Books
from gen.families.vae import VAE
from gen.interop import gpt2
from gen.metrics import frechet, inception
from gen.networks import discriminator, generator
from gen.networks.tokenizer import Residual as ResidualCoder
from gen.networks.transformer import Architecture
from gen.networks.vae import Perceptron, Residual
from gen.optim import Optimizer, rules
from gen.runtime import backend
from gen.runtime.feed import calls, feed, stacked

Dtype = Literal["float32", "bfloat16", "float64"]
CHECKED = 3  # steps that both sides make from the same weights, to compare them
BATCHES = 4  # batches that the steps cycle through
DECODED = 256  # tokens to decode
IMAGES = 32  # images of an Inception step
CODES, CLASSES = 1024, 10  # of a grid of tokens
MELS = (126, 40)  # frames and bands of the log-mels of a second of sound
SAMPLED = 64  # images, or grids of tokens, that are sampled


def pictures(batch: int) -> Images:
    """Returns handwritten digits, enlarged to 28x28."""
    return Images(size=28, train="train", validation="test", batch_size=batch)


def text(length: int, batch: int) -> Text:
    """Returns Python's documentation as one document, reduced to the characters of Tiny Shakespeare."""
    path = files.cache_folder() / "benchmarks" / "pydoc.txt"
    joined = "\n".join(document.fields["text"] for document in pydoc().read())
    content = re.sub(r"[^\n !$&',\-.3:;?A-Za-z]", "", joined).encode()
    cache.keep_file(path, content)
    return Text(name=f"text:{path}", split="tail:0.1", tokenizer="character", length=length, batch_size=batch)


ADAM = Optimizer(lr=2e-4, b1=0.5)
ADAMW = Optimizer(lr=1e-3, b2=0.99, weight_decay=0.1, clip=1.0)
CLIPPED = Optimizer(lr=1e-3, clip=1.0)
SMALL, MEDIUM = Architecture(layers=4, width=128, heads=4), Architecture(layers=6, width=384, heads=6)


def dcgan(batch: int) -> Config:
    """Returns the DCGAN of TensorFlow's tutorial for 28x28 images, without dropout."""
    networks = {"generator": generator.DCGAN(), "discriminator": discriminator.DCGAN()}
    return Config(GAN(generator_optim=ADAM, discriminator_optim=ADAM, **networks), pictures(batch), steps=1000)


def language(arch: Architecture, length: int, batch: int) -> Config:
    arch = replace(arch, unroll=arch.layers)
    return Config(LM(network=arch, optim=ADAMW), text(length, batch), steps=1000)


def codec(batch: int) -> Config:
    """Returns a convolutional codec of seconds of sound at 8 kHz."""
    network = ResidualCoder(widths=(32, 64, 128), strides=(4, 4, 5))
    loss = Spectral(windows=(64, 256, 1024), bands=(10, 20, 40))
    model = Tokenizer(
        network=network, bottleneck=Books(3, FSQ((10, 10, 10))), reconstruction=loss, ema=0.999, optim=CLIPPED
    )
    return Config(model, Audio(name="tones", rate=8000, seconds=1.0, batch_size=batch), steps=1000)


@dataclass(frozen=True)
class Codes(core.Data):
    """Random grids of 7x7 tokens with labels. The time of a step does not depend on the tokens."""

    def build(self) -> core.Dataset:
        rng = np.random.default_rng(0)
        arrays = {"tokens": rng.integers(0, CODES, (1000, 7, 7)), "label": rng.integers(0, CLASSES, 1000)}
        features = {"tokens": core.Feature((7, 7), "int32", vocab=CODES, axes=("row", "column"))}
        return from_arrays(dict.fromkeys(SPLITS, arrays), self.batch_size, features)


@dataclass(frozen=True)
class Mels(core.Data):
    """Random log-mels of a second of sound, with labels."""

    def build(self) -> core.Dataset:
        rng = np.random.default_rng(0)
        arrays = {"latent": rng.normal(size=(256, *MELS)).astype(np.float32), "label": rng.integers(0, CLASSES, 256)}
        features = {"latent": core.Feature(MELS, axes=("time", "band"))}
        return from_arrays(dict.fromkeys(SPLITS, arrays), self.batch_size, features)


def shipped(name: str, data: core.Data, optim: Optimizer | None = None, **changes: Any) -> Config:
    """Returns a config of configs/ on other data. optim: by default the config's optimizer, with a constant learning rate."""
    model: Any = load(name).model
    optim = replace(model.optim, lr=1e-3) if optim is None else optim
    return Config(replace(model, optim=optim, **changes), data, steps=1000)


TRAINED: Mapping[str, Callable[[], Config]] = {
    "dcgan_64": lambda: dcgan(64),
    "dcgan_128": lambda: dcgan(128),
    "vae_mlp": lambda: Config(VAE(network=Perceptron((400,))), pictures(128), steps=1000, steps_per_call=10),
    "vae_conv": lambda: Config(VAE(network=Residual(blocks=0, activation="relu")), pictures(128), steps=1000),
    "gpt_small": lambda: language(SMALL, 64, 12),
    "gpt_medium": lambda: language(MEDIUM, 256, 4),
    "tokenizer": lambda: shipped("fsq_fashion", pictures(64)),
    "grid": lambda: shipped("tokens_fashion", Codes(batch_size=64)),
    "codec": lambda: codec(16),
    "unet": lambda: shipped("flow_fashion", pictures(64), CLIPPED),
    "dit": lambda: shipped("flow_fashion", pictures(64), CLIPPED, network=DiT()),
    "mel_flow": lambda: shipped("speech_digits_flow", Mels(batch_size=64)),
}
"""{job: its config}. The jobs that train."""


def training(config: Config, dtype: Dtype) -> Side:
    """Returns the side that runs an engine's update on batches that are already in memory."""
    model = replace(config.model, dtype=dtype, param_dtype="float64" if dtype == "float64" else "float32")
    if isinstance(model, GridLM) and dtype == "float64":
        # The two sides draw different noise for dropout, so they are compared without it.
        model = replace(model, network=replace(model.network, dropout=0.0))
    config = replace(config, model=model, parallel=Parallel(cpu_devices=1))
    data, built, engine = train.build(config)
    read = feed(data, built, config, engine.rows)
    steps = config.steps_per_call
    called = stacked(read, config)
    batches = [called(range(steps * i + 1, steps * (i + 1) + 1)) for i in range(BATCHES)]
    state = engine.init()
    numbers = count()

    def run(n: int) -> None:
        nonlocal state
        metrics: Any = None
        for _ in range(n):
            state, metrics = engine.update(state, batches[next(numbers) % BATCHES])
        jax.block_until_ready((state, metrics))

    def check(path: str) -> None:
        """Writes the initial weights, the inputs and noise of CHECKED steps, and the weights and losses after them."""
        state = engine.init()
        kept = {f"before/{name}": x for name, x in flat(state.params).items()}
        for i in range(CHECKED):
            key = jax.random.fold_in(jax.random.key(config.seed), i)
            seen, drawn = inputs(data, read(i), model, key)
            kept |= {f"step{i}/{name}": np.asarray(x) for name, x in (seen | drawn).items()}
        losses: dict[str, list[Any]] = {}
        for call in calls(replace(config, steps=CHECKED), 0):
            state, metrics = engine.update(state, called(call))
            for name, values in metrics.items():
                if name.startswith("loss"):
                    losses.setdefault(name, []).extend(np.ravel(values))
        kept |= {f"after/{name}": x for name, x in flat(state.params).items()}
        keep(path, kept | {name: np.array(values) for name, values in losses.items()})

    return Side(run, check, facts, steps)


def inputs(data: core.Dataset, batch: core.HostBatch, model: Any, key: core.Key) -> tuple[dict[str, Any], ...]:
    """Returns the preprocessed batch, and the noise that the family's update draws in a step with this key."""
    data_key, model_key = jax.random.split(key)
    real = jnp.promote_types(model.dtype, jnp.float32)
    normal = lambda size, key, row: axis.per_example(lambda k: jax.random.normal(k, size, real), key, row)
    match model:
        case GAN():
            d_key, g_key = jax.random.split(model_key)
            z_keys = jax.random.split(d_key)[0], jax.random.split(g_key, 3)[0]
            batch = {name: value[0] for name, value in batch.items()}  # the batch of the first step of D
            seen = data.preprocess(jax.device_put(batch), jax.random.split(data_key, 1)[0], True)
            return {"image": seen["image"]}, {
                f"z_{player}": normal((model.latent,), k, seen["row"]) for player, k in zip("dg", z_keys, strict=True)
            }
        case VAE():
            seen = data.preprocess(jax.device_put(batch), data_key, True)
            return {"image": seen["image"]}, {"z": normal((1, *model.latents), model_key, seen["row"])[:, 0]}
        case Flow():
            seen = data.preprocess(jax.device_put(batch), data_key, True)
            noise_keys, label_keys = axis.split_keys(axis.example_keys(model_key, seen["row"]), 2)
            e_keys, t_keys = axis.split_keys(noise_keys, 2)
            name = "image" if "image" in seen else "latent"
            x, objective = seen[name].astype(real), cast("FlowMatching", model.objective)
            label = drop_labels(seen["label"], label_keys, model.label_dropout, CLASSES)
            noise = {"e": draw_normal(e_keys, x), "t": draw_time(t_keys, x, objective.mean, objective.std)}
            return {name: x, "label": label}, noise
        case Tokenizer():
            seen = data.preprocess(jax.device_put(batch), data_key, True)
            if "audio" in seen:
                return {"audio": seen["audio"]}, {}
            return {"image": seen["image"], "label": seen["label"]}, {}
        case GridLM():
            label_keys, _ = axis.split_keys(axis.example_keys(model_key, jnp.asarray(batch["row"])), 2)
            label = drop_labels(jnp.asarray(batch["label"]), label_keys, model.label_dropout, CLASSES)
            return {"tokens": batch["tokens"], "label": label}, {}
    return {"tokens": batch["tokens"]}, {}


def widen(path: str, x: core.Array) -> core.Array:
    """Returns four times a matrix, and other parameters as they are."""
    return 4 * x if path.endswith(("kernel", "embedding")) else x


def decoding(batch: int, dtype: Dtype) -> Side:
    """Returns the side that continues one token greedily for DECODED tokens with the medium model.

    Its weights are four times their initial values. Otherwise all tokens are almost equally likely, and rounding decides.
    """
    backend.start_backend(Parallel())
    spec = {"tokens": core.Feature((DECODED + 1,), "int32", vocab=65)}
    arch = replace(MEDIUM, context=2 * DECODED)
    model = LM(network=arch, dtype=dtype, param_dtype="float64" if dtype == "float64" else "float32")
    built = model.build(spec, 1)
    state = jax.jit(built.init)(jax.random.key(0))
    state = replace(state, params=rules.map_with_path(widen, state.params))
    prompt = np.arange(1, batch + 1, dtype=np.int32)[:, None]
    request = lm.Request(n=1, tokens=DECODED, temperature=0.0)
    generate = jax.jit(lambda state, prompt: built.generate(state, jax.random.key(0), {"prompt": prompt}, request))

    def run(n: int) -> None:
        for _ in range(n):
            jax.block_until_ready(generate(state, prompt))

    def check(path: str) -> None:
        made = generate(state, prompt)
        tensors = {f"before/{k}": np.asarray(v) for k, v in gpt2.to_gpt2(state.params["transformer"]).items()}
        written = {"prompt": prompt, "tokens": made["samples"], "log_probs": made["log_probs"]}
        keep(path, tensors | {name: np.asarray(x) for name, x in written.items()})

    return Side(run, check, facts)


def grid_decoding(dtype: Dtype) -> Side:
    """Returns the side that draws 64 grids of 49 tokens. Its weights are four times their initial values, as in `decoding`."""
    backend.start_backend(Parallel())
    key, model = jax.random.key(0), load("tokens_fashion").model
    assert isinstance(model, GridLM)
    model = replace(model, dtype=dtype, param_dtype="float64" if dtype == "float64" else "float32", ema=0.0)
    built = model.build(Codes().build().spec, 1)
    state = jax.jit(built.init)(key)
    state = replace(state, params=rules.map_with_path(widen, state.params))
    generate = jax.jit(lambda state, key: built.generate(state, key, {}, GridRequest(n=SAMPLED)))

    def run(n: int) -> None:
        for _ in range(n):
            jax.block_until_ready(generate(state, key))

    def check(path: str) -> None:
        made = generate(state, key)
        before = {f"before/{name}": x for name, x in flat(state.params).items()}
        written = {"tokens": made["samples"], "log_probs": made["log_probs"], "labels": made["labels"]}
        keep(path, before | {name: np.asarray(x) for name, x in written.items()})

    return Side(run, check, facts)


def sampling(dtype: Dtype) -> Side:
    """Returns the side that samples 64 images from a flow, with 20 evaluations of a U-Net.

    Random numbers are added to its initial weights, because its initial output is almost 0.
    """
    backend.start_backend(Parallel())
    key = jax.random.key(0)
    model = load("flow_fashion").model
    assert isinstance(model, Flow)
    model = replace(model, dtype=dtype, param_dtype="float64" if dtype == "float64" else "float32", ema=0.0)
    spec = {"image": core.Feature((28, 28, 1), levels=256), "label": core.Feature((), "int32", classes=CLASSES)}
    built = model.build(spec, 1)
    state = jax.jit(built.init)(key)
    state = replace(
        state, params=jax.tree.map(lambda x: x + 0.05 * jax.random.normal(key, x.shape, x.dtype), state.params)
    )
    generate = jax.jit(lambda state, key, n: built.generate(state, key, {}, Request(n=n, steps=20)), static_argnums=2)

    def run(n: int) -> None:
        for _ in range(n):
            jax.block_until_ready(generate(state, key, SAMPLED))

    def check(path: str) -> None:
        # XLA's convolutions are slow in float64. The noise of an image does not depend on how many there are.
        n = 4
        made = generate(state, key, n)
        like = jnp.zeros((n, 28, 28, 1), jnp.promote_types(dtype, jnp.float32))
        noise = draw_normal(axis.example_keys(key, jnp.arange(n)), like)
        before = {f"before/{name}": x for name, x in flat(state.params).items()}
        keep(path, before | {"noise": noise, "samples": made["samples"], "labels": made["labels"]})

    return Side(run, check, facts)


def statistics() -> Side:
    """Returns the side that computes Inception's features of 32x32 images and their moments."""
    backend.start_backend(Parallel())
    rng = np.random.default_rng(0)
    tensors = {name: weights(rng, name, shape) for name, shape in inception.shapes().items()}
    extract = partial(inception.extract, jax.device_put(inception.fold_batch_norm(tensors)))
    images = rng.uniform(-1, 1, (IMAGES, 32, 32, 3)).astype(np.float32)

    def moments(n: int) -> frechet.Moments:
        found = frechet.moments(np.zeros((0, 2048)), np.zeros(0))
        for _ in range(n):
            found = frechet.merge(found, frechet.moments(extract(images)[0], np.ones(IMAGES)))
        return found

    def check(path: str) -> None:
        features = np.asarray(extract(images)[0])
        kept = {f"before/{name}": x for name, x in tensors.items()}
        keep(path, kept | {"input": np.asarray(inception.network_input(jnp.asarray(images))), "features": features})

    return Side(lambda n: moments(n) and None, check, facts)


def weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random weights of one Inception tensor, scaled so that features are neither 0 nor large."""
    if name.endswith("running_var"):
        return np.ones(shape, np.float32)
    if len(shape) == 1:
        return np.full(shape, float(name.endswith("bn.weight")), np.float32)
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def keep(path: str, arrays: Mapping[str, Any]) -> None:
    """Writes arrays to an .npz file."""
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


def flat(params: Any) -> dict[str, np.ndarray]:
    """Returns {path: array} of a tree of parameters."""
    return {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}


def facts() -> dict[str, Any]:
    """Returns the peak memory in bytes."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    return {"memory": turns.peak_memory() if on_cpu else (device.memory_stats() or {})["peak_bytes_in_use"]}


def peak(dtype: Dtype) -> Side:
    """Returns a side without steps, whose facts are the device and the speed of matrix products in operations per second."""
    backend.start_backend(Parallel())

    def facts() -> dict[str, Any]:
        device = jax.devices()[0]
        size, repeats = turns.product_size(device.platform == "cpu", dtype)
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product = jax.jit(jnp.matmul)

        def run(n: int) -> None:
            jax.block_until_ready([product(a, a) for _ in range(n)])

        run(2)
        rate = 2 * size**3 / min(turns.time_call(run, 2) for _ in range(repeats))
        name = backend.cpu_name() if device.platform == "cpu" else device.device_kind
        return {"platform": device.platform, "device": name, "version": f"jax {jax.__version__}", "rate": rate}

    return Side(_nothing, _nothing, facts)


def _nothing(argument: object) -> None:
    """Does nothing."""


def side(job: str, dtype: Dtype) -> Side:
    if job in TRAINED:
        return training(TRAINED[job](), dtype)
    if job == "fid_statistics":
        return statistics()
    if job == "grid_decode":
        return grid_decoding(dtype)
    if job == "flow_sample":
        return sampling(dtype)
    if job == "peak":
        return peak(dtype)
    return decoding(int(job.removeprefix("decode_")), dtype)


if __name__ == "__main__":
    job, given = sys.argv[1:]
    dtype: Any = given
    turns.serve(lambda: side(job, dtype))
