"""The masked language model: predicts masked tokens from the tokens around them (Devlin et al. 2019).

If the fraction of masked tokens is drawn from [0, 1] for each example, the loss bounds the likelihood of a text, and the model
can write texts by unmasking (absorbing diffusion: Austin et al. 2021; Sahoo et al. 2024).
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
    """A masked language model."""

    rate: float | None = 0.15
    """Fraction of tokens to mask and predict. The tokens that end documents are never masked. None: drawn uniformly from [0, 1] for each
    example, with ends (absorbing diffusion), which gives a likelihood bound and allows generation."""

    def __post_init__(self):
        super().__post_init__()
        if self.rate is not None and not 0 < self.rate <= 1:
            raise UserError(f"rate is {self.rate}; it must be in (0, 1], or None")

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        return language.assemble(self.model(spec, steps), Request, self.protocol())

    def model(self, spec: Spec, steps: int) -> MaskedModel:
        """Returns the object with the functions of `build`'s result. Raises: UserError if the data don't fit this config."""
        tokens = language.tokens(spec)
        language.check_no_source(spec)
        context = language.context(self.network, tokens.length)
        # The mask is one more token, the last of the network's vocabulary. It is never predicted.
        network = Transformer(self.network, tokens.vocab + 1, context, causal=False, dtypes=self.dtypes())
        begin = partial(language.init_params, network, tokens.end)
        return MaskedModel(
            self, tokens, network, learner.make_learner(self, steps, "transformer", begin, weighted=True)
        )

    def protocol(self) -> dict[str, dict[str, str]]:
        """Returns how each metric is estimated. Only the bound on the likelihood gives bits per byte."""
        how, names = f"{self.rate} masked, ends are not masked", ["loss", "accuracy", "perplexity"]
        if self.rate is None:
            how = "a fraction drawn from [0, 1] masked, one draw per window"
            names.append("bits_per_byte")
        return {name: {"tokens": how} for name in names}


@dataclass(frozen=True)
class Request(core.Request, Sampling):
    """What to generate."""

    n: int = 4
    """Number of samples per prompt."""
    tokens: int | None = None
    """Number of tokens to write. None: the rest of the context."""
    turns: int = 64
    """Number of passes over the text. Each pass writes some of the masked tokens, anywhere in the text."""

    def __post_init__(self):
        super().__post_init__()
        Sampling.__post_init__(self)
        check_positive(turns=self.turns)
        if self.tokens is not None:
            check_positive(tokens=self.tokens)


class Examples(NamedTuple):
    """A batch as the loss takes it. Each array has one entry per example, so that it can be split into microbatches."""

    tokens: Array
    """int32 [B, T]. The targets: the window without its first token, which is not a position of this model."""
    shown: Array
    """int32 [B, T]. Tokens that the network sees."""
    scale: Array
    """[B, T]. Factor of each target's nats; 0: it was not chosen."""
    chosen_weight: Array
    """[B, T]. Weights of the chosen tokens, over which the accuracy is averaged."""
    loss_weight: Array
    """[B, T]. Weights in the mean of the nats. With a fixed rate only the chosen tokens have one. In the bound all tokens that count do."""
    dropout_keys: Array | None = None
    """[B]. None: no dropout."""


class Prediction(NamedTuple):
    """Predictions for the targets of a batch, [B, T] each."""

    nats: Array
    """scale * -log p(token | tokens shown)."""
    log_z: Array
    right: Array
    """1 where the most likely token is the target, otherwise 0."""


class Draft(NamedTuple):
    """Texts while they are being written, [B, T] each."""

    text: Array
    """int32. The mask where nothing was written yet; PADDING where there is nothing to write."""
    log_probs: Array
    """float32. Log-probability of each written token in nats under the model, without temperature and filters."""


