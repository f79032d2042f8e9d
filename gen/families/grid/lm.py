"""Causal model of grids: predicts each token from the tokens before it in raster order (van den Oord et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gen.axis import split_keys
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec
from gen.families.conditions import Condition
from gen.families.grid.assemble import assemble
from gen.families.grid.grid import GridModel, GridRequest, mean_tokens, measure_grids
from gen.families.grid.network import GridNetwork, make_network
from gen.families.language import losses
from gen.families.language.sampling import fold_in
from gen.networks.transformer import Cache

Carry = tuple[Array, Cache | None]
"""Carry of the sampling loop: the network's output at the newest cell, and the cache with all cells so far."""


@dataclass(frozen=True)
class GridLM(GridModel):
    """Hyper-parameters of a causal model of token grids, which computes the exact likelihood of a grid."""

    def causal(self, spec: Spec) -> CausalGrids:
        """Returns the network with its loss, evaluation and sampling, from which `build` makes a GenerativeModel.

        Raises: UserError if the data don't fit this config.
        """
        return CausalGrids(self, make_network(self, self.grid(spec), causal=True))

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """Returns the model for grids of this spec. Raises: UserError if the data don't fit this config."""
        return assemble(self.causal(spec), steps, GridRequest, "each given the tokens before it", "nll")


@dataclass(frozen=True)
class CausalGrids:
    """The causal model: p(grid | condition) = prod_t p(token_t | condition, tokens before t).

    The condition is the label and the caption. The argument `params` of the methods is described at GridNetwork.
    """

    config: GridLM
    network: GridNetwork

    def nats(
        self, params: dict[str, Params], batch: Batch, condition: Condition, keys: Key | None = None
    ) -> tuple[Array, Array]:
        """Returns (-log p(token | condition, tokens before it) in nats, log Z) for J tokens of T cells, [B, T, J] each.

        Z is the normalizer of the softmax. batch: "tokens" [B, *grid]. keys: dropout keys [B]. None: no dropout.
        """
        cells = self.network.grid.split(batch["tokens"])
        front = self.network.grid.front(len(cells), condition)
        # Position t reads cell t - 1 and predicts cell t. The first cell is predicted at the label.
        inputs = jnp.concatenate([front, cells[:, :-1]], axis=1)
        output, _ = self.network.read(params, inputs, self.network.positions[: inputs.shape[1]], keys)
        # The outputs at the caption predict nothing.
        output = output[:, self.network.grid.words :]
        return losses.cross_entropy(self.network.logits(params, output, cells), cells)

    def loss(self, params: dict[str, Params], batch: Batch, keys: Key) -> Array:
        """Returns the mean of -log p(token) in nats over the counted tokens of each example, [B] (see `mean_tokens`).

        The gradient also has the term z_loss * log(Z)^2, where Z is the normalizer of the softmax.

        keys: [B], for dropped labels and captions, and for dropout.
        """
        label_keys, dropout_keys = split_keys(keys, 2)
        condition = self.config.drop(self.network.grid, batch, label_keys)
        nats, log_z = self.nats(params, batch, condition, dropout_keys)
        return mean_tokens(self.network.grid, batch, losses.with_z_loss(nats, log_z, self.config.z_loss))

    def evaluate(self, params: dict[str, Params], batch: Batch, keys: Key) -> tuple[Array, Metrics]:
        """Returns the mean nats per counted token of each grid, [B], and the metrics of `measure_grids`, {metric: [B]}.

        "nll" is the nats of a whole grid. `keys` is not used.
        """
        nats, _ = self.nats(params, batch, self.network.grid.conditions.of(batch))
        return measure_grids(self.network.grid, batch, nats, "nll")

    def sample(self, params: dict[str, Params], keys: Key, given: Batch, request: GridRequest) -> dict[str, Array]:
        """Draws n = request.n grids, cell by cell in raster order. Returns "samples", int32 [n, *grid].

        Also returns "log_probs", float32 [n, *grid], the log-probability of each drawn token in nats (see `Drawn`). If
        the model reads labels or captions, it also returns "labels" int32 [n] or "captions" int32 [n, L].

        keys: [n]. given: may have labels and captions (see Conditions.to_generate), and "tokens" and "known" (see
        Grid.known). Known tokens are kept. Each unknown token is drawn given the tokens before it, so known tokens
        after it have no effect on it. A masked model (GridMLM) also reads the known tokens after it.

        Raises: UserError for a label that the model does not have, guidance without label dropout, or a mode without
            input.
        """
        network, grid = self.network, self.network.grid
        condition = self.config.condition(grid, request, given)
        known = grid.known(given, request)
        front = network.fronts(request.n, condition, request.guidance)
        params, cache = network.begin_cache(params, len(front))
        before = front.shape[1]
        # The last output, at the label, predicts the first cell.
        output, cache = network.read(params, front, network.positions[:before], cache=cache)

        def step(carry: Carry, t: Array) -> tuple[Carry, tuple[Array, Array]]:
            """Draws the J tokens of cell t of all samples, and feeds them to the network.

            Returns the new carry, with the network's output for the next cell, and (tokens, log-probabilities), [n, J]
            each.
            """
            output, cache = carry
            tokens, log_probs = network.draw(
                params, output, jnp.take(known, t, axis=1)[:, None], fold_in(keys, t), request
            )
            # With guidance each sample has two rows, with and without conditions. Both read the drawn tokens.
            cells = jnp.tile(tokens, (len(front) // request.n, 1, 1))
            at = jax.lax.dynamic_slice_in_dim(network.positions, t + before, 1)
            output, cache = network.read(params, cells, at, cache=cache, begins=False)
            return (output, cache), (tokens[:, 0], log_probs[:, 0])

        # A grid has no end, so all samples take the same number of steps.
        _, (tokens, log_probs) = jax.lax.scan(step, (output[:, -1:], cache), jnp.arange(grid.length))
        made = {"samples": grid.join(tokens.swapaxes(0, 1)), "log_probs": grid.join(log_probs.swapaxes(0, 1))}
        return made | condition.arrays()
