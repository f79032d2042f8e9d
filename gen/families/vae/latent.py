"""A latent-variable model q(z | x), p(z), p(x | z) as pure functions of its parameters.

The latents z are a list of groups. A plain VAE has one group. In a hierarchy, each group depends on the groups above
it. Arrays have the axes [K, B, ...]: K samples of z for each of B examples. K is 1 where all samples of an example
share the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gen import axis
from gen.core import Array, Feature, Key, Params
from gen.families.vae.likelihoods import Likelihood
from gen.families.vae.priors import Encode, Prior
from gen.networks import gaussian
from gen.networks.gaussian import Gaussian
from gen.networks.vae import Decoder, Encoder

Choose = Callable[[int, "Array | None", "Gaussian | None"], "tuple[Gaussian | None, Array]"]
"""(index of a latent group, context, p) -> (q, z): chooses the latents z of the group.

The top group has the index 0. context: the decoder's features of all groups above, [..., B, F]. p: the prior of z given
these groups. For the top group both are None. q: the posterior from which z was drawn. None: z was not drawn from a
posterior."""


class Draw(NamedTuple):
    """Latents of every group, top group first, with the posteriors and priors of the groups.

    K is the number of samples for each of B examples, and D the number of dimensions of a group.
    """

    z: list[Array]
    """Latents of each group, [K, B, D]."""
    q: list[Gaussian]
    """Posterior of each group, [K or 1, B, D]. Empty if z was not drawn from posteriors."""
    p: list[Gaussian]
    """Prior of each group below the top, [K, B, D]. Empty if there is only one group."""
    context: Array | None
    """The decoder's features of all groups except the last, [K, B, F]. None if there is only one group."""


class Terms(NamedTuple):
    """The two parts of the evidence lower bound, in nats."""

    log_px: Array
    """log p(x | z), [K, B]."""
    kl: list[Array]
    """KL(q || p) of each group: [K or 1, B, D], or an estimate of the whole group's KL, [K, B, 1], if it has no closed form."""


