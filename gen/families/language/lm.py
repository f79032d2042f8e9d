"""The causal language model (Radford et al. 2019): predicts each token from the tokens before it in its document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen import axis, core
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError, check_fraction, check_positive
from gen.families import learner
from gen.families.language import decoding, language, losses, middle
from gen.families.language.language import LanguageModel, Tokens
from gen.families.language.sampling import Sampling
from gen.networks.positions import locate_tokens
from gen.networks.transformer import Cache, Transformer, begin_decoding


@dataclass(frozen=True)
class LM(LanguageModel):
    """A causal language model."""

    fill_in_the_middle: float = 0.0
    """Fraction of the training windows whose middle is moved to the end (Bavarian et al. 2022). Above 0, the trained
    model can write a middle between a given prefix and suffix."""

    def __post_init__(self):
        super().__post_init__()
        check_fraction(fill_in_the_middle=self.fill_in_the_middle)

    def inherit(self, base: core.Family, spec: Spec) -> LM:
        own = super().inherit(base, spec)
        assert isinstance(base, LM)
        return replace(own, fill_in_the_middle=base.fill_in_the_middle)

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        names, how = ("loss", "perplexity", "bits_per_byte"), "each given the tokens before it"
        return language.assemble(self.model(spec, steps), Request, {name: {"tokens": how} for name in names})

    def model(self, spec: Spec, steps: int) -> CausalModel:
        """Returns the object with the functions of `build`'s result.

        Raises: UserError if the data don't fit this config.
        """
        tokens = language.tokens(spec)
        language.check_no_source(spec)
        if self.fill_in_the_middle and tokens.end is None:
            raise UserError(
                "fill_in_the_middle ends each text with the token between documents, and the data have none; "
                "the fix: --model.fill-in-the-middle 0"
            )
        context = language.context(self.network, tokens.length)
        vocab = tokens.vocab + (middle.SENTINELS if self.fill_in_the_middle else 0)
        network = Transformer(self.network, vocab, context, causal=True, dtypes=self.dtypes())
        begin = partial(language.init_params, network, tokens.end)
        return CausalModel(
            self, tokens, network, learner.make_learner(self, steps, "transformer", begin, weighted=True)
        )


@dataclass(frozen=True)
class Request(core.Request, Sampling):
    """Settings for generating texts."""

    n: int = 4
    """Number of samples per prompt."""
    tokens: int = 256
    """Maximum number of tokens per sample."""

    def __post_init__(self):
        super().__post_init__()
        Sampling.__post_init__(self)
        check_positive(tokens=self.tokens)


class Examples(NamedTuple):
    """The arrays that the loss reads. Each has one entry per example, so that it can be divided into microbatches."""

    tokens: Array
    """int32 [B, T + 1]. The targets are tokens[:, 1:]."""
    weight: Array
    """[B, T]. Weight of each target. 0: the loss does not count it."""
    moved: Array | None = None
    """bool [B]. Whether the middle of the row was moved to its end. None: no row was changed."""
    dropout_keys: Array | None = None
    """[B], one per example. None: no dropout."""


@dataclass(frozen=True)
class CausalModel:
    """The causal model: p(text) = prod_t p(token_t | tokens before t in its document). params: {"transformer": ...}."""

    config: LM
    tokens: Tokens
    network: Transformer
    learner: learner.Learner

    def nats(self, params: dict[str, Params], examples: Examples) -> tuple[Array, Array]:
        """Returns -log p(target | tokens before it) in nats, and log Z (see `losses.cross_entropy`), [B, T] each."""
        inputs, targets = examples.tokens[:, :-1], examples.tokens[:, 1:]
        segment, position = locate_tokens(inputs, self.tokens.end)
        if examples.moved is not None:
            # A rearranged row is a single text to the model, even if it was cut from a window of several documents:
            # otherwise the middle could not attend to a prefix in another document.
            moved = examples.moved[:, None]
            segment = jnp.where(moved, 0, segment)
            position = jnp.where(moved, jnp.arange(inputs.shape[1], dtype=jnp.int32)[None], position)
        variables = {"params": params["transformer"]}
        logits, _ = self.network.apply(variables, inputs, segment, position, examples.dropout_keys)
        return losses.cross_entropy(logits, targets)

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        """Makes one step on the mean of nats + z_loss log(Z)^2 over the tokens that count (see `target_weights`).

        The metric "loss" is the mean of the nats alone.
        """

        def loss(params: dict[str, Params], examples: Examples) -> tuple[Array, Array]:
            nats = losses.with_z_loss(*self.nats(params, examples), self.config.z_loss)
            mean = language.token_mean(nats, examples.weight)
            return mean, mean

        examples, count = self.examples(batch, key)
        state, value, gradient = self.learner.step(state, loss, examples, count)
        return state, {"loss": axis.mean(value), "gradient": gradient}

    def examples(self, batch: Batch, key: Key) -> tuple[Examples, Array]:
        """Returns the training examples of a batch, some with moved middles, and their `count_tokens`, []."""
        dropout_key, middle_key = jax.random.split(key)
        # Middles are moved in the compiled step, so that the data set does not depend on the rate.
        moved = None
        if rate := self.config.fill_in_the_middle:
            rearranged = middle.move_middles(batch, middle_key, rate, self.tokens.vocab, self.tokens.end)
            batch = batch | {"tokens": rearranged.tokens, "counted": rearranged.counted}
            moved = rearranged.moved
        keys = language.dropout_keys(self.config.network, dropout_key, batch["row"])
        weight = language.target_weights(batch, self.config.real_dtype())
        count = language.count_tokens(weight)
        return Examples(batch["tokens"], language.normalize_weights(weight, count), moved, keys), count

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns the `Sums` of loss, bits per byte, and "loss_by_place" [T], the loss at each position of a window."""
        weight = language.target_weights(batch, self.config.real_dtype())
        nats, _ = self.nats(self.learner.weights(state), Examples(batch["tokens"], weight))
        # The later a token is in its window, the more context it has: this curve shows how much the model uses.
        by_position = {"loss_by_place": ((nats * weight).sum(0), weight.sum(0))}
        return axis.total(language.token_sums(nats, weight, batch) | by_position)

    def generate(
        self,
        state: State,
        key: Key,
        given: Mapping[str, Array],
        request: Request,
        listen: decoding.Listener | None = None,
    ) -> dict[str, Array]:
        """Returns {"samples": int32 [B, N], "log_probs": float32 [B, N], "prompt": int32 [B, W]}.

        There are B = P request.n samples, in the order of the prompts, of N = request.tokens tokens. See
        `decoding.Decoded`.

        given: "prompt" int32 [P, W], with PADDING on the left of shorter prompts. Or "prefix" int32 [1, X] and "suffix"
            int32 [1, Y], to write a middle between them. If it has none of these, each sample begins a new document.
        listen: see `decoding.Listener`.

        Raises: UserError if the prompt is longer than the context, or the model was not trained to fill in the middle.
        """
        prompt = jnp.repeat(self.prompt(given), request.n, axis=0)
        arch = self.config.network
        params, empty = begin_decoding(self.network, self.learner.weights(state)["transformer"], len(prompt))
        # With arch.window no token attends further back than in training, so a text may become longer than the context.
        endless = arch.window is not None and arch.positions != "learned"

        def read(tokens: Array, segment: Array, position: Array, cache: Cache, begins: bool) -> tuple[Array, Cache]:
            variables = {"params": params}
            return self.network.apply(variables, tokens, segment, position, cache=cache, begins=begins)  # pyright: ignore

        decoded = decoding.decode(
            read,
            empty,
            prompt,
            axis.example_keys(key, jnp.arange(len(prompt))),
            request,
            n=request.tokens,
            limit=None if endless else self.network.context,
            vocab=self.tokens.vocab,
            end=self.tokens.end,
            listen=listen,
        )
        return {"samples": decoded.tokens, "log_probs": decoded.log_probs, "prompt": prompt}

    def prompt(self, given: Mapping[str, Array]) -> Array:
        """Returns the prompts that samples continue, int32 [P, W]. given and errors: see `generate`."""
        # Every document begins with `end`, so this token alone is the prompt for a new document.
        prompt = given.get("prompt", jnp.full((1, 1), self.tokens.end or 0, jnp.int32))
        if "prefix" in given:
            if not self.config.fill_in_the_middle:
                raise UserError(
                    "the model was not trained to fill in the middle; the fix: --model.fill-in-the-middle 0.5"
                )
            prompt = middle.prompt(given["prefix"], given["suffix"], self.tokens.vocab)
        if prompt.shape[1] > (context := self.network.context):
            raise UserError(f"a prompt has {prompt.shape[1]} tokens, and the model's context is {context}; shorten it")
        return prompt
