"""Convolutions against lax's own, in values and in derivatives of both orders."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gen.networks.kernels import axes, convolution
from gen.networks.kernels.fourier import fourier_factors

AXES = ("NHWC", "HWIO", "NHWC")
# (height, width), kernel, channels, stride
SHAPES = [
    ((28, 28), (5, 5), (1, 2), 2),
    ((14, 14), (5, 5), (3, 8), 2),
    ((60, 60), (3, 3), (1, 2), 1),
    ((9, 5), (3, 3), (3, 2), 2),
    ((8, 9), (4, 4), (2, 1), 1),
    ((5, 8), (1, 1), (3, 2), 1),
    ((9, 8), (1, 1), (3, 2), 2),
    ((1, 2), (5, 3), (2, 3), 2),
    ((9, 7), (3, 3), (6, 5), 1),
    ((10, 7), (4, 3), (6, 5), 2),
    ((9, 10), (3, 4), (2, 5), 3),
]
WIDE = ((7, 7), (5, 5), (48, 40), 1)  # with a batch of 48, large enough for the Fourier form


def lax_conv(x, k, stride):
    return lax.conv_general_dilated(x, k, (stride, stride), "SAME", dimension_numbers=AXES)


def lax_conv_transpose(x, k, stride):
    return lax.conv_transpose(x, k, (stride, stride), "SAME", dimension_numbers=AXES)


ORACLE = {"conv": lax_conv, "conv_transpose": lax_conv_transpose}


def derivatives(f, stride, x, k, g, a, b):
    """Values, gradients, and the gradients of a gradient penalty's terms."""
    y, pull = jax.vjp(lambda x, k: f(x, k, stride), x, k)

    def penalty(x, k, g):
        dx, dk = jax.vjp(lambda x, k: jnp.tanh(f(x, k, stride)), x, k)[1](g)
        return (jnp.sin(dx) * a).sum() + (jnp.sin(dk) * b).sum()

    return y, pull(g), jax.grad(penalty, (0, 1, 2))(x, k, g)


def arguments(f, shape, dtype):
    """Random arguments of `derivatives` after the stride."""
    sides, kernel, channels, stride = shape
    rng = np.random.default_rng(0)

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    x, k = (3, *sides, channels[0]), (*kernel, *channels)
    y = jax.eval_shape(lambda x, k: f(x, k, stride), draw(x), draw(k)).shape
    return draw(x), draw(k) / np.sqrt(np.prod(k[:3])).astype(dtype), draw(y), draw(x), draw(k)


def wide(name, dtype):
    """Arguments of the shape WIDE."""
    args = arguments(ORACLE[name], WIDE, jnp.float64 if dtype == np.float64 else jnp.float32)
    return [jnp.asarray(jnp.tile(a, (16, 1, 1, 1)) if a.shape[0] == 3 else a, dtype) for a in args]


@pytest.mark.parametrize("name", ORACLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.slow
def test_values_and_derivatives_of_both_orders_equal_lax(name, shape):
    with jax.enable_x64(True):
        args = arguments(ORACLE[name], shape, jnp.float64)
        ours, theirs = (
            jax.jit(partial(derivatives, f, shape[-1]))(*args) for f in (getattr(convolution, name), ORACLE[name])
        )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize(("sides", "taps"), [((7, 7), (5, 5)), ((8, 5), (4, 3)), ((1, 6), (1, 2)), ((4, 4), (9, 9))])
def test_the_fourier_factors_give_the_trilinear_form(sides, taps):
    u, v, w = fourier_factors(sides, taps, np.dtype(np.float64))
    rng = np.random.default_rng(0)
    x, k, g = (rng.normal(size=(*shape, 1)) for shape in (sides, taps, sides))
    with jax.enable_x64(True):
        t = (lax_conv(x[None], k[..., None], 1)[0] * g).sum()
    np.testing.assert_allclose(((u @ x.ravel()) * (v @ k.ravel()) * (w @ g.ravel())).sum(), t, rtol=1e-11)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_add_patches_is_the_adjoint_of_take_patches(stride):
    rng, sides, taps = np.random.default_rng(0), (9, 10), (3, 4)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, *sides, 5)))
        patches = convolution.take_patches(x, taps, stride)
        y = jnp.asarray(rng.normal(size=patches.shape))
        added = convolution.add_patches(y, stride, sides)
        assert added.shape == x.shape
        np.testing.assert_allclose((patches * y).sum(), (x * added).sum(), rtol=1e-12)


@pytest.mark.parametrize(("dtype", "rounding"), [(np.float64, 1e-12), (np.float32, 5e-6)])
@pytest.mark.parametrize("name", ORACLE)
@pytest.mark.slow
def test_a_wide_kernel_on_a_small_image_uses_the_fourier_form_and_stays_exact(name, dtype, rounding):
    with jax.enable_x64(True):
        args = wide(name, dtype)
        ours = jax.jit(partial(derivatives, getattr(convolution, name), 1)).lower(*args).compile()
        theirs = jax.jit(partial(derivatives, ORACLE[name], 1))(*args)
        assert " convolution(" not in str(ours.as_text())
        checked = slice(None) if dtype == np.float64 else slice(3)  # the penalty's sine magnifies rounding
        for a, b in zip(jax.tree.leaves(ours(*args))[checked], jax.tree.leaves(theirs)[checked], strict=True):
            np.testing.assert_allclose(a, b, atol=rounding * np.abs(b).max())


