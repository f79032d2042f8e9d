"""The features with which Fréchet distances are published (Heusel et al. 2017): the last pooling layer of Inception-v3.

The weights are a file that the user names. Its tensors have the names and layouts of the PyTorch ports' state dict (pytorch-fid,
torch-fidelity), so any tool can write it, such as benchmarks/inception_weights.py. Images are resized as in TensorFlow's graph and in
torch-fidelity. pytorch-fid resizes with half pixels instead, which changes the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import cast

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
EPSILON = 1e-3
"""Number that is added to the variance in each batch normalization."""

Tensors = Mapping[str, np.ndarray]


def inception(path: Path) -> Features:
    """Returns Inception-v3 as a feature extractor. See `extract` for its inputs and outputs.

    path: a .safetensors or .npz file with its weights.

    Raises: UserError if the file is missing, or does not contain the weights of this network.
    """
    tensors = check_tensors(read_tensors(path), str(path))
    return Features(
        partial(extract, jax.device_put(fold_batch_norm(tensors))),
        {
            "features": "Inception-v3 of 2015-12-05, pool3",
            "weights": digest(tensors),
            "resize": f"8 bits, then TensorFlow 1's bilinear to {SIDE} x {SIDE}",
            "classes": "softmax of the logits without bias",
        },
    )


@jax.jit
def extract(params: Params, images: Array) -> tuple[Array, Array]:
    """Returns features [B, 2048] and class probabilities [B, 1008] of images [B, H, W, 1 or 3] in [-1, 1]."""
    outputs = Inception().apply({"params": params}, network_input(images))
    features, logits = cast("tuple[Array, Array]", outputs)
    return features, jax.nn.softmax(logits)


def network_input(images: Array) -> Array:
    """Returns the network's input [B, 299, 299, 3] in [-1, 127/128], for images [B, H, W, 1 or 3] in [-1, 1].

    Images are rounded to the 256 levels of a file and resized, then x becomes (x - 128) / 128. Grey becomes three equal channels.

    Raises: UserError for another number of channels.
    """
    if images.shape[-1] not in (1, 3):
        raise UserError(
            f"Inception takes images of 1 or 3 channels, and these have {images.shape[-1]}; use --features pixels"
        )
    levels = jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5)
    x = (resize(levels, SIDE) - 128) / 128
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def resize(x: Array, side: int) -> Array:
    """Resizes [B, H, W, C] to [B, side, side, C] as TensorFlow 1 does: bilinear, without antialiasing.

    Output pixel i is read at i * H / side of the input. Later versions read at (i + 1/2) * H / side - 1/2 ("half pixels").
    """
    for axis in (2, 1):
        size = x.shape[axis]
        # In float32 as in TensorFlow: its rounding decides which pixels are read.
        at = np.arange(side, dtype=np.float32) * (np.float32(size) / np.float32(side))
        before = np.floor(at).astype(np.int32)
        after = np.minimum(before + 1, size - 1)
        share = np.expand_dims(at - np.floor(at), [i for i in range(4) if i != axis])
        x, beyond = jnp.take(x, before, axis), jnp.take(x, after, axis)
        x += (beyond - x) * share
    return x


@cache
def shapes() -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of each tensor of the network, by its name in the PyTorch ports."""
    variables = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    layers = dict(variables["params"])
    # PyTorch's layouts: a matrix is [outputs, inputs], a kernel [outputs, inputs, height, width].
    expected = {"fc.weight": layers.pop("fc")["kernel"].shape[::-1]}
    for name, layer in layers.items():
        height, width, inputs, outputs = layer["kernel"].shape
        expected[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        expected |= {f"{name}.bn.{part}": (outputs,) for part in NORMALIZATION}
    return expected


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a .safetensors or .npz file. Nothing is unpickled, so the file can't run code.

    Raises: UserError if it can't be read.
    """
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(f"{path}: must be a .safetensors or .npz file; to make one: {CONVERSION}")
    if not path.exists():
        raise UserError(f"{path}: there is no such file; to make it: {CONVERSION}")
    files.check_regular(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return files.read_arrays(path)
    except Exception as error:
        # For a broken file the libraries raise nearly any exception.
        raise UserError(f"{path}: can't be read as {path.suffix} ({error}); to make it: {CONVERSION}") from error


def check_tensors(tensors: Tensors, source: str) -> Tensors:
    """Checks the tensors of a file, and returns the tensors that the network uses, without the bias of the logits and batch counters.

    source: name of the file, for error messages.

    Raises: UserError for a tensor that is missing, unexpected, of another shape, or not float32.
    """
    expected = shapes()
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(f"{source}: {name} {shape} is missing; {PUBLISHED} has all tensors that are needed")
        if tensors[name].shape != shape:
            raise UserError(f"{source}: {name} is {tensors[name].shape} and must be {shape}, as in {PUBLISHED}")
        if tensors[name].dtype != np.float32:
            raise UserError(f"{source}: {name} {shape} is {tensors[name].dtype} and must be float32")
    # The published file also has a bias and counters, which this network does not use.
    for name, tensor in tensors.items():
        if not (name in expected or name == "fc.bias" or name.endswith(".bn.num_batches_tracked")):
            raise UserError(
                f"{source}: {name} {tensor.shape} is not part of this network; use the tensors of {PUBLISHED}"
            )
    return {name: tensors[name] for name in expected}


def digest(tensors: Tensors) -> str:
    """Returns the SHA-256 of names, shapes and values. It does not depend on the file's format."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(f"{name} {tensors[name].shape}\n".encode())
        # Little-endian, so that the digest is the same on every machine.
        sha256.update(np.ascontiguousarray(tensors[name], "<f4").tobytes())
    return sha256.hexdigest()


def fold_batch_norm(tensors: Tensors) -> Params:
    """Returns the network's parameters, with each batch normalization folded into its convolution in float64.

    A normalization with scale g, bias b, mean m and variance v turns the kernel w into s w and adds the bias b - s m, where
    s = g / sqrt(v + 1e-3).
    """

    def fold(name: str) -> dict[str, np.ndarray]:
        g, b, m, v = (tensors[f"{name}.bn.{part}"].astype(np.float64) for part in NORMALIZATION)
        s = g / np.sqrt(v + EPSILON)
        kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * s
        return {"kernel": kernel.astype(np.float32), "bias": (b - s * m).astype(np.float32)}

    layers = [name.removesuffix(".conv.weight") for name in tensors if name.endswith(".conv.weight")]
    return {"fc": {"kernel": tensors["fc.weight"].T}} | {name: fold(name) for name in layers}
