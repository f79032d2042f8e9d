"""Bounds on the likelihood of held-out images: their estimates on a batch, and their report for a whole split."""

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
"""Maximum number of posterior samples per example that are computed at once. More would take more memory and not be faster."""
MIN_ACTIVE_VARIANCE = 0.01
"""A latent dimension is active if the variance of its posterior mean over the examples of the split is above this."""


class Moments(NamedTuple):
    """Averages over the K posterior samples z ~ q(z | x) of each of B examples. kl and reconstruction are in nats."""

    kl: Array
    """KL(q || p), [B]."""
    kl_per_latent: Array
    """KL of each latent dimension, [B, D]. D counts the dimensions of all latent groups, top group first. For a group
    whose prior has no KL in closed form, it is the KL to N(0, I)."""
    mean: Array
    """Posterior mean of each latent dimension, [B, D]."""
    reconstruction: Array
    """-log p(x | z), [B]."""


@dataclass(frozen=True)
class BoundEstimator:
    """Estimates the evidence lower bound and the importance-weighted bound with K posterior samples of each example."""

    model: LatentModel
    weights: Callable[[State], dict[str, Params]]
    """State -> the parameters to evaluate."""
    samples: int
    """Number K of posterior samples of each example."""

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns {name: (sum over examples, number of examples)} over the mapped axis "data" (see gen.axis).

        The names are "neg_elbo", the negative evidence lower bound; "nll_bound", the negative importance-weighted bound
        (Burda et al. 2016, equation 8); the fields of `Moments`; and "mean_squared" [D], the square of each latent
        dimension's posterior mean. Bounds are in nats.
        """
        params = self.weights(state)
        x, label = self.model.inputs(batch)
        features = self.model.encode(params, x, label)
        chunk = chunk_size(self.samples)

        def add_chunk(carry: tuple[Array, Moments], i: Array) -> tuple[tuple[Array, Moments], None]:
            log_w, moments = carry
            noise = self.model.noise(jax.random.fold_in(key, i), batch["row"], chunk)
            draw = self.model.infer(params, features, noise)
            terms = self.model.terms(params, x, label, draw)
            # Accumulates log(sum of w) over chunks. The bound is a mean of importance weights w, so w is computed from
            # log q and log p of the drawn z, also where `terms` has the KL in closed form.
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
    """Turns the sums of a split into metrics, and describes how each metric is estimated."""

    image: Feature
    mismatch: str | None
    """The reason why the likelihood gives no bound for these images. None: it gives a bound."""
    samples: int
    """Number K of posterior samples of each example in the final test."""
    conditional: tuple[str, ...] = ()
    """Names of the features that the likelihood is conditioned on: ("label",) or ()."""

    def summarize(self, sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float | np.ndarray]:
        """Returns the metrics of a split: {metric: value}.

        They are "neg_elbo", "reconstruction", "kl", "kl_per_latent" [D] and "nll_bound" in nats per example;
        "bits_per_dim", which is nll_bound in bits per pixel and channel; and "active_units", the number of active
        latent dimensions (see MIN_ACTIVE_VARIANCE). nll_bound and bits_per_dim are left out if the likelihood gives no
        bound. bits_per_dim also needs pixels with a known number of levels.

        sums: the sums of `BoundEstimator.evaluate`, added over the batches of the split.
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
        """Returns {metric: how it is estimated}. If a metric is not reported, its entry "refused" holds the reason."""
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
    """Returns how many of `samples` posterior samples to compute at once: their largest divisor up to MAX_CHUNK.

    It is 1 for a prime number above MAX_CHUNK.
    """
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
    """Returns the KL of each latent dimension of a group, averaged over posterior samples, [B, D].

    q: posterior of the group, [K or 1, B, D]. kl: the group's KL from `Terms`, [K or 1, B, D], or [K, B, 1] if it has
    no closed form. In this second case, the result is the KL to N(0, I) instead.
    """
    if kl.shape[-1] != q.mean.shape[-1]:
        # This prior has no closed form for each dimension. The KL to N(0, I) is used instead, which suffices to order latents.
        kl = gaussian.gaussian_kl(q, Gaussian(jnp.zeros_like(q.mean), jnp.zeros_like(q.log_std)))
    return kl.mean(0)
