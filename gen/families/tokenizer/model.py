"""Training, evaluation and sampling of a tokenizer as pure functions of the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen import axis, core
from gen.core import Array, Batch, Key, Metrics, Params, State, Sums, means
from gen.errors import UserError
from gen.families.gan.critic import Critic
from gen.families.gan.players import Examples
from gen.families.learner import Learner
from gen.families.tokenizer.bottlenecks import BatchFacts, Stats
from gen.families.tokenizer.coder import BOTTLENECK, CODER, Coder
from gen.families.tokenizer.quality import measure_quality
from gen.families.tokenizer.terms import feature_distance
from gen.networks.classifier import Classifier
from gen.optim import descend

COLUMNS = 8
"""Examples in each row of a picture of reconstructions."""
USES = "code_uses"
"""Key, in the sums of `evaluate`, of the uses of each code, [books, codes]. books: codes per position of the grid."""


@dataclass(frozen=True)
class Request(core.Request):
    """Which held-out examples a tokenizer reconstructs."""

    n: int = 64
    """Number of examples to reconstruct, at most the number that the run keeps (64). The result shows rows of examples,
    each above the row of their reconstructions."""


class Part(NamedTuple):
    """The inputs of the loss that have one entry per example. Microbatches divide these arrays."""

    example: Array
    """Images [B, H, W, C] or sound [B, T, C], in [-1, 1]."""
    row: Array
    """int32 [B]. Positions of the examples in the global batch."""
    keys: Key
    """[B]. Random keys of the bottleneck's noise, one per example."""


class FeatureNetwork(NamedTuple):
    """The classifier of the perceptual loss, with its optimizer."""

    network: Classifier
    optimizer: optax.GradientTransformation
    weight: optax.Schedule
    """Step -> weight of the perceptual loss."""


