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
    """Hyper-parameters of a causal language model."""

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
        """Returns the network and its optimizer, with the methods from which `build` makes a GenerativeModel.

        steps: number of updates of the whole run, which schedules read.

        Raises: UserError if the data have no texts or have separate sources, if windows are longer than the learned
            positions, or if `fill_in_the_middle` is above 0 and the data have no end token.
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
    """bool [B]. Whether the text's middle was moved to the end, see `middle.move_middles`. None: no text is changed."""
    dropout_keys: Array | None = None
    """[B], one per example. None: no dropout."""


@dataclass(frozen=True)
class CausalModel:
    """The causal model: p(text) = prod_t p(token_t | tokens before t in its document).

    The argument `params` of its methods is {"transformer": parameters of `network`}.
    """

    config: LM
    tokens: Tokens
    network: Transformer
    learner: learner.Learner

    def nats(self, params: dict[str, Params], examples: Examples) -> tuple[Array, Array]:
        """Returns (-log p(target | tokens before) in nats, log Z), [B, T] each. Z is the normalizer of the softmax."""
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
        """Makes one optimizer step. Returns the next state and the metrics.

        The loss is the mean of -log p(target) + z_loss * log(Z)^2 over the tokens that count, where Z is the normalizer
        of the softmax. Metrics: "loss", the mean of -log p(target) alone, in nats; "gradient", the gradient's norm.
        """

        def loss(params: dict[str, Params], examples: Examples) -> tuple[Array, Array]:
            nats = losses.with_z_loss(*self.nats(params, examples), self.config.z_loss)
            mean = language.token_mean(nats, examples.weight)
            return mean, mean

        examples, count = self.examples(batch, key)
        state, value, gradient = self.learner.step(state, loss, examples, count)
        return state, {"loss": axis.mean(value), "gradient": gradient}

    def examples(self, batch: Batch, key: Key) -> tuple[Examples, Array]:
        """Returns (inputs of the training loss, average number of tokens per device that count in the loss, a scalar).

        With `fill_in_the_middle`, the middles of some texts are moved to their ends, drawn from `key`.
        """
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
        """Returns {metric: (total, weight)} of a held-out batch, summed over devices. `key` is not used.

        "loss" is in nats per token, "bits_per_byte" in bits per byte of text. "loss_by_place" [T] is the loss at each
        position of a window, in nats.
        """
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
        """Draws B = P * request.n texts: request.n texts for each of P prompts, grouped by prompt.

        Returns "samples" int32 [B, N], the drawn tokens, without the prompt. N is request.tokens. PADDING (-1) fills a
        sample after its end. "log_probs" float32 [B, N] are the log-probabilities of these tokens in nats, without
        temperature and filters. "prompt" int32 [B, W] are the tokens that each sample continues.

        given: "prompt" int32 [P, W], with PADDING on the left of shorter prompts. Or "prefix" int32 [1, X] and "suffix"
            int32 [1, Y], to write a middle between them. If it has none of these, P is 1, and samples begin a new
            document.
        listen: called with the new tokens of all samples; may end samples. See `decoding.Listener`.

        Raises: UserError if a prompt is longer than the context, or if there is a prefix and the model was not trained
            to fill in the middle.
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
            # The noise of a sample depends on its index alone, and not on the number of samples.
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
        """Returns the tokens that samples continue, int32 [P, W]. For `given` and errors, see `generate`.

        A prefix and a suffix become one prompt, see `middle.prompt`. Without a prompt, it is the end token alone.
        """
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
