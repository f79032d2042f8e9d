"""Images from a trained VAE: samples, reconstructions, interpolations and latent traversals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Key, Params, State
from gen.errors import UserError, check_positive
from gen.families.chunks import map_chunks
from gen.families.labels import LabelRequest, labels_to_generate
from gen.families.vae.latent import LatentModel

COLUMNS = 8
"""Images in each row of an interpolation or a traversal."""
GENERATE_CHUNK = 1024
"""Number of images that are decoded at once. It bounds the memory of a large request."""


@dataclass(frozen=True)
class Request(LabelRequest):
    """Which images a VAE makes."""

    n: int = 64
    """Number of images. An interpolation has n // 8 rows of 8 images, at least one row. A traversal has no more rows than
    latent dimensions."""
    mode: Literal["generate", "reconstruct", "interpolate", "traverse"] = "generate"
    """`generate`: samples of the model. `reconstruct`: held-out images, each next to its reconstruction. `interpolate`: each
    row leads from one held-out image to the next. `traverse`: each row changes one latent dimension of a held-out image from
    -3 to 3; the dimensions with the largest KL come first."""
    temperature: float = 1.0
    """Factor on the standard deviation of the prior, in mode generate."""
    pixels: Literal["mean", "sample"] = "mean"
    """mean: show the mean of p(x | z). sample: draw pixels from p(x | z)."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(temperature=self.temperature)
        if self.label is not None and self.mode != "generate":
            raise UserError(
                f"mode {self.mode} keeps the labels of its held-out examples; use --label with mode generate"
            )

    @property
    def rows(self) -> int:
        """Number of rows of an interpolation, and maximum number of rows of a traversal."""
        return max(1, self.n // COLUMNS)


@dataclass(frozen=True)
class Sampler:
    """Makes the images that a `Request` asks for: one method for each mode, and `sample` to choose among them.

    Every result has "samples", float32 images in [-1, 1], and "latents", [N, D], where D counts the dimensions of all groups.
    """

    model: LatentModel
    weights: Callable[[State], dict[str, Params]]
    """State -> the parameters to sample from."""

    def sample(self, state: State, key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """Returns the images of a request and their latents: the result of the method that has the name of its mode.

        given: for mode `generate`, it may hold the class of each image, int32 [n], under the key
            gen.families.labels.GIVEN. All other modes need held-out examples: "image" [M, H, W, C], and "label" [M] if
            the model is conditional. `traverse` also needs "kl_per_latent" [D], the mean KL of each latent dimension.

        Raises: UserError if `given` has too few examples or no "kl_per_latent", or if the label does not exist.
        """
        params = self.weights(state)
        z_key, x_key = jax.random.split(key)
        if request.mode == "generate":
            return self.generate(params, z_key, x_key, given, request)
        if request.mode == "reconstruct":
            return self.reconstruct(params, x_key, given, request)
        if request.mode == "interpolate":
            return self.interpolate(params, x_key, given, request)
        return self.traverse(params, x_key, given, request)

    def generate(
        self, params: Params, z_key: Key, x_key: Key, given: Mapping[str, Array], request: Request
    ) -> dict[str, Array]:
        """Draws z from the prior, and decodes it. z_key: for z. x_key: for the pixels, if they are drawn.

        Returns {"samples": [N, H, W, C], "latents": [N, D]}, and "labels", int32 [N], if the model is conditional.
        """
        labels = labels_to_generate(request.n, request.label, self.model.classes, given)
        z = self._draw_prior(params, z_key, jnp.arange(request.n), request.temperature)
        images = self._images(params, x_key, z, self.model.one_hot(labels), request)
        samples = {"samples": images, "latents": jnp.concatenate(z, axis=-1)}
        return samples if labels is None else samples | {"labels": labels}

    def reconstruct(self, params: Params, x_key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """Decodes the posterior means of N held-out images.

        The samples are pairs (image, reconstruction), [N, 2, H, W, C]. If 4 divides N, each row has four pairs:
        [N / 4, 8, H, W, C].
        """
        x, label = self._held_out(given, request.n, request)
        z = self._posterior_means(params, x, label)
        pairs = jnp.stack([x.astype(jnp.float32), self._images(params, x_key, z, label, request)], axis=1)
        # Rows of four pairs make a compact picture, but only if the last row is full.
        if len(x) % (COLUMNS // 2) == 0:
            pairs = pairs.reshape(-1, COLUMNS, *x.shape[1:])
        return {"samples": pairs, "latents": jnp.concatenate(z, axis=-1)}

    def interpolate(self, params: Params, x_key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """Decodes 8 points on each straight line between the posterior means of consecutive held-out images.

        The samples are [rows, 8, H, W, C]. For a conditional model, labels are interpolated, too.
        """
        # Row i leads from example i to example i + 1, so there is one example more than rows.
        x, label = self._held_out(given, request.rows + 1, request)
        t = jnp.linspace(0, 1, COLUMNS)[None, :, None]

        def path(ends: Array) -> Array:
            return (ends[:-1, None] * (1 - t) + ends[1:, None] * t).reshape(-1, ends.shape[-1])

        z = [path(mean) for mean in self._posterior_means(params, x, label)]
        return self._grid(params, x_key, z, None if label is None else path(label), request)

    def traverse(self, params: Params, x_key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """Decodes the posterior mean of the first held-out image, with one latent dimension changed in each row.

        In a row, this dimension has 8 values from -3 to 3. Rows are in the order of falling KL of their dimensions. The
        samples are [rows, 8, H, W, C].
        """
        x, label = self._held_out(given, 1, request)
        if "kl_per_latent" not in given:
            raise UserError(
                "mode traverse orders the latents by their KL, and the run has no evaluation yet; train it until the first one"
            )
        mean = jnp.concatenate(self._posterior_means(params, x, label), axis=-1)[0]
        order = jnp.argsort(-given["kl_per_latent"])[: request.rows]
        # -3 to 3 are three standard deviations of a standard normal prior. The range does not depend on the posterior mean.
        values = jnp.linspace(-3, 3, COLUMNS)

        def row(latent: Array) -> Array:
            return jax.vmap(lambda value: mean.at[latent].set(value))(values)

        z = self.model.split(jax.vmap(row)(order).reshape(-1, mean.shape[0]))
        return self._grid(params, x_key, z, None if label is None else jnp.repeat(label, len(z[0]), axis=0), request)

    def _grid(
        self, params: Params, x_key: Key, z: Sequence[Array], label: Array | None, request: Request
    ) -> dict[str, Array]:
        images = self._images(params, x_key, z, label, request)
        return {
            "samples": images.reshape(-1, COLUMNS, *images.shape[1:]),
            "latents": jnp.concatenate(z, axis=-1),
        }

    def _images(self, params: Params, x_key: Key, z: Sequence[Array], label: Array | None, request: Request) -> Array:
        """Decodes latents, [N, D] for each group, to images float32 [N, H, W, C]. label: one-hot [N, classes] or None.

        The images are means or samples of p(x | z), as `request.pixels` says. x_key: for samples.
        """

        def decode(inputs: tuple[Sequence[Array], Array | None, Array]) -> Array:
            z, label, index = inputs
            outputs = self.model.decode(params, self.model.with_latents(params, z), label)
            if request.pixels == "mean":
                return self.model.likelihood.mean(outputs).astype(jnp.float32)
            # Each image has its own key, so its pixels do not depend on the number of images.
            keys = axis.example_keys(x_key, index)
            return jax.vmap(self.model.likelihood.sample)(outputs, keys).astype(jnp.float32)

        return map_chunks(decode, (z, label, jnp.arange(len(z[0]))), GENERATE_CHUNK)

    def _draw_prior(self, params: Params, key: Key, index: Array, temperature: float) -> list[Array]:
        """Draws z ~ p(z), [N, D] for each group. index: int32 [N]. Sample i depends on key and index[i] alone.

        temperature: factor on the standard deviations of the priors.
        """
        top_key, *keys = jax.random.split(key, len(self.model.latents))

        def draw_top(key: Key) -> Array:
            return self.model.sample_top(params, key, temperature)

        def noise(key: Key, size: int) -> Array:
            return axis.per_example(lambda k: temperature * jax.random.normal(k, (size,), self.model.dtype), key, index)

        top = axis.per_example(draw_top, top_key, index).astype(self.model.dtype)
        lower = [noise(key, size) for size, key in zip(self.model.latents[1:], keys, strict=True)]
        return self.model.sample_lower(params, top, lower).z

    def _held_out(self, given: Mapping[str, Array], n: int, request: Request) -> tuple[Array, Array | None]:
        """Returns the images and the one-hot labels (or None) of the first n examples in `given`.

        Raises: UserError if there are fewer than n examples. request: named in this error.
        """
        names = ("image",) if self.model.classes is None else ("image", "label")
        available = min((len(given[name]) if name in given else 0) for name in names)
        if n > available:
            raise UserError(
                f"mode {request.mode} with n {request.n} takes {n} held-out examples, and reference.npz has {available}; "
                "the fix: a smaller n"
            )
        return self.model.inputs({name: given[name][:n] for name in names})

    def _posterior_means(self, params: Params, x: Array, label: Array | None) -> list[Array]:
        """Returns the mean of q(z | x), [N, D] for each group. Below the top, z is conditioned on the means above."""
        # Without noise, the means of the upper groups are also the context of the lower groups.
        zeros = [jnp.zeros((1, 1, size), x.dtype) for size in self.model.latents]
        draw = self.model.infer(params, self.model.encode(params, x, label), zeros)
        return [z[0] for z in draw.z]