@dataclass(frozen=True)
class TokenizerModel:
    """A coder (encoder, bottleneck, decoder) and the networks of its loss, with the functions of a GenerativeModel."""

    coder: Coder
    learner: Learner
    """Trains the coder."""
    critic: Critic | None
    """The discriminator of the adversarial loss, and its training. None: no adversarial loss."""
    adversary_weight: optax.Schedule
    """Step -> weight of the adversarial loss."""
    features: FeatureNetwork | None
    """The classifier of the perceptual loss. None: no perceptual loss."""

    def init(self, key: Key, params: dict[str, Params] | None = None) -> State:
        """Returns the state of step 0. params: parameters of all networks, to start from. None: random parameters."""
        coder_key, stats_key, critic_key, classifier_key = jax.random.split(key, 4)
        state = self.learner.init(coder_key, params and coder_parameters(params))
        stats: dict[str, Any] = {}
        if own := self.coder.bottleneck.begin(stats_key, self.coder.dtype):
            stats[BOTTLENECK] = own
        others: dict[str, Params] = {}
        opt_state = dict(state.opt_state)
        if self.critic:
            d, d_stats = self.critic.discriminator.init(critic_key)
            others["discriminator"] = d = params["discriminator"] if params else d
            opt_state["discriminator"] = self.critic.optimizer.init(d)
            stats |= d_stats
        if self.features:
            c = self.features.network.init(classifier_key, jnp.zeros((1, *self.coder.example.shape)))["params"]
            others["classifier"] = c = params["classifier"] if params else c
            opt_state["classifier"] = self.features.optimizer.init(c)
        return replace(state, params=state.params | others, opt_state=opt_state, stats=stats)

    # --- training ---

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        """Makes one step of the discriminator and one of the classifier, if the loss has them, then one of the coder.

        batch: "image" or "audio" [B, *axes, C], "row" int32 [B], and for the classifier "label" int [B]. Returns the
        next state, and the metrics of all steps, averaged over devices.
        """
        noise_key, codes_key, fake_key, critic_key, adversary_key = jax.random.split(key, 5)
        x, row, metrics = batch[self.coder.name].astype(self.coder.dtype), batch["row"], {}
        if self.critic:
            coded = self.coder.encode(state.params, self.stats(state), x, axis.example_keys(fake_key, row))
            # Computed outside of D's loss, so that D's gradient does not flow into the coder.
            fake = self.coder.reconstruction.show(self.coder.decode(state.params, coded.z))
            state, metrics = self.critic.step(state, Examples(x, None, row), fake, critic_key)
        if self.features:
            state, more = self.classifier_step(state, self.features, x, batch["label"])
            metrics |= more
        facts = BatchFacts(codes_key, row, axis.total(len(row)))
        state, more = self.coder_step(state, Part(x, row, axis.example_keys(noise_key, row)), facts, adversary_key)
        return state, metrics | more

    def coder_step(self, state: State, examples: Part, facts: BatchFacts, key: Key) -> tuple[State, Metrics]:
        """Makes one optimizer step of the encoder and the decoder, and updates the bottleneck's statistics.

        Returns the next state, and metrics averaged over devices. key: for the discriminator's noise.
        """

        def loss(params: Params, part: Part) -> tuple[Array, tuple[Metrics, Stats]]:
            return self.loss(params, state, part, facts._replace(row=part.row), key)

        # The learner gets the coder's parameters alone: its optimizer state has no moments for the other networks.
        own, (metrics, seen), gradient = self.learner.step(
            replace(state, params=coder_parameters(state.params)), loss, examples
        )
        stats = state.stats
        if BOTTLENECK in stats:
            new = self.coder.bottleneck.learn(stats[BOTTLENECK], axis.mean(seen), facts)
            stats = stats | {BOTTLENECK: new}
        state = replace(own, params=state.params | own.params, opt_state=state.opt_state | own.opt_state, stats=stats)
        return state, axis.mean(metrics) | {"gradient": gradient}

    def loss(
        self, params: Params, state: State, part: Part, facts: BatchFacts, key: Key
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """Returns the coder's loss, and ({name: loss term}, `Coded.seen`). All terms are means over the examples.

        The loss is reconstruction + bottleneck + weight * adversarial + weight * perceptual. Esser et al. 2021,
        equations 4 to 6. The weights follow schedules.

        params: of the coder. state: has the parameters of the other networks. key: for the discriminator's noise.
        """
        x, coder = part.example, self.coder
        coded = coder.encode(params, self.stats(state), x, part.keys, facts)
        outputs = coder.decode(params, coded.z)
        terms = {"reconstruction": coder.reconstruction.loss(outputs, x).mean(), "bottleneck": coded.loss.mean()}
        total, y = terms["reconstruction"] + terms["bottleneck"], coder.reconstruction.show(outputs)
        if self.critic:
            terms["adversary"] = self.adversarial_loss(self.critic, state, x, y, part.row, key)
            total += self.adversary_weight(state.step) * terms["adversary"]
        # This loss trains neither D nor the classifier: it is differentiated by the coder's parameters alone.
        if self.features:
            real, fake = (_classify(self.features, state.params["classifier"], image)[1] for image in (x, y))
            terms["features"] = feature_distance(jax.lax.stop_gradient(real), fake).mean()
            total += self.features.weight(state.step) * terms["features"]
        return total, ({"loss": total, **terms}, coded.seen)

    def adversarial_loss(self, critic: Critic, state: State, x: Array, y: Array, row: Array, key: Key) -> Array:
        """Returns the decoder's loss against the discriminator D, a scalar: the mean over the examples.

        x, y: images and their reconstructions, [B, H, W, C]. row: int32 [B]. The noise of D is drawn from (key, row).
        """
        real_key, fake_key = jax.random.split(key)
        d = state.params["discriminator"]
        # D's new statistics are dropped: only D's own steps update them.
        fake = critic.discriminator.score(d, state.stats, y, None, fake_key, row)
        real = critic.discriminator.score(d, state.stats, x, None, real_key, row)
        return critic.objective.generator(real.scores, fake.scores).mean()

    def classifier_step(self, state: State, features: FeatureNetwork, x: Array, label: Array) -> tuple[State, Metrics]:
        """Trains the classifier whose features the perceptual loss compares, by one optimizer step.

        features: its network. x: images [B, H, W, C]. label: int [B]. Returns the state, with the same `step`, and metrics.
        """

        def loss(params: Params, examples: tuple[Array, Array]) -> tuple[Array, tuple[()]]:
            logits, _ = _classify(features, params, examples[0])
            return optax.softmax_cross_entropy_with_integer_labels(logits, examples[1]).mean(), ()

        before, opt_state = state.params["classifier"], state.opt_state["classifier"]
        parts = self.learner.config.microbatches
        new = descend.descend(loss, before, opt_state, features.optimizer, (x, label), parts)
        state = replace(
            state,
            params=state.params | {"classifier": new.params},
            opt_state=state.opt_state | {"classifier": new.opt_state},
        )
        return state, {"loss/classifier": axis.mean(new.loss), "gradient/classifier": descend.norm(new.grads)}

    # --- evaluation and samples ---

    def stats(self, state: State) -> Stats:
        """Returns the bottleneck's statistics, such as a codebook. Training and evaluation use the same ones.

        With `ema`, evaluation uses averaged weights, but the codebook was learned from the outputs of the raw encoder.
        A codebook learned from the averaged encoder was not better: on digits, its PSNR was 26.9 dB instead of 27.0.
        """
        return state.stats.get(BOTTLENECK, {})

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns {metric: (total, weight)} of a held-out batch, summed over devices. No noise is drawn from `key`.

        The metrics are "loss" without adversarial and perceptual terms, its terms, and the quality of reconstructions.
        If codes are tokens, USES has the uses of each code.
        """
        params, x = self.learner.weights(state), batch[self.coder.name].astype(self.coder.dtype)
        # Without keys: held-out images are encoded without noise.
        coded = self.coder.encode(params, self.stats(state), x)
        outputs = self.coder.decode(params, coded.z)
        y = self.coder.show_outputs(outputs).astype(x.dtype)
        reconstruction = self.coder.reconstruction.loss(outputs, x)
        values = {
            "loss": reconstruction + coded.loss,
            "reconstruction": reconstruction,
            "bottleneck": coded.loss,
            **measure_quality(x, y, self.coder.example, self.coder.codes),
        }
        sums = axis.mean_sums(batch, values)
        if self.coder.codes.vocab is None:
            return sums
        return sums | {USES: axis.total((self.count_codes(coded.codes, batch["weight"]), batch["weight"].sum()))}

    def count_codes(self, codes: Array, weight: Array) -> Array:
        """Returns how often each code is used, [books, codes]. books: number of codes of each position of the grid.

        codes: int32 [B, *grid] or [B, *grid, books]. weight: [B], how much each example counts, 0 for padding.
        """
        books = codes.shape[-1] if codes.ndim > 1 + len(self.coder.grid) else 1
        codes = codes.reshape(len(codes), -1, books)
        book = jnp.broadcast_to(jnp.arange(books)[None, None], codes.shape)
        # Sums of whole numbers are exact in any order.
        uses = jnp.zeros((books, self.coder.codes.vocab or 0), weight.dtype)
        return uses.at[book, codes].add(jnp.broadcast_to(weight[:, None, None], codes.shape))

    def generate(self, state: State, key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """Reconstructs the first n = request.n of the given examples. If none are given, decodes n random codes.

        given: may hold "image" [M, H, W, C] or "audio" [M, T, C]. If n is the default, and M is smaller, n is M.

        Returns "samples", float32 in [-1, 1], and "codes", [n, *grid, ...]. Samples of random codes are [n, *axes, C].
        Otherwise samples are [2 * rows, columns, *axes, C]: rows of examples, each followed by their reconstructions.

        Raises: UserError if n is not the default, and larger than M.
        """
        params, stats, coder = self.learner.weights(state), self.stats(state), self.coder
        if coder.name not in given:

            def draw(key: Key) -> Array:
                return coder.bottleneck.draw(coder.grid, key)

            codes = axis.per_example(draw, key, jnp.arange(request.n))
            return {"samples": coder.show(params, stats, codes), "codes": codes}
        if len(given[coder.name]) < request.n != Request.n:
            raise UserError(
                f"n is {request.n}, and the run keeps {len(given[coder.name])} held-out examples to reconstruct; "
                f"the fix: --n {len(given[coder.name])}"
            )
        x = given[coder.name][: request.n].astype(jnp.float32)
        y, codes = coder.reconstruct(params, stats, x)
        # Rows of eight make a compact picture. If the last row would not be full, all examples are in one row.
        columns = COLUMNS if len(x) % COLUMNS == 0 else len(x)
        pairs = jnp.stack([each.reshape(-1, columns, *each.shape[1:]) for each in (x, y)], 1)
        return {"samples": pairs.reshape(-1, *pairs.shape[2:]), "codes": codes}


def coder_parameters(params: Mapping[str, Params]) -> dict[str, Params]:
    """Returns the entries "encoder", if there is one, and "decoder" of the parameters of all networks."""
    return {name: params[name] for name in CODER if name in params}


def _classify(features: FeatureNetwork, params: Params, x: Array) -> tuple[Array, Array]:
    """Returns the classifier's logits [B, classes] and features [B, D] of images x [B, H, W, C]."""
    return cast("tuple[Array, Array]", features.network.apply({"params": params}, x))


def summarize(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Returns {metric: value} of a split: means over examples, and two metrics of the codes if they are tokens.

    "codes_used" is the number of different codes in the split, divided by the largest possible number: the size of the
    vocabulary, or the number of positions in the split if this is smaller. "code_perplexity" is exp of the entropy of
    the codes, which is the size of the vocabulary if all codes are used equally often. With several codes for each
    position (books), both are means over the books.

    sums: {metric: (total, weight)} from `evaluate`, summed over the batches of the split.
    """
    metrics = means({name: pair for name, pair in sums.items() if name != USES})
    if USES not in sums:
        return metrics
    uses = np.asarray(sums[USES][0], np.float64)
    # In an empty split all counts are 0.
    total = np.maximum(uses.sum(-1), 1)
    p = uses / total[:, None]
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    used = (uses > 0).sum(-1) / np.minimum(total, uses.shape[-1])
    return metrics | {"codes_used": float(used.mean()), "code_perplexity": float(np.exp(entropy).mean())}
