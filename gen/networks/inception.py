"""The Inception-v3 network whose features define the FID: TensorFlow's graph of 2015-12-05.

Szegedy et al. 2016, with three peculiarities of that graph: average pools do not count their padding, the last block pools
by maximum, and there are 1008 classes. Batch normalizations have constant statistics, so they are folded into the
convolutions. The architecture is a data structure, `LAYERS`. Its convolutions have the names that the PyTorch ports use
(pytorch-fid, torch-fidelity).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.core import Array

SIDE = 299
"""Height and width of the images that the network takes, in pixels."""
CLASSES = 1008
"""Number of logits. TensorFlow's graph has 1008, although ImageNet has 1000 classes."""
# Scores are compared between machines, so accelerators must not round products to bfloat16 or TF32.
HIGHEST = jax.lax.Precision.HIGHEST


class Conv(NamedTuple):
    """A convolution with a bias, followed by a ReLU."""

    name: str
    width: int
    """Number of output channels."""
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """A pooling layer. It has no parameters."""

    apply: Callable[[Array], Array]
    """[B, H, W, C] -> [B, H', W', C]."""


class Block(NamedTuple):
    """Branches that read the same input. Their output channels are concatenated."""

    name: str
    """Prefix of the names of the convolutions in this block."""
    branches: Sequence[Sequence[Layer]]
    """The layers of each branch."""


Layer = Conv | Pool | Block

# As in TensorFlow, the zeros of the padding do not count in the average. Scores depend on it.
AVERAGE = Pool(partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False))
MAXIMUM = Pool(partial(nn.max_pool, window_shape=(3, 3), padding="SAME"))
HALVE = Pool(partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2)))


def block_a(name: str, pooled: int) -> Block:
    """Returns a block that keeps 35 x 35 positions. pooled: output channels of the branch with average pooling."""
    return Block(
        name,
        [
            [Conv("branch1x1", 64)],
            [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
            [
                Conv("branch3x3dbl_1", 64),
                Conv("branch3x3dbl_2", 96, (3, 3)),
                Conv("branch3x3dbl_3", 96, (3, 3)),
            ],
            [AVERAGE, Conv("branch_pool", pooled)],
        ],
    )


def block_b(name: str) -> Block:
    """Returns the block that reduces 35 x 35 positions to 17 x 17."""
    return Block(
        name,
        [
            [Conv("branch3x3", 384, (3, 3), 2, "VALID")],
            [
                Conv("branch3x3dbl_1", 64),
                Conv("branch3x3dbl_2", 96, (3, 3)),
                Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
            ],
            [HALVE],
        ],
    )


def block_c(name: str, inner: int) -> Block:
    """Returns a block that keeps 17 x 17 positions. inner: channels of the hidden convolutions of the 7x7 branches."""
    return Block(
        name,
        [
            [Conv("branch1x1", 192)],
            [
                # A 7x7 kernel is divided into 1x7 and 7x1, which have 2/7 of its weights (Szegedy et al. 2016).
                Conv("branch7x7_1", inner),
                Conv("branch7x7_2", inner, (1, 7)),
                Conv("branch7x7_3", 192, (7, 1)),
            ],
            [
                Conv("branch7x7dbl_1", inner),
                Conv("branch7x7dbl_2", inner, (7, 1)),
                Conv("branch7x7dbl_3", inner, (1, 7)),
                Conv("branch7x7dbl_4", inner, (7, 1)),
                Conv("branch7x7dbl_5", 192, (1, 7)),
            ],
            [AVERAGE, Conv("branch_pool", 192)],
        ],
    )


def block_d(name: str) -> Block:
    """Returns the block that reduces 17 x 17 positions to 8 x 8."""
    return Block(
        name,
        [
            [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")],
            [
                Conv("branch7x7x3_1", 192),
                Conv("branch7x7x3_2", 192, (1, 7)),
                Conv("branch7x7x3_3", 192, (7, 1)),
                Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
            ],
            [HALVE],
        ],
    )


def block_e(name: str, pool: Pool) -> Block:
    """Returns a block that keeps 8 x 8 positions. pool: the pooling layer that begins its last branch."""

    def cross(wide: str, tall: str) -> Block:
        return Block("", [[Conv(wide, 384, (1, 3))], [Conv(tall, 384, (3, 1))]])

    return Block(
        name,
        [
            [Conv("branch1x1", 320)],
            [Conv("branch3x3_1", 384), cross("branch3x3_2a", "branch3x3_2b")],
            [
                Conv("branch3x3dbl_1", 448),
                Conv("branch3x3dbl_2", 384, (3, 3)),
                cross("branch3x3dbl_3a", "branch3x3dbl_3b"),
            ],
            [pool, Conv("branch_pool", 192)],
        ],
    )


LAYERS: Sequence[Layer] = [
    # From 299 x 299 to 35 x 35.
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    HALVE,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    HALVE,
    # 35 x 35.
    block_a("Mixed_5b.", 32),
    block_a("Mixed_5c.", 64),
    block_a("Mixed_5d.", 64),
    # 17 x 17.
    block_b("Mixed_6a."),
    block_c("Mixed_6b.", 128),
    block_c("Mixed_6c.", 160),
    block_c("Mixed_6d.", 160),
    block_c("Mixed_6e.", 192),
    # 8 x 8.
    block_d("Mixed_7a."),
    block_e("Mixed_7b.", AVERAGE),
    # TensorFlow's graph of 2015 pools by the maximum here, unlike other versions of the network. FID depends on it.
    block_e("Mixed_7c.", MAXIMUM),
]


class Inception(nn.Module):
    """Inception-v3 in float32: the layers of `LAYERS`, then a linear layer for the logits."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Returns features [B, 2048] and logits [B, 1008] for x [B, 299, 299, 3] in about [-1, 1].

        The features are the outputs of the last block, averaged over positions. The logits have no bias, as in the code of the Inception
        Score (Salimans et al. 2016).
        """
        features = _run(LAYERS, x).mean(axis=(1, 2))
        logits = nn.Dense(CLASSES, use_bias=False, precision=HIGHEST, name="fc")(features)
        return features, logits


def _run(layers: Sequence[Layer], x: Array, scope: str = "") -> Array:
    """Applies the layers in order to x [B, H, W, C]. scope: prefix of the names of their convolutions."""
    for layer in layers:
        match layer:
            case Conv(name, width, kernel, stride, padding):
                x = nn.relu(nn.Conv(width, kernel, stride, padding, precision=HIGHEST, name=scope + name)(x))
            case Pool(apply):
                x = apply(x)
            case Block(name, branches):
                x = jnp.concatenate([_run(branch, x, scope + name) for branch in branches], axis=-1)
    return x
