"""Features that published Fréchet distances are measured by (Heusel et al. 2017): the pool of Inception-v3.

The weights are a file that the user names. Its tensors have the names and layouts of the PyTorch ports' state dict
(pytorch-fid, torch-fidelity), so that any tool can make one; benchmarks/inception_weights.py is one. Images reach the
network as in TensorFlow's graph, and as in torch-fidelity; pytorch-fid resizes with half pixels instead, which moves
the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from gen import files
from gen.core import Array, Params
from gen.errors import UserError
from gen.metrics.features import Features
from gen.networks.inception import SIDE, Inception

PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
CONVERSION = f"python -m benchmarks.inception_weights {PUBLISHED} inception.safetensors"
NORMALIZATION = ("weight", "bias", "running_mean", "running_var")
EPSILON = 1e-3  # of the batch normalizations

Tensors = Mapping[str, np.ndarray]


def inception(path: Path) -> Features:
    """Features [B, 2048] and probabilities [B, 1008] of images [B, H, W, 1 or 3].

    Raises: UserError if the file is missing, or is not the weights of this network.
    """
    tensors = checked(read(path), str(path))
    return Features(
        partial(_extract, jax.device_put(folded(tensors))),
        {
            "features": "Inception-v3 of 2015-12-05, pool3",
            "weights": digest(tensors),
            "resize": f"8 bits, then TensorFlow 1's bilinear to {SIDE} x {SIDE}",
            "classes": "softmax of the logits without bias",
        },
    )


@jax.jit
def _extract(params: Params, images: Array) -> tuple[Array, Array]:
    outputs: Any = Inception().apply({"params": params}, network_input(images))
    features, logits = outputs
    return features, jax.nn.softmax(logits)


def network_input(images: Array) -> Array:
    """[B, H, W, 1 or 3] in [-1, 1] -> [B, 299, 299, 3] in [-1, 127/128]: the 256 levels of a file, resized, (x - 128) / 128.

    Grey becomes three equal channels. Raises: UserError for another number of channels.
    """
    if images.shape[-1] not in (1, 3):
        raise UserError(f"Inception sees images of 1 or 3 channels, and these have {images.shape[-1]}")
    levels = jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5)
    x = (resized(levels, SIDE) - 128) / 128
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def resized(x: Array, side: int) -> Array:
    """[B, H, W, C] -> [B, side, side, C] as TensorFlow 1 does: bilinear, where output i lies at i H / side of the input (no
    half pixels), without antialiasing."""
    for axis in (2, 1):
        size = x.shape[axis]
        at = np.arange(side, dtype=np.float32) * (np.float32(size) / np.float32(side))
        before = np.floor(at).astype(np.int32)
        after = np.minimum(before + 1, size - 1)
        share = np.expand_dims(at - np.floor(at), [i for i in range(4) if i != axis])
        x, beyond = jnp.take(x, before, axis), jnp.take(x, after, axis)
        x += (beyond - x) * share
    return x


@cache
def shapes() -> Mapping[str, tuple[int, ...]]:
    """Shape of each tensor that the network is made of, by its name in the PyTorch ports."""
    variables: Any = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    layers = dict(variables["params"])
    expected = {"fc.weight": layers.pop("fc")["kernel"].shape[::-1]}
    for name, layer in layers.items():
        height, width, inputs, outputs = layer["kernel"].shape
        expected[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        expected |= {f"{name}.bn.{part}": (outputs,) for part in NORMALIZATION}
    return expected


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors or .npz file. Nothing is unpickled. Raises: UserError if it can't be read."""
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(f"{path}: must be a .safetensors or .npz file; to make one: {CONVERSION}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; to make it: {CONVERSION}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return files.read_arrays(path)
    except Exception as error:  # a broken file makes them raise nearly anything
        raise UserError(f"{path}: can't be read as {path.suffix} ({error})") from error


def checked(tensors: Tensors, source: str) -> Tensors:
    """Those that the network is made of. The bias of the logits and counters of batches may be there, and are left out.

    Raises: UserError for a tensor that is missing, unexpected, or of another shape or dtype than float32.
    """
    expected = shapes()
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(f"{source}: {name} {shape} is missing; {PUBLISHED} has all that is needed")
        if tensors[name].shape != shape:
            raise UserError(f"{source}: {name} is {tensors[name].shape} and must be {shape}, as in {PUBLISHED}")
        if tensors[name].dtype != np.float32:
            raise UserError(f"{source}: {name} {shape} is {tensors[name].dtype} and must be float32")
    for name, tensor in tensors.items():
        if not (name in expected or name == "fc.bias" or name.endswith(".bn.num_batches_tracked")):
            raise UserError(f"{source}: {name} {tensor.shape} is no part of this network, which is that of {PUBLISHED}")
    return {name: tensors[name] for name in expected}


def digest(tensors: Tensors) -> str:
    """SHA-256 of names, shapes and values, whatever the file's format."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(f"{name} {tensors[name].shape}\n".encode())
        sha256.update(np.ascontiguousarray(tensors[name], "<f4").tobytes())
    return sha256.hexdigest()


def folded(tensors: Tensors) -> Params:
    """Parameters of the network, each normalization folded into its convolution (in float64): s w and b - s m, with
    s = g / sqrt(v + 1e-3)."""

    def layer(name: str) -> dict[str, np.ndarray]:
        g, b, m, v = (tensors[f"{name}.bn.{part}"].astype(np.float64) for part in NORMALIZATION)
        s = g / np.sqrt(v + EPSILON)
        kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * s
        return {"kernel": kernel.astype(np.float32), "bias": (b - s * m).astype(np.float32)}

    layers = [name.removesuffix(".conv.weight") for name in tensors if name.endswith(".conv.weight")]
    return {"fc": {"kernel": tensors["fc.weight"].T}} | {name: layer(name) for name in layers}
