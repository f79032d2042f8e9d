"""Bounds on the likelihood of held-out images: their estimates on a batch, and their report on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen import axis
from gen.core import Array, Batch, Feature, Key, Params, State, Sums, means
from gen.families.vae.latent import Draw, LatentModel, Terms
from gen.networks import gaussian
from gen.networks.gaussian import Gaussian

MAX_CHUNK = 25
"""Upper bound on the posterior samples that are computed at once. More take more memory and are not faster."""
MIN_ACTIVE_VARIANCE = 0.01
"""A latent is active if its posterior mean varies more than this over the split."""


class Moments(NamedTuple):
    """Averages over the posterior samples of each example. kl and reconstruction are in nats."""

    kl: Array
    """[B]."""
    kl_per_latent: Array
    """[B, D], over the latents of all groups."""
    mean: Array
    """Means of q, [B, D]."""
    reconstruction: Array
    """-log p(x | z), [B]."""


@dataclass(frozen=True)
class BoundEstimator:
    """Estimates of the evidence lower bound and of the importance-weighted bound with K posterior samples."""

    model: LatentModel
    weights: Callable[[State], dict[str, Params]]
    """Parameters to evaluate."""
    samples: int
    """K."""

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns the sums of a batch's bounds, their parts, and the moments of its latents, over the axis "data"."""
        params = self.weights(state)
        x, label = self.model.inputs(batch)
        features = self.model.encode(params, x, label)
        chunk = chunk_size(self.samples)

        def add_chunk(carry: tuple[Array, Moments], i: Array) -> tuple[tuple[Array, Moments], None]:
            log_w, moments = carry
            noise = self.model.noise(jax.random.fold_in(key, i), batch["row"], chunk)
            draw = self.model.infer(params, features, noise)
            terms = self.model.terms(params, x, label, draw)
            # log(sum of w) is accumulated over chunks. The weights need log q and log p of the drawn z, even if the KL has a
            # closed form.
            log_w = jnp.logaddexp(log_w, jax.nn.logsumexp(self.model.log_weight(params, x, label, draw), axis=0))

            def add(total: Array, value: Array) -> Array:
                return total + value * (chunk / self.samples)

            return (log_w, jax.tree.map(add, moments, _moments(draw, terms))), None

        # A scan over chunks of samples, so that memory does not grow with K.
        start = jnp.full(x.shape[0], -jnp.inf, x.dtype), self._zero_moments(x)
        (log_w, moments), _ = jax.lax.scan(add_chunk, start, jnp.arange(self.samples // chunk))
        values = {
            **moments._asdict(),
            "neg_elbo": moments.reconstruction + moments.kl,
            "nll_bound": math.log(self.samples) - log_w,
            "mean_squared": jnp.square(moments.mean),
        }
        # Padding has weight 0, so the sums are exact for any batch size.
        weight = batch["weight"].astype(x.dtype)
        count = weight.sum()
        return axis.total({name: (jnp.tensordot(weight, v, axes=1), count) for name, v in values.items()})

    def _zero_moments(self, x: Array) -> Moments:
        b, d = x.shape[0], sum(self.model.latents)
        scalar, vector = jnp.zeros(b, x.dtype), jnp.zeros((b, d), x.dtype)
        return Moments(kl=scalar, kl_per_latent=vector, mean=vector, reconstruction=scalar)


@dataclass(frozen=True)
class BoundReport:
    """The metrics of a split, and how each of them is estimated."""

    image: Feature
    mismatch: str | None
    """Why the likelihood gives no bound on these images. None: it gives one."""
    samples: int
    """K of the test."""
    conditional: tuple[str, ...] = ()
    """Names of the features that the likelihood is conditional on."""

    def summarize(self, sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float | np.ndarray]:
        """Returns the metrics of a split from its sums.

        Bounds are in nats, except bits_per_dim. It and nll_bound are left out if the likelihood gives no bound.
        """
        value = means(sums)
        # The variance over examples of each latent's posterior mean, E[m^2] - E[m]^2.
        variance = value["mean_squared"] - value["mean"] ** 2
        metrics = {
            **{name: value[name] for name in ("neg_elbo", "reconstruction", "kl")},
            "active_units": float((variance > MIN_ACTIVE_VARIANCE).sum()),
            "kl_per_latent": value["kl_per_latent"],
        }
        if self.mismatch is None:
            metrics["nll_bound"] = value["nll_bound"]
            if self.image.levels is not None:
                metrics["bits_per_dim"] = value["nll_bound"] / (math.prod(self.image.shape) * math.log(2))
        return metrics

    def protocol(self) -> dict[str, dict[str, object]]:
        """Returns how each metric is estimated, or the reason why it is not reported."""
        given = {"conditional": self.conditional}
        bound: dict[str, object] = {"samples": self.samples, "source": "Burda et al. 2016, equation 8", **given}
        if self.mismatch is not None:
            bound = {"refused": self.mismatch}
        return {
            "neg_elbo": {"samples": self.samples, "unit": "nats", **given},
            "nll_bound": {**bound, "unit": "nats"},
            "bits_per_dim": {**bound, "of": "nll_bound"},
            "active_units": {"threshold": MIN_ACTIVE_VARIANCE, "source": "Burda et al. 2016, section 5"},
        }


def chunk_size(samples: int) -> int:
    """Returns the largest divisor of `samples` up to MAX_CHUNK. A prime number of samples is computed one by one."""
    return max(c for c in range(1, min(samples, MAX_CHUNK) + 1) if samples % c == 0)


def _moments(draw: Draw, terms: Terms) -> Moments:
    per_latent = [_kl_per_latent(q, kl) for q, kl in zip(draw.q, terms.kl, strict=True)]
    return Moments(
        kl=jnp.asarray(sum(kl.sum(-1).mean(0) for kl in terms.kl)),
        kl_per_latent=jnp.concatenate(per_latent, axis=-1),
        mean=jnp.concatenate([q.mean.mean(0) for q in draw.q], axis=-1),
        reconstruction=-terms.log_px.mean(0),
    )


def _kl_per_latent(q: Gaussian, kl: Array) -> Array:
    """Returns the KL of each latent of a group, averaged over samples, [B, D]."""
    if kl.shape[-1] != q.mean.shape[-1]:
        # This prior has no closed form for each dimension. N(0, I) takes its place, to order the latents.
        kl = gaussian.gaussian_kl(q, Gaussian(jnp.zeros_like(q.mean), jnp.zeros_like(q.log_std)))
    return kl.mean(0)
