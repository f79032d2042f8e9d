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
    """A causal model of grids. It computes the exact likelihood of a grid."""

    def causal(self, spec: Spec) -> CausalGrids:
        """Returns the object with the functions of `build`'s result.

        Raises: UserError if the data don't fit this config.
        """
        return CausalGrids(self, make_network(self, self.grid(spec), causal=True))

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """Returns the model for grids of this spec. Raises: UserError if the data don't fit this config."""
        return assemble(self.causal(spec), steps, GridRequest, "each given the tokens before it", "nll")


@dataclass(frozen=True)
class CausalGrids:
    """The causal model: p(grid | condition) = prod_t p(token_t | condition, tokens before t).

    The condition is the label and the caption. GridNetwork describes `params`.
    """

    config: GridLM
    network: GridNetwork

    def nats(
        self, params: dict[str, Params], batch: Batch, condition: Condition, keys: Key | None = None
    ) -> tuple[Array, Array]:
        """Returns -log p(token | condition, tokens before it) in nats, and log Z (see cross_entropy), [B, T, J] each.

        keys: dropout keys [B]. None: no dropout.
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
        """Returns the mean nats of each example's counted tokens, [B]. The gradient is of nats + z_loss log(Z)^2.

        keys: [B].
        """
        label_keys, dropout_keys = split_keys(keys, 2)
        condition = self.config.drop(self.network.grid, batch, label_keys)
        nats, log_z = self.nats(params, batch, condition, dropout_keys)
        return mean_tokens(self.network.grid, batch, losses.with_z_loss(nats, log_z, self.config.z_loss))

    def evaluate(self, params: dict[str, Params], batch: Batch, keys: Key) -> tuple[Array, Metrics]:
        """Returns the mean nats per token of each grid, [B], and the metrics of `measure_grids` named "nll"."""
        nats, _ = self.nats(params, batch, self.network.grid.conditions.of(batch))
        return measure_grids(self.network.grid, batch, nats, "nll")

    def sample(self, params: dict[str, Params], keys: Key, given: Batch, request: GridRequest) -> dict[str, Array]:
        """Returns {"samples": int32 [n, *grid], "log_probs": float32 [n, *grid]}. See `Drawn` for "log_probs".

        If the model reads labels or captions, also "labels" int32 [n] or "captions" int32 [n, L].

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
        output, cache = network.read(params, front, network.positions[:before], cache=cache)

        def step(carry: Carry, t: Array) -> tuple[Carry, tuple[Array, Array]]:
            """Draws the token of cell t, and feeds it to the network. The network's new output is in the carry.

            Returns the new carry, and (tokens, log-probabilities) of the cell, each with the samples on the first axis.
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
