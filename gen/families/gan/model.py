"""Training, evaluation and sampling of a GAN as pure functions of the state. Goodfellow et al. 2014."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax

from gen import axis
from gen.core import Array, Batch, Key, Metrics, Params, State, Sums
from gen.families.chunks import map_chunks
from gen.families.gan.critic import Critic
from gen.families.gan.losses import feature_matching
from gen.families.gan.players import Examples, GeneratorModel, Stats
from gen.families.gan.sampling import GENERATE_CHUNK, ROW_LENGTH, Draw, Request, draw_inputs
from gen.optim import descend

MAX_SATURATED_LOSS = 0.01
"""An example counts in the metric "saturation" if D's loss on it exceeds the minimum by less than this fraction of the loss
at scores of 0. D then has hardly anything left to learn from it."""


@dataclass(frozen=True)
class GANModel:
    """A generator G and a discriminator D, trained in turn. The methods `init`, `update`, `evaluate` and `generate` are
    the functions of a GenerativeModel."""

    generator: GeneratorModel
    g_optimizer: optax.GradientTransformation
    critic: Critic
    """D, its optimizer, and the objective of both players."""
    feature_matching: float
    """Weight of the feature matching loss (Salimans et al. 2016) in G's loss. 0: off."""
    critic_steps: int
    """Steps of D for each step of G."""
    ema: float
    """Decay of the moving average of G's parameters. 0: none."""

    def init(self, key: Key, params: dict[str, Params] | None = None) -> State:
        """Returns the state of step 0. params: {"generator", "discriminator"} to start from. None: random parameters."""
        g_key, d_key = jax.random.split(key)
        (g, g_stats), (d, d_stats) = self.generator.init(g_key), self.critic.discriminator.init(d_key)
        params = params or {"generator": g, "discriminator": d}
        g, d = params["generator"], params["discriminator"]
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={"generator": self.g_optimizer.init(g), "discriminator": self.critic.optimizer.init(d)},
            ema={"generator": descend.begin_average(g)} if self.ema else {},
            stats=g_stats | d_stats,
        )

    def examples(self, batch: Batch) -> Examples:
        """Returns the images of a batch, their one-hot labels, and their rows (positions in the global batch).

        Images and labels get the dtype of G's images.
        """
        image = batch["image"].astype(self.generator.dtype)
        return Examples(image, self.generator.one_hot(batch.get("label")), batch["row"])

    # --- training ---

    def update(self, state: State, batches: Batch, key: Key) -> tuple[State, Metrics]:
        """Makes `critic_steps` steps of D, each on its own batch, then one step of G on the last of these batches.

        batches: {name: [critic_steps, B, ...]}. Returns the new state, and the metrics of both. D's metrics are
        averaged over its steps. Goodfellow et al. 2014, algorithm 1.
        """
        *critic_keys, generator_key = jax.random.split(key, self.critic_steps + 1)
        each = [self.examples({name: x[i] for name, x in batches.items()}) for i in range(self.critic_steps)]
        seen: list[Metrics] = []
        # A Python loop instead of a scan: on a CPU, XLA's convolutions are 10 times slower inside a compiled loop.
        for examples, critic_key in zip(each, critic_keys, strict=True):
            state, metrics = self.critic_step(state, examples, critic_key)
            seen.append(metrics)
        state, metrics = self.generator_step(state, each[-1], generator_key)
        averaged = {name: jnp.stack([step[name] for step in seen]).mean() for name in seen[0]}
        return replace(state, step=state.step + 1), averaged | metrics

    def critic_step(self, state: State, real: Examples, key: Key) -> tuple[State, Metrics]:
        """Generates one image for each real image, and makes one optimizer step of D on both.

        Returns the new state, whose `step` is unchanged, and D's metrics.
        """
        z_key, loss_key = jax.random.split(key)
        z = self.generator.latents(z_key, real.row)
        # Images are generated outside of D's loss, so that its gradient does not run through G.
        fake, _ = self.generator.make(state.params["generator"], state.stats, z, real.label)
        return self.critic.step(state, real, fake, loss_key)

    def generator_step(self, state: State, real: Examples, key: Key) -> tuple[State, Metrics]:
        """Makes one optimizer step of G, and updates the moving average of its parameters.

        Returns the new state, whose `step` is unchanged, and G's metrics.
        """

        def loss(g: Params, real: Examples) -> tuple[Array, Stats]:
            # D has already made its steps of this update. It is a constant here: the gradient is by g alone.
            return self.generator_loss(g, state.params["discriminator"], state.stats, real, key)

        g, opt_state = state.params["generator"], state.opt_state["generator"]
        g, opt_state, value, stats, gradients = descend.descend(
            loss, g, opt_state, self.g_optimizer, real, self.critic.microbatches
        )
        ema = {}
        if self.ema:
            ema = {"generator": descend.update_average(state.ema["generator"], g, self.ema, state.step)}
        state = replace(
            state,
            params=state.params | {"generator": g},
            opt_state=state.opt_state | {"generator": opt_state},
            ema=ema,
            stats=stats,
        )
        return state, {"loss/generator": axis.mean(value), "gradient/generator": descend.norm(gradients)}

    def generator_loss(self, g: Params, d: Params, stats: Stats, examples: Examples, key: Key) -> tuple[Array, Stats]:
        """Returns G's loss against D, a scalar mean over the examples, and the statistics with G's entry updated.

        g, d: parameters of G and of D. examples: real images. For each, G generates one image with the same label.
        """
        x, label, row = examples
        z_key, real_key, fake_key = jax.random.split(key, 3)
        x_fake, new = self.generator.make(g, stats, self.generator.latents(z_key, row), label)
        # Real scores and features are for relativistic objectives and feature matching. XLA removes them if nothing reads them.
        # D's new statistics are dropped: they follow the steps of D alone.
        discriminator = self.critic.discriminator
        fake = discriminator.score(d, stats, x_fake, label, fake_key, row)
        real = discriminator.score(d, stats, x, label, real_key, row)
        loss = self.critic.objective.generator(real.scores, fake.scores).mean()
        if self.feature_matching:
            loss += self.feature_matching * feature_matching(real.features, fake.features)
        return loss, new

    # --- evaluation ---

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns {metric: (sum, number of scores)} of held-out images and of one generated image for each of them.

        The metrics are: "score_real" and "score_fake", D's scores of held-out and of generated images;
        "paired_accuracy", 1 if the held-out image has the higher score of a pair and otherwise 0; and "saturation" (see
        MAX_SATURATED_LOSS), unless the objective's `loss_at_zero` is 0. A joint score of several images counts only if
        none of them is padding (weight 0).

        batch: {name: [B, ...]}. Sums are over the mapped axis "data" (see gen.axis).
        """
        # G's raw weights, because D was trained against them and not against their average.
        discriminator, objective, dtype = self.critic.discriminator, self.critic.objective, self.generator.dtype
        g, d = _raw(state)
        x, label, row = self.examples(batch)
        x_fake, _ = self.generator.make(g, state.stats, self.generator.latents(key, row), label, train=False)
        weight = batch["weight"].reshape(-1, discriminator.pack).min(-1).astype(dtype)
        real = discriminator.score(d, state.stats, x, label, None, row, weight).scores
        fake = discriminator.score(d, state.stats, x_fake, label, None, row, weight).scores
        values = {
            "score_real": real,
            "score_fake": fake,
            "paired_accuracy": (real > fake).astype(dtype),
        }
        if objective.loss_at_zero:
            scores = _with_mean_on_padding(real, weight), _with_mean_on_padding(fake, weight)
            excess = objective.discriminator(*scores) - objective.min_loss
            # The limit is relative to the loss of a D that decides nothing, so it means the same for every objective.
            values["saturation"] = (excess < MAX_SATURATED_LOSS * objective.loss_at_zero).astype(dtype)
        return axis.total({name: ((weight * v).sum(), weight.sum()) for name, v in values.items()})

    # --- sampling ---

    def generate(self, state: State, key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """Generates images with the moving average of G if there is one, otherwise with its raw weights.

        given: may hold the class of each sample, int32, under the key gen.families.labels.GIVEN (see `draw_inputs`).

        Returns "samples", float32 [n, H, W, C] in [-1, 1], or [rows, ROW_LENGTH, H, W, C] for an interpolation. With N the number
        of images, it also returns "latents" [N, latent]; "scores" float32 [N], D's scores, if D scores each image alone; and
        "labels" int32 [N], if the model is conditional.

        Raises: UserError for a label that the model does not have.
        """
        generator, discriminator = self.generator, self.critic.discriminator
        (g, d), stats = _raw(state), state.stats
        if self.ema:
            g = state.ema["generator"]
            stats = generator.standing_statistics(g, stats)

        def make(inputs: Draw) -> tuple[Array, Array | None]:
            z, label = inputs
            x, _ = generator.make(g, stats, z, label, train=False)
            if not discriminator.scores_alone():
                return x.astype(jnp.float32), None
            scores = discriminator.score(d, stats, x, label, None, jnp.arange(len(z))).scores
            return x.astype(jnp.float32), scores.astype(jnp.float32)

        draw = draw_inputs(generator, key, given, request)
        x, scores = map_chunks(make, draw._replace(labels=generator.one_hot(draw.labels)), GENERATE_CHUNK)
        if request.mode == "interpolate":
            x = x.reshape(request.rows, ROW_LENGTH, *x.shape[1:])
        out = {"samples": x, "latents": draw.latents}
        if scores is not None:
            out["scores"] = scores
        if draw.labels is not None:
            out["labels"] = draw.labels
        return out


def _raw(state: State) -> tuple[Params, Params]:
    """Returns the raw parameters of G and of D, not their moving averages."""
    return state.params["generator"], state.params["discriminator"]


def _with_mean_on_padding(scores: Array, weight: Array) -> Array:
    """Returns the scores [N], with those of padding (weight 0) replaced by the mean score of all other examples.

    The mean is over the global batch. RelativisticAverage compares scores with the mean score, which padding must not change.
    """
    total, count = axis.total(((weight * scores).sum(), weight.sum()))
    return jnp.where(weight > 0, scores, total / jnp.maximum(count, 1))
