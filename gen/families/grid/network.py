"""The network of a model of grids: a transformer over the cells, a head for the tokens of a cell, and drawing from both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen.core import Array, Key, Params
from gen.families.conditions import Condition
from gen.families.grid.grid import Grid, GridModel, GridRequest
from gen.families.language.sampling import draw_tokens, fold_in, keep_likely
from gen.networks.positions import PADDING, locate_cells
from gen.networks.transformer import Cache, InnerHead, Transformer, begin_decoding


class Drawn(NamedTuple):
    """Tokens of cells, [B, S, J] each."""

    tokens: Array
    """int32."""
    log_probs: Array
    """float32. Log-probability of each token in nats, given the conditions, without guidance and filters. 0: the token was given."""


@dataclass(frozen=True)
class GridNetwork:
    """p(tokens of a cell | caption, label and cells that were read). params: {"transformer": ...}, and "inner" with `inner_layers`."""

    grid: Grid
    transformer: Transformer
    inner: InnerHead | None

    def init(self, key: Key) -> dict[str, Params]:
        """Returns the parameters at step 0."""
        transformer_key, inner_key = jax.random.split(key)
        tokens = jnp.zeros((1, 1, self.grid.count), jnp.int32)
        inputs = tokens, jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, len(self.grid.cells)), jnp.int32)
        params = {"transformer": self.transformer.init(transformer_key, *inputs)["params"]}
        if self.inner is not None:
            state = jnp.zeros((1, 1, self.inner.arch.width), self.inner.dtypes["dtype"])
            params["inner"] = self.inner.init(inner_key, state, tokens)["params"]
        return params

    @property
    def positions(self) -> Array:
        """Positions of the caption's tokens, of the label and of each cell, int32 [L + 1 + T, A], on A axes."""
        return locate_cells(self.grid.cells, self.grid.words)

    def read(
        self,
        params: dict[str, Any],
        cells: Array,
        positions: Array,
        keys: Key | None = None,
        cache: Cache | None = None,
        begins: bool = True,
    ) -> tuple[Array, Cache | None]:
        """Reads cells, int32 [B, S, J], at positions int32 [S, A]. Returns (output [B, S, ...] for `logits`, the cache with these cells).

        keys: dropout keys [B]. begins: whether the cells start at the beginning of the row (caption and label).
        """
        # The J tokens of a cell have separate rows of the embedding.
        index = cells + self.grid.rows * jnp.arange(self.grid.count, dtype=jnp.int32)[None, None]
        segment = jnp.zeros(cells.shape[:2], jnp.int32)
        if self.grid.padding is not None:
            # Attention ignores the padding after the end of a caption.
            segment = jnp.where(cells[..., 0] == self.grid.padding, PADDING, segment)
        position = jnp.broadcast_to(positions[None], (len(cells), *positions.shape))
        # Without dropout the keys are not needed. Passing them on would only cost memory.
        if not self.transformer.arch.dropout:
            keys = None
        variables = {"params": params["transformer"]}
        return self.transformer.apply(variables, index, segment, position, keys, cache, begins=begins)  # pyright: ignore

    def logits(self, params: dict[str, Params], output: Array, cells: Array, only: int | None = None) -> Array:
        """Returns logits [B, S, J, V] of the tokens of each cell, given the tokens before them in the cell.

        output: returned by `read` for the cells before. cells: int32 [B, S, J]. only: index of the one token of each cell to compute;
            None: all.
        """
        if self.inner is None:
            # The network's other tokens, such as labels, never occur in a grid.
            return output[:, :, None, : self.grid.vocab]
        return self.inner.apply({"params": params["inner"]}, output, cells, only)  # pyright: ignore[reportReturnType]

    def draw(self, params: dict[str, Params], output: Array, given: Array, keys: Key, request: GridRequest) -> Drawn:
        """Draws the tokens of cells one after the other.

        output: returned by `read`, [B, S, ...]; with guidance [2 B, S, ...], where the second half was read without conditions.
        given: int32 [B, S, J], the known tokens, and PADDING elsewhere. keys: [B].
        """
        tokens, log_probs = jnp.maximum(given, 0), []
        # Each token of a cell depends on the ones before it, so they are drawn one after the other. There are few, so this is no scan.
        for j in range(self.grid.count):
            before = tokens if len(output) == len(tokens) else jnp.concatenate([tokens, tokens])
            conditional, logits = guide(self.logits(params, output, before, j)[:, :, 0], len(tokens), request.guidance)
            drawn = draw_tokens(keep_likely(logits, request), fold_in(keys, j), request.temperature)
            token = jnp.where(given[..., j] < 0, drawn, given[..., j])
            # The model's own probability, without guidance and temperature.
            log_prob = jnp.take_along_axis(jax.nn.log_softmax(conditional), token[..., None], axis=-1)[..., 0]
            tokens = tokens.at[..., j].set(token)
            log_probs.append(jnp.where(given[..., j] < 0, log_prob, 0).astype(jnp.float32))
        return Drawn(tokens, jnp.stack(log_probs, axis=-1))

    def fronts(self, n: int, condition: Condition, guidance: float) -> Array:
        """Returns the beginnings of n rows, int32 [n, L + 1, J]. With guidance [2 n, ...]: the second half is without conditions."""
        # One batch of twice the size: two separate caches took 1.05 times its CPU time (64 grids of 7x7 of 1,024 tokens, 4 layers of 128).
        front = self.grid.front(n, condition)
        return front if guidance == 1 else jnp.concatenate([front, self.grid.front(n, Condition())])

    def begin_cache(self, params: dict[str, Any], rows: int) -> tuple[dict[str, Any], Cache]:
        """Returns the parameters in the form that decoding needs, and an empty cache for `rows` rows: their beginnings and all cells."""
        transformer, empty = begin_decoding(self.transformer, params["transformer"], rows)
        return params | {"transformer": transformer}, empty(self.grid.words + 1 + self.grid.length)


def make_network(config: GridModel, grid: Grid, causal: bool) -> GridNetwork:
    """Returns the network of a config for these grids."""
    arch, dtypes, head = config.network, config.dtypes(), config.inner_layers > 0
    # The label takes position 0 of each axis. A caption lies before it, along the first axis.
    axes = (grid.words + grid.cells[0] + 1, *(n + 1 for n in grid.cells[1:]))
    transformer = Transformer(
        arch,
        grid.rows * grid.count,
        grid.words + grid.length + 1,
        causal=causal,
        dtypes=dtypes,
        readout=not head,
        axes=axes,
    )
    inner = InnerHead(arch, grid.vocab, grid.count, config.inner_layers, dtypes) if head else None
    return GridNetwork(grid, transformer, inner)


def guide(logits: Array, n: int, guidance: float) -> tuple[Array, Array]:
    """Returns (logits c with conditions, guided logits u + guidance (c - u)), [n, ...] each.

    Ho and Salimans 2022, equation 6, with w = guidance - 1.

    logits: [n, ...], or with guidance [2 n, ...], where the second half was read without conditions.
    """
    if len(logits) == n:
        return logits, logits
    # c: with conditions. u: without.
    c, u = logits[:n], logits[n:]
    return c, u + guidance * (c - u)
