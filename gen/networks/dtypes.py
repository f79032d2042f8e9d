"""Dtypes of activations and parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gen.errors import UserError

Dtypes = dict[str, Any]
"""{"dtype": dtype of activations, "param_dtype": dtype of parameters}: keyword arguments of Flax modules."""


def module_dtypes(dtype: str, param_dtype: str) -> Dtypes:
    """Returns the dtypes of activations and parameters as keyword arguments of Flax modules.

    Raises: UserError for float64 if JAX_ENABLE_X64 is not set.
    """
    if "float64" in (dtype, param_dtype) and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            "JAX turns float64 into float32 unless it is enabled; the fix: JAX_ENABLE_X64=1 in the environment"
        )
    return {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}


def widen(x: jax.Array) -> jax.Array:
    """Returns x in float32, or unchanged if it is float64. bfloat16 is too coarse for sums of many terms, and for rounding to codes."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
