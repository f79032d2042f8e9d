"""The masked language model: predicts masked tokens from the tokens around them (Devlin et al. 2019).

If the fraction of masked tokens is drawn from [0, 1] for each example, the loss is a bound on the likelihood of a text.
The model can then write texts by unmasking (absorbing diffusion: Austin et al. 2021; Sahoo et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen import axis, core
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError, check_positive
from gen.families import learner
from gen.families.language import language, losses, masking
from gen.families.language.language import LanguageModel, Tokens
from gen.families.language.sampling import Sampling, draw_tokens, filter_logits, fold_in
from gen.networks.positions import PADDING, locate_tokens
from gen.networks.transformer import Transformer


@dataclass(frozen=True)
class MLM(LanguageModel):
    """Hyper-parameters of a masked language model."""

    rate: float | None = 0.15
    """Fraction of tokens to mask and predict, in (0, 1]. The tokens that end documents are then never masked. None: a
    fraction is drawn uniformly from [0, 1] for each example, and all tokens may be masked (absorbing diffusion). This
    gives a likelihood bound and allows generation."""

    def __post_init__(self):
        super().__post_init__()
        if self.rate is not None and not 0 < self.rate <= 1:
            raise UserError(f"rate is {self.rate}; it must be in (0, 1], or None")

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        return language.assemble(self.model(spec, steps), Request, self.protocol())

    def model(self, spec: Spec, steps: int) -> MaskedModel:
        """Returns the network and its optimizer, with the methods from which `build` makes a GenerativeModel.

        steps: number of updates of the whole run, which schedules read.

        Raises: UserError if the data have no texts or have separate sources, or if windows are longer than the learned
            positions.
        """
        tokens = language.tokens(spec)
        language.check_no_source(spec)
        context = language.context(self.network, tokens.length)
        # The network's vocabulary has one more token, the mask. It is only an input, and never predicted.
        network = Transformer(self.network, tokens.vocab + 1, context, causal=False, dtypes=self.dtypes())
        begin = partial(language.init_params, network, tokens.end)
        return MaskedModel(
            self, tokens, network, learner.make_learner(self, steps, "transformer", begin, weighted=True)
        )

    def protocol(self) -> dict[str, dict[str, str]]:
        """Returns how each metric is estimated, {metric: {setting: value}}.

        Only the likelihood bound (rate None) has bits per byte.
        """
        how, names = f"{self.rate} masked, ends are not masked", ["loss", "accuracy", "perplexity"]
        if self.rate is None:
            how = "a fraction drawn from [0, 1] masked, one draw per window"
            names.append("bits_per_byte")
        return {name: {"tokens": how} for name in names}


@dataclass(frozen=True)
class Request(core.Request, Sampling):
    """Settings for generating texts."""

    n: int = 4
    """Number of samples per prompt."""
    tokens: int | None = None
    """Number of tokens to write. None: the rest of the context."""
    turns: int = 64
    """Number of passes over the text. Each pass (turn) writes some of the masked tokens, anywhere in the text."""

    def __post_init__(self):
        super().__post_init__()
        Sampling.__post_init__(self)
        check_positive(turns=self.turns)
        if self.tokens is not None:
            check_positive(tokens=self.tokens)


class Examples(NamedTuple):
    """The arrays that the loss reads. Each has one entry per example, so that it can be divided into microbatches."""

    tokens: Array
    """int32 [B, T]. The targets: a window of T + 1 tokens without its first token."""
    shown: Array
    """int32 [B, T]. The network's input: the targets, some of them replaced."""
    scale: Array
    """[B, T]. Factor of each target's nats: 0 if the target is not to be predicted, otherwise 1. With rate None, 1 is
    replaced by `BoundMasks.scale`."""
    chosen_weight: Array
    """[B, T]. Weights for the mean accuracy: above 0 only at targets that are to be predicted."""
    loss_weight: Array
    """[B, T]. Weights for the mean nats, above 0 at targets that are to be predicted. With rate None they are above 0
    at all targets that count, because the likelihood bound is of the whole text."""
    dropout_keys: Array | None = None
    """[B], one per example. None: no dropout."""


class Prediction(NamedTuple):
    """How well the model predicts the targets of a batch, [B, T] each."""

    nats: Array
    """`Examples.scale` * -log p(target | shown tokens), in nats."""
    log_z: Array
    """log Z, where Z is the normalizer of the softmax."""
    right: Array
    """1 where the most likely token is the target, otherwise 0."""