@pytest.mark.parametrize("name", ORACLE)
def test_bfloat16_equals_lax(name):
    x, k, g, *_ = wide(name, jnp.bfloat16)

    def run(f):
        return jax.jit(lambda x, k, g: (f(x, k, 1), *jax.vjp(lambda x, k: f(x, k, 1), x, k)[1](g)))(x, k, g)

    for a, b in zip(run(getattr(convolution, name)), run(ORACLE[name]), strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(b).max())


def penalty_gradient(f, k, x):
    """psum over "data" of the gradient by the kernel of |gradient by the image|^2."""

    def slope(k):
        return jax.grad(lambda x: jnp.tanh(f(x, k, 1)).sum())(x)

    return lax.psum(jax.grad(lambda k: jnp.square(slope(k)).sum())(k), "data")


def test_convolutions_run_under_pmap_and_under_a_mapped_axis_of_size_one():
    x, k, *_ = wide("conv", np.float32)
    mapped = {"axis_name": "data", "in_axes": (None, 0)}
    expected = jax.jit(jax.vmap(partial(penalty_gradient, lax_conv), **mapped))(k, x[None])[0]
    one = jax.jit(jax.vmap(partial(penalty_gradient, convolution.conv), **mapped))(k, x[None])[0]
    two = jax.pmap(partial(penalty_gradient, convolution.conv), out_axes=None, devices=jax.devices()[:2], **mapped)
    for ours in (one, two(k, x.reshape(2, -1, *x.shape[1:]))):
        np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [WIDE, ((60, 60), (3, 3), (1, 2), 1), ((14, 14), (5, 5), (3, 8), 2)], ids=str)
def test_an_accelerator_gets_one_plain_convolution_per_derivative(shape):
    *_, stride = shape
    x, k, g, *_ = wide("conv", np.float32) if shape == WIDE else arguments(lax_conv, shape, jnp.float32)

    def conv(x, k):
        return convolution.conv(x, k, stride)

    f = jax.jit(lambda x, k, g: (conv(x, k), jax.vjp(conv, x, k)[1](g)))
    text = jax.export.export(f, platforms=("cuda",))(x, k, g).mlir_module()
    assert text.count("stablehlo.convolution") == 3 and "dot_general" not in text


@pytest.mark.parametrize(("layer", "f"), [(nn.Conv, convolution.conv), (nn.ConvTranspose, convolution.conv_transpose)])
def test_convolutions_equal_the_layers_of_flax(layer, f):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8, 3)), jnp.float32)
    theirs, variables = layer(4, (5, 5), (2, 2), use_bias=False).init_with_output(jax.random.key(0), x)
    ours = np.asarray(f(x, variables["params"]["kernel"], 2))
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-5)


def lax_conv_1d(x, k, stride):
    return lax.conv_general_dilated(x, k, (stride,), "SAME", dimension_numbers=("NXC", "XIO", "NXC"))


def lax_conv_transpose_1d(x, k, stride):
    return lax.conv_transpose(x, k, (stride,), "SAME", dimension_numbers=("NXC", "XIO", "NXC"))


ORACLE_1D = {"conv_axes": lax_conv_1d, "conv_axes_transpose": lax_conv_transpose_1d}
# Kernels shorter than the stride, as long, a multiple of it, and of other lengths. Axes of whole strides, and others.
SHAPES_1D = [
    ((length,), (taps,), (3, 2), stride) for length in (1, 8, 11) for taps in (1, 2, 4, 5, 9) for stride in (2, 3, 4)
]


@pytest.mark.parametrize("name", ORACLE_1D)
@pytest.mark.parametrize("shape", SHAPES_1D, ids=str)
def test_convolutions_over_one_axis_equal_lax(name, shape):
    ours, theirs, stride = getattr(axes, name), ORACLE_1D[name], shape[-1]
    with jax.enable_x64(True):
        x, k, g, *_ = arguments(theirs, shape, jnp.float64)
        y, pull = jax.vjp(lambda x, k: ours(x, k, stride), x, k)
        expected, pull_expected = jax.vjp(lambda x, k: theirs(x, k, stride), x, k)
        for a, b in zip((y, *pull(g)), (expected, *pull_expected(g)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("name", ORACLE_1D)
@pytest.mark.slow
def test_second_derivatives_over_one_axis_equal_lax(name):
    with jax.enable_x64(True):
        args = arguments(ORACLE_1D[name], ((11,), (6,), (3, 2), 4), jnp.float64)
        ours, theirs = (jax.jit(partial(derivatives, f, 4))(*args) for f in (getattr(axes, name), ORACLE_1D[name]))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("name", ORACLE_1D)
def test_convolutions_over_one_axis_keep_bfloat16(name):
    x, k, *_ = arguments(ORACLE_1D[name], ((16,), (8,), (3, 2), 4), jnp.bfloat16)
    ours, theirs = (np.asarray(f(x, k, 4), np.float32) for f in (getattr(axes, name), ORACLE_1D[name]))
    assert getattr(axes, name)(x, k, 4).dtype == jnp.bfloat16
    np.testing.assert_allclose(ours, theirs, atol=2e-2 * np.abs(theirs).max())
