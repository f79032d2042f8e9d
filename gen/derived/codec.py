"""Codecs: the encoder and the decoder of a trained tokenizer. Each run on its codes keeps a copy in two files.

    codec.json   the tokenizer's config, the feature of its data, and the checkpoint from which the weights were read
    codec.npz    the weights, as plain arrays

The run's config.json and checkpoints hold the SHA-256 of both files, so a changed copy is refused.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gen import config as configs
from gen import files
from gen.core import Array, Params
from gen.data.digest import sha256
from gen.errors import UserError
from gen.families.chunks import map_chunks
from gen.families.tokenizer import Tokenizer
from gen.families.tokenizer.coder import BOTTLENECK, CODER, Coder
from gen.runs import base, checkpoint, directory
from gen.runs.features import decode_spec, encode_spec

FILE, WEIGHTS = "codec.json", "codec.npz"
FORMAT = 1
"""Version of codec.json."""
MAX_WEIGHT_BYTES = 2**28
"""Largest size of codec.npz in bytes, which is the limit of all files that a data set keeps in a run."""
CHUNK_NUMBERS = 2**23
"""Count of numbers (pixels times channels) to encode or decode at once, to bound the memory: 42 images of 256x256 in colour."""
SCALE = "scale"
"""Key of the scale in codec.npz: models train on latents that are divided by it."""


@dataclass(frozen=True)
class Codec:
    """The encoder, bottleneck and decoder of a trained tokenizer, without the parts that only training needs."""

    facts: Mapping[str, Any]
    """Content of codec.json."""
    model: Tokenizer
    coder: Coder
    """The functions that encode and decode, without weights."""
    arrays: Mapping[str, np.ndarray]
    """The weights, in host memory: {"params/encoder/...": array, "stats/...": array, "scale": array []}."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of codec.json and the weights. The scale is left out, because it depends on the data that are encoded."""
        weights = [part for name, x in sorted(self.arrays.items()) if name != SCALE for part in (name, x)]
        return sha256(str(files.encode_json(dict(self.facts))), *weights)

    @cached_property
    def weights(self) -> tuple[Params, Params]:
        """(parameters of the coder, statistics of its bottleneck), on the device."""
        tree = unflatten_dict({name: x for name, x in self.arrays.items() if name != SCALE}, sep="/")
        # The first access may happen while a function is traced. The cached arrays must not be tracers of that function.
        with jax.ensure_compile_time_eval():
            return jax.device_put((tree["params"], tree.get("stats", {})))

    @property
    def scale(self) -> float:
        """The number by which latents are divided before a model reads them. 1 if there is none, as for tokens."""
        return float(self.arrays.get(SCALE, 1.0))

    def encode(self, x: Array) -> Array:
        """Encodes images float32 [B, H, W, C], or sound float32 [B, T, C], in [-1, 1].

        Returns tokens int32 [B, *grid], with one more axis if a place of the grid has several tokens. Tokenizers with
        continuous codes return latents [B, *grid, channels], which are not yet divided by `scale`.
        """
        return self.coder.encode(*self.weights, x).codes

    def show(self, codes: Array) -> Array:
        """Decodes tokens, or latents that are divided by `scale`, to images [B, H, W, C] or sound [B, T, C], float32 in [-1, 1]."""
        codes = codes if self.coder.codes.vocab else codes * self.scale
        size = max(1, CHUNK_NUMBERS // math.prod(self.coder.example.shape))
        return map_chunks(partial(self.coder.show, *self.weights), codes, size)

    def with_scale(self, scale: float) -> Codec:
        """Returns a copy of the codec with this scale."""
        return Codec(self.facts, self.model, self.coder, {**self.arrays, SCALE: np.array(scale, np.float32)})

    def files(self) -> dict[str, bytes]:
        """Returns {file name: content} of codec.json and codec.npz."""
        content = io.BytesIO()
        named: dict[str, Any] = dict(sorted(self.arrays.items()))
        # savez writes a fixed date, so equal arrays give equal bytes.
        np.savez(content, **named)
        return {FILE: files.encode_json(dict(self.facts)), WEIGHTS: content.getvalue()}


def open_codec(path: Path) -> Codec:
    """Reads the codec of a run. A tokenizer's run has it in its best checkpoint, and a run on codes keeps a copy of it.

    path: the run directory.

    Raises: UserError if it is a run of neither kind or an adapter, if the tokenizer's training is not finished, or if
    files have changed.
    """
    if (path / FILE).exists():
        checkpoint.check_owner(path, base.owner.warn)
        return read_codec(files.read_bytes(path / FILE), _read_weights(path), str(path))
    config, _ = directory.read_config(path)
    if not isinstance(config.model, Tokenizer):
        raise UserError(
            f"{path} is a run of {type(config.model).__name__}, not of a Tokenizer; name the run of a tokenizer"
        )
    if config.finetune != "full":
        raise UserError(f"{path} is an adapter; merge it with its base first: python -m gen.runs.merge {path} DIR")
    steps = max(checkpoint.steps(path / "checkpoints"), default=0)
    if steps < config.steps:
        raise UserError(
            f"the tokenizer {path} is not finished: {steps} of {config.steps} steps; train it to its end first"
        )
    run = base.open_base(path)
    state = checkpoint.restore(run.checkpoints, run.step, run.abstract, items=("params", "ema", "stats"))
    # Moving averages replace the parameters of the same name, as they do in evaluations.
    params = {name: {**state.params, **state.ema}[name] for name in CODER if name in state.params}
    tree = {"params": params, "stats": state.stats.get(BOTTLENECK, {})}
    flat: Any = flatten_dict(jax.tree.map(_to_plain, jax.device_get(tree)), sep="/")
    name = config.model.coder(run.spec).name
    model = {"model": configs.encode(config.model), "spec": encode_spec({name: run.spec[name]})}
    # The spec has no labels, so that the codec can encode other images of the same shape.
    facts = {"format": FORMAT, "step": run.step, "checkpoint": run.sha256, **model}
    return _make_codec(facts, flat, str(path))


@lru_cache(maxsize=2)
def read_codec(content: bytes, weights: bytes, where: str) -> Codec:
    """Reads a codec from its two files. Imports no module that the files name, so they may come from a stranger.

    content: of codec.json. weights: content of codec.npz. where: the run, for errors.

    Raises: UserError if the files are damaged, or don't fit each other.
    """
    facts = files.read_json(Path(where) / FILE, content)
    arrays = files.read_arrays(Path(where) / WEIGHTS, MAX_WEIGHT_BYTES, weights)
    return _make_codec(facts, arrays, where)


def _make_codec(facts: Any, arrays: Mapping[str, np.ndarray], where: str) -> Codec:
    """Builds a codec. facts: content of codec.json. arrays: its weights. where: the run, for errors.

    Raises: UserError if codec.json has another format or is damaged, or if the weights don't fit it.
    """
    at = f"{where}/{FILE}"
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not {"model", "spec"} <= facts.keys():
        raise UserError(f"{at} is not a codec of format {FORMAT}; the fix: restore it from a copy of the run")
    # `decode` only uses classes of gen, and of modules that this process has imported, so a stranger's file runs no code.
    model = configs.decode(Tokenizer, facts["model"], at=at)
    coder = model.coder(decode_spec(facts["spec"], at))
    _check_arrays(coder, arrays, where)
    return Codec(facts, model, coder, arrays)


def _check_arrays(coder: Coder, arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raises: UserError unless the arrays have the names and shapes of the coder's parameters and statistics."""

    def begin(key: Array) -> dict[str, Params]:
        return {"params": coder.init(key), "stats": coder.bottleneck.begin(key, jnp.float32)}

    wanted: Any = flatten_dict(jax.eval_shape(begin, jax.random.key(0)), sep="/")
    # The scale is optional: a tokenizer's own run has none. So it is added to both sides.
    shapes = {name: x.shape for name, x in wanted.items()} | {SCALE: ()}
    # The codec of a tokenizer's run has no scale. Only its copies in runs on its codes have one.
    found = {SCALE: ()} | {name: x.shape for name, x in arrays.items()}
    if found != shapes:
        wrong = min(name for name in {**found, **shapes} if found.get(name) != shapes.get(name))
        raise UserError(f"{where}/{WEIGHTS} does not fit {FILE}: {wrong[:80]} is {found.get(wrong, 'missing')}")


def _read_weights(path: Path) -> bytes:
    try:
        return files.read_bytes(path / WEIGHTS, MAX_WEIGHT_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} has no {WEIGHTS}; copy it from the original run") from None


def _to_plain(x: np.ndarray) -> np.ndarray:
    """Returns bfloat16 as float32, because an .npz file can't hold it, and other arrays unchanged."""
    return np.asarray(x, np.float32) if x.dtype.kind == "V" or x.dtype == jnp.bfloat16 else np.asarray(x)
