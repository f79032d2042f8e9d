"""Dtypes of activations and parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gen.errors import UserError


def module_dtypes(dtype: str, param_dtype: str) -> dict[str, Any]:
    """Of activations and of parameters, as Flax modules take them. Raises: UserError for float64 while JAX has none."""
    if "float64" in (dtype, param_dtype) and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError("float64 is float32 unless JAX is told otherwise; the fix: JAX_ENABLE_X64=1 in the environment")
    return {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