@dataclass(frozen=True)
class LatentModel:
    """An encoder, a decoder, a prior and a likelihood as one model.

    Its parameters are {"encoder": ..., "decoder": ...}, and "prior" if the prior has parameters.
    """

    encoder: Encoder
    decoder: Decoder
    prior: Prior
    likelihood: Likelihood
    image: Feature
    classes: int | None = None
    """Number of classes of a conditional model. None: unconditional."""
    dtype: DTypeLike = jnp.float32
    """Dtype of images, latents, log-probabilities and sums."""

    @property
    def latents(self) -> tuple[int, ...]:
        """Number of dimensions of each latent group, top group first."""
        return self.encoder.latents

    def init(self, key: Key, param_dtype: DTypeLike) -> dict[str, Params]:
        """Returns the parameters at step 0.

        param_dtype: dtype of the prior's parameters. The encoder and the decoder already know their dtypes.
        """
        encoder_key, decoder_key, prior_key = jax.random.split(key, 3)
        label = None if self.classes is None else jnp.zeros((1, self.classes), self.dtype)
        x = jnp.zeros((1, *self.image.shape))
        z = [jnp.zeros((1, size)) for size in self.latents]

        # Flax creates a module's parameters when it is first called, so each function calls every module once.
        def decode(decoder: Decoder) -> Array:
            context = None
            for i, group in enumerate(z[:-1]):
                context = decoder.context(context, group, i)
                decoder.prior(context, i + 1)
            return decoder(context, z[-1], label)

        def encode(encoder: Encoder) -> list[Gaussian]:
            features, context = encoder(x, label), jnp.zeros((1, self.encoder.hidden))
            standard = [Gaussian(group, group) for group in z]
            top = encoder.posterior(features, None, None, 0)
            return [top, *(encoder.posterior(features, context, standard[i], i) for i in range(1, len(z)))]

        params = {
            "encoder": nn.init(encode, self.encoder)(encoder_key)["params"],
            "decoder": nn.init(decode, self.decoder)(decoder_key)["params"],
        }
        prior = self.prior.init(prior_key, self.latents[0], self.image, param_dtype)
        return {**params, "prior": prior} if prior else params

    def inputs(self, batch: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """Returns the images [B, H, W, C] of a batch, and its one-hot labels [B, classes], or None if unconditional."""
        label = None if self.classes is None else self.one_hot(batch["label"])
        return batch["image"].astype(self.dtype), label

    def one_hot(self, label: Array | None) -> Array | None:
        """Returns labels int [B] as one-hot vectors [B, classes], or None if there are none or the model is unconditional."""
        if label is None or self.classes is None:
            return None
        return jax.nn.one_hot(label, self.classes, dtype=self.dtype)

    def noise(self, key: Key, row: Array, k: int) -> list[Array]:
        """Draws standard normal noise for k samples of each group, [k, B, D].

        row: int32 [B], positions in the global batch. The noise of an example depends on (key, row) alone.
        """

        def draw(key: Key) -> Array:
            return jax.random.normal(key, (k, sum(self.latents)), self.dtype)

        return self.split(jnp.moveaxis(axis.per_example(draw, key, row), 0, 1))

    def split(self, z: Array) -> list[Array]:
        """Splits the concatenated latents of all groups, [..., sum of D], into one array [..., D] for each group."""
        return jnp.split(z, np.cumsum(self.latents)[:-1], axis=-1)

    def encode(self, params: Params, x: Array, label: Array | None) -> Array:
        """Encodes images [B, H, W, C] to features [1, B, F]."""
        # The axis of size 1 broadcasts: an image is encoded once for all of its K samples.
        return self._encoder(params, x, label)[None]

    def infer(self, params: Params, features: Array, noise: Sequence[Array]) -> Draw:
        """Draws z ~ q(z | x), K samples for each example. The result has posteriors.

        features: returned by `encode`, [1, B, F]. noise: standard normal, [K, B, D] for each group. If it is 0, each
        group's z is the mean of its posterior.
        """

        def choose(i: int, context: Array | None, p: Gaussian | None) -> tuple[Gaussian, Array]:
            q = self._encoder(params, features, context, p, i, method="posterior")
            return q, q.sample(noise[i])

        return self._descend(params, choose)

    def sample_lower(self, params: Params, top: Array, noise: Sequence[Array]) -> Draw:
        """Draws the groups below the top from their priors, given the top group. The result has no posteriors (q is empty).

        top: latents of the top group, [..., B, D]. noise: standard normal, [..., B, D] for each group below the top.
        """

        def choose(i: int, _: Array | None, p: Gaussian | None) -> tuple[None, Array]:
            return None, top if p is None else p.sample(noise[i - 1])

        return self._descend(params, choose)

    def with_latents(self, params: Params, z: Sequence[Array], q: Sequence[Gaussian] | None = None) -> Draw:
        """Computes the priors of the lower groups and the context for known latents z. Returns them all as a `Draw`.

        z: [K, B, D] for each group. q: the posteriors of z, to be part of the result. None: the result has no
        posteriors.
        """

        def choose(i: int, *_: object) -> tuple[Gaussian | None, Array]:
            return None if q is None else q[i], z[i]

        return self._descend(params, choose)

    def decode(self, params: Params, draw: Draw, label: Array | None) -> Array:
        """Decodes latents to the decoder outputs that the likelihood reads, [K, B, H, W, likelihood.outputs(C)].

        label: one-hot [B, classes], or None for an unconditional model.
        """
        return self._decoder(params, draw.context, draw.z[-1], label)

    def sample_top(self, params: Params, key: Key, temperature: float) -> Array:
        """Draws one sample of the top group from the prior, [D]. temperature: factor on the standard deviation."""
        return self.prior.sample(params.get("prior"), self._top_posterior(params), key, self.latents[0], temperature)

    def terms(self, params: Params, x: Array, label: Array | None, draw: Draw) -> Terms:
        """Returns log p(x | z) and KL(q || p), in nats. x: [B, H, W, C]; draw: with posteriors, from `infer`.

        A KL without a closed form is estimated from the sample, by log q(z | x) - log p(z).
        """
        top = self.prior.kl(params.get("prior"), draw.q[0])
        if top is None:
            # One number for the whole group. The last axis of size 1 marks it: a KL in closed form has one number per dimension.
            top = (gaussian.gaussian_log_prob(draw.z[0], draw.q[0]).sum(-1) - self._log_p_top(params, draw))[..., None]
        lower = [gaussian.gaussian_kl(q, p) for q, p in zip(draw.q[1:], draw.p, strict=True)]
        return Terms(self._log_px(params, x, label, draw), [top, *lower])

    def log_weight(self, params: Params, x: Array, label: Array | None, draw: Draw) -> Array:
        """Returns the log importance weights log p(x, z) - log q(z | x) in nats, [K, B]. Burda et al. 2016, equation 8.

        x: [B, H, W, C]; label: one-hot [B, classes] or None; draw: with posteriors, from `infer`.
        """
        log_w = self._log_px(params, x, label, draw) + self._log_p_top(params, draw)
        for z, p in zip(draw.z[1:], draw.p, strict=True):
            log_w += gaussian.gaussian_log_prob(z, p).sum(-1)
        for z, q in zip(draw.z, draw.q, strict=True):
            log_w -= gaussian.gaussian_log_prob(z, q).sum(-1)
        return log_w

    def _descend(self, params: Params, choose: Choose) -> Draw:
        """Visits the groups from the top down, computes the prior of each, and calls `choose` for its q and z.

        Returns all of them as a `Draw`.
        """
        draw = Draw([], [], [], None)
        context, p = None, None
        for i in range(len(self.latents)):
            # p(z_i | z_0 ... z_{i-1}) depends on the groups above through the context alone.
            if i:
                context = self._decoder(params, context, draw.z[-1], i - 1, method="context")
                p = self._decoder(params, context, i, method="prior")
                draw.p.append(p)
            q, z = choose(i, context, p)
            draw.z.append(z)
            if q is not None:
                draw.q.append(q)
        return draw._replace(context=context)

    def _log_px(self, params: Params, x: Array, label: Array | None, draw: Draw) -> Array:
        return self.likelihood.log_prob(self.decode(params, draw, label), x[None]) + self.image.log_cell

    def _log_p_top(self, params: Params, draw: Draw) -> Array:
        return self.prior.log_prob(params.get("prior"), self._top_posterior(params), draw.z[0])

    def _top_posterior(self, params: Params) -> Encode:
        """Returns the function images [N, H, W, C] -> q(z | x) [N, D] of the top group, which a VampPrior calls."""

        def encode(x: Array) -> Gaussian:
            # Pseudo-inputs have no label, so `VAE` refuses a VampPrior for a conditional model.
            return self._encoder(params, self.encode(params, x, None)[0], None, None, 0, method="posterior")

        return encode

    def _encoder(self, params: Params, *arguments: object, method: str | None = None) -> Any:
        return self.encoder.apply({"params": params["encoder"]}, *arguments, method=method)

    def _decoder(self, params: Params, *arguments: object, method: str | None = None) -> Any:
        return self.decoder.apply({"params": params["decoder"]}, *arguments, method=method)