class Draft(NamedTuple):
    """Texts that are not finished, [B, T] each."""

    text: Array
    """int32. The mask token where a token is still to be written. PADDING on the left of a shorter prompt."""
    log_probs: Array
    """float32. Log-probability of each written token under the model, in nats, without temperature and filters. 0 for
    other tokens."""


@dataclass(frozen=True)
class MaskedModel:
    """The masked model: p(masked token | tokens that are not masked).

    The argument `params` of its methods is {"transformer": parameters of `network`}.
    """

    config: MLM
    tokens: Tokens
    network: Transformer
    learner: learner.Learner

    @property
    def mask(self) -> int:
        """The mask: the token that replaces a masked token. It is V, one more than the largest token of a text."""
        return self.tokens.vocab

    def logits(
        self, params: dict[str, Params], shown: Array, segment: Array, position: Array, keys: Array | None = None
    ) -> Array:
        """Returns logits [B, T, V] of all tokens but the mask.

        shown: int32 [B, T], texts in which some tokens are masked. segment, position: int32 [B, T], each token's
        document and its index in the document. keys: dropout keys [B]. None: no dropout.
        """
        logits, _ = self.network.apply({"params": params["transformer"]}, shown, segment, position, keys)
        return logits[..., : self.tokens.vocab]

    def examples(self, batch: Batch, key: Key) -> Examples:
        """Masks random tokens of a batch, drawn from `key`, and returns the inputs of the loss.

        The result has no dropout keys, and its weights are not normalized. `update` adds the keys and normalizes.
        """
        x, weight = batch["tokens"][:, 1:], language.target_weights(batch, self.config.real_dtype())
        counts, keys = batch["counted"][:, 1:] > 0, axis.example_keys(key, batch["row"])
        if self.config.rate is None:
            masks = masking.draw_bound_masks(keys, x.shape[1], weight.dtype)
            chosen = counts & masks.chosen
            # The bound is a mean over all tokens of the text. A token that is shown adds 0 nats to it.
            return Examples(x, jnp.where(chosen, self.mask, x), chosen * masks.scale, chosen * weight, weight)
        if self.tokens.end is not None:
            # Segments and positions show where documents end (see `predict`), so ends need no prediction.
            counts &= x != self.tokens.end
        shown, chosen = masking.mask_at_rate(x, counts, keys, self.tokens.vocab, weight.dtype, self.config.rate)
        return Examples(x, shown, chosen.astype(weight.dtype), chosen * weight, chosen * weight)

    def predict(self, params: dict[str, Params], examples: Examples) -> Prediction:
        """Predicts all tokens from the masked texts, and compares the predictions with the targets."""
        # With rate None, ends are masked like all tokens. Segments would show where they are, so the whole window is
        # one segment.
        end = None if self.config.rate is None else self.tokens.end
        segment, position = locate_tokens(examples.tokens, end)
        logits = self.logits(params, examples.shown, segment, position, examples.dropout_keys)
        nats, log_z = losses.cross_entropy(logits, examples.tokens)
        right = (logits.argmax(-1) == examples.tokens).astype(self.config.real_dtype())
        return Prediction(nats * examples.scale, log_z, right)

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        """Makes one optimizer step. Returns the next state and the metrics.

        The loss is the mean of nats + z_loss * log(Z)^2, weighted with `Examples.loss_weight`. Nats and Z are described
        at `Prediction`. Metrics: "loss", the mean nats alone; "accuracy" on the tokens that are to be predicted;
        "gradient", the gradient's norm.
        """
        mask_key, dropout_key = jax.random.split(key)
        examples = self.examples(batch, mask_key)
        count, chosen = (language.count_tokens(weight) for weight in (examples.loss_weight, examples.chosen_weight))
        examples = examples._replace(
            loss_weight=language.normalize_weights(examples.loss_weight, count),
            chosen_weight=language.normalize_weights(examples.chosen_weight, chosen),
            dropout_keys=language.dropout_keys(self.config.network, dropout_key, batch["row"]),
        )

        def loss(params: dict[str, Params], examples: Examples) -> tuple[Array, Metrics]:
            nats, log_z, right = self.predict(params, examples)
            mean = language.token_mean(losses.with_z_loss(nats, log_z, self.config.z_loss), examples.loss_weight)
            return mean, {"loss": mean, "accuracy": language.token_mean(right, examples.chosen_weight)}

        state, metrics, gradient = self.learner.step(state, loss, examples, count)
        return state, axis.mean(metrics) | {"gradient": gradient}

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns {metric: (total, weight)} of a held-out batch, summed over devices. key: for the masks.

        The metrics are "loss" and "accuracy". The loss is the mean nats of the tokens to be predicted. With rate None
        it is a bound on the nats per token of the whole text, and there is also "bits_per_byte".
        """
        examples = self.examples(batch, key)
        nats, _, right = self.predict(self.learner.weights(state), examples)
        weight = examples.chosen_weight
        accuracy = {"accuracy": ((right * weight).sum(), weight.sum())}
        sums = accuracy | language.token_sums(nats, examples.loss_weight, batch)
        if self.config.rate is not None:
            # The nats of some tokens given all others are not the likelihood of a text.
            del sums["bits_per_byte"]
        return axis.total(sums)

    def generate(self, state: State, key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """Draws B = P * request.n texts: request.n texts for each of P prompts, grouped by prompt.

        Returns "samples" int32 [B, N], the drawn tokens, without the prompt. N is request.tokens, or by default the
        rest of the context. "log_probs" float32 [B, N] are the log-probabilities of these tokens in nats, without
        temperature and filters. "prompt" int32 [B, W] are the tokens before each sample.

        given: "prompt" int32 [P, W], with PADDING (-1) on the left of shorter prompts. Or "prefix" int32 [1, W] and
            "suffix" int32 [1, X], to write a middle between them. The prefix is then returned as "prompt". If `given`
            has none of these, P is 1, and samples are like training windows, which begin anywhere in a document.

        Raises: UserError if the context has no room for the tokens.
        """
        before = given.get("prefix", given.get("prompt", jnp.zeros((1, 0), jnp.int32)))
        after = given.get("suffix", jnp.zeros((1, 0), jnp.int32))
        context = self.network.context
        room = context - before.shape[1] - after.shape[1]
        tokens = room if request.tokens is None else request.tokens
        if not 0 < tokens <= room:
            raise UserError(
                f"the prompt has {context - room} tokens and {tokens} more are requested, but the context is {context}; "
                "shorten the prompt, or request fewer tokens"
            )
        before = jnp.repeat(before, request.n, axis=0)
        after = jnp.broadcast_to(after, (len(before), after.shape[1]))
        params, keys = self.learner.weights(state), axis.example_keys(key, jnp.arange(len(before)))
        text = jnp.concatenate([before, jnp.full((len(before), tokens), self.mask, jnp.int32), after], axis=1)

        # The last turn writes every token that is still masked.
        def turn(i: Array, draft: Draft) -> Draft:
            return self.write(params, keys, request, i, draft)

        draft = jax.lax.fori_loop(0, request.turns, turn, Draft(text, jnp.zeros(text.shape, jnp.float32)))
        written = slice(before.shape[1], before.shape[1] + tokens)
        return {"samples": draft.text[:, written], "log_probs": draft.log_probs[:, written], "prompt": before}

    def write(self, params: dict[str, Params], keys: Array, request: Request, i: Array, draft: Draft) -> Draft:
        """Writes some of the masked tokens: turn (pass) i of request.turns, counted from 0.

        Each token that is still masked is replaced by a drawn token with probability 1 / (turns - i), so the last turn
        replaces all. On average, the turn reduces the masked fraction from t = (turns - i) / turns to s = t - 1 /
        turns, and (t - s) / t = 1 / (turns - i). Sahoo et al. 2024, section 3.2.

        keys: [B], one per text.
        """
        # The whole text is one segment, because a middle continues both the prefix and the suffix.
        padding = draft.text < 0
        segment = jnp.where(padding, PADDING, 0)
        position = jnp.maximum(jnp.cumsum(~padding, axis=1, dtype=jnp.int32) - 1, 0)
        logits = self.logits(params, jnp.maximum(draft.text, 0), segment, position)

        choose_keys, token_keys = axis.split_keys(fold_in(keys, i), 2)
        seen = jax.nn.one_hot(draft.text, self.tokens.vocab, dtype=bool).any(1, keepdims=True)
        # All tokens of a turn are drawn independently, given the tokens of earlier turns.
        token = draw_tokens(filter_logits(logits, seen, request), token_keys, request.temperature)
        now = masking.choose_any(draft.text == self.mask, choose_keys, request.turns - i)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[..., None], axis=-1)[..., 0]
        return Draft(jnp.where(now, token, draft.text), jnp.where(now, log_prob, draft.log_probs).astype(jnp.float32))