@dataclass(frozen=True)
class MaskedModel:
    """p(masked tokens | other tokens) as an independent distribution for each masked token. params: {"transformer": ...}."""

    config: MLM
    tokens: Tokens
    network: Transformer
    learner: learner.Learner

    @property
    def mask(self) -> int:
        """The token that marks a masked position."""
        return self.tokens.vocab

    def logits(
        self, params: dict[str, Params], shown: Array, segment: Array, position: Array, keys: Array | None = None
    ) -> Array:
        """Returns logits [B, T, V] of every token but the mask, which is never a target."""
        logits, _ = self.network.apply({"params": params["transformer"]}, shown, segment, position, keys)
        return logits[..., : self.tokens.vocab]

    def examples(self, batch: Batch, key: Key) -> Examples:
        """Returns the examples of a batch with masks drawn, and weights that are not normalized yet."""
        x, weight = batch["tokens"][:, 1:], language.target_weights(batch, self.config.real_dtype())
        counts, keys = batch["counted"][:, 1:] > 0, axis.example_keys(key, batch["row"])
        if self.config.rate is None:
            masks = masking.draw_bound_masks(keys, x.shape[1], weight.dtype)
            chosen = counts & masks.chosen
            # The bound is a sum over all tokens of the text: a token that is shown costs 0 nats, and it counts.
            return Examples(x, jnp.where(chosen, self.mask, x), chosen * masks.scale, chosen * weight, weight)
        if self.tokens.end is not None:
            # Segments and positions show where documents end (see `predict`), so ends need no prediction.
            counts &= x != self.tokens.end
        shown, chosen = masking.mask_at_rate(x, counts, keys, self.tokens.vocab, weight.dtype, self.config.rate)
        return Examples(x, shown, chosen.astype(weight.dtype), chosen * weight, chosen * weight)

    def predict(self, params: dict[str, Params], examples: Examples) -> Prediction:
        """Predicts the targets of each example."""
        # The bound is of whole texts, so ends are masked like all tokens. Attention that stopped at the ends of documents would reveal
        # them, so the window is one segment.
        end = None if self.config.rate is None else self.tokens.end
        segment, position = locate_tokens(examples.tokens, end)
        logits = self.logits(params, examples.shown, segment, position, examples.dropout_keys)
        nats, log_z = losses.cross_entropy(logits, examples.tokens)
        right = (logits.argmax(-1) == examples.tokens).astype(self.config.real_dtype())
        return Prediction(nats * examples.scale, log_z, right)

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        """Makes one step on the mean of nats + z_loss log(Z)^2."""
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
        """Returns the sums of loss and accuracy, and of bits per byte if the loss bounds the likelihood."""
        examples = self.examples(batch, key)
        nats, _, right = self.predict(self.learner.weights(state), examples)
        weight = examples.chosen_weight
        accuracy = {"accuracy": ((right * weight).sum(), weight.sum())}
        sums = accuracy | language.token_sums(nats, examples.loss_weight, batch)
        if self.config.rate is not None:
            del sums["bits_per_byte"]  # the nats of some tokens given all others are not the likelihood of a text
        return axis.total(sums)

    def generate(self, state: State, key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """Returns {"samples": int32 [B, N], "log_probs": float32 [B, N], "prompt": int32 [B, W]}, B = prompts * request.n.

        given: "prompt" int32 [P, W], with PADDING on the left of shorter prompts; or "prefix" and "suffix", int32 [1, W], to
        write a middle between them. Without either, a sample is a part of a document.

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

        # In the last turn every token that is still masked is written.
        def turn(i: Array, draft: Draft) -> Draft:
            return self.write(params, keys, request, i, draft)

        draft = jax.lax.fori_loop(0, request.turns, turn, Draft(text, jnp.zeros(text.shape, jnp.float32)))
        written = slice(before.shape[1], before.shape[1] + tokens)
        return {"samples": draft.text[:, written], "log_probs": draft.log_probs[:, written], "prompt": before}

    def write(self, params: dict[str, Params], keys: Array, request: Request, i: Array, draft: Draft) -> Draft:
        """Writes some of the masked tokens: turn i of request.turns, i from 0. keys: [B].

        Before the turn a fraction t = (turns - i) / turns of the tokens is masked, and s = t - 1 / turns after it. So each
        masked token is written with probability (t - s) / t = 1 / (turns - i). Sahoo et al. 2024, section 3.2.
        """
        # The whole text is one segment: what lies between prefix and suffix continues both.
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
