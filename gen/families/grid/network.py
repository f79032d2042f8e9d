"""The network of a model of token grids, and drawing tokens from its logits.

A transformer reads the cells (positions of the grid). With `inner_layers`, a small head predicts the tokens of each
cell.
"""

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
    """The J tokens of S cells of each sample after drawing, [B, S, J] each."""

    tokens: Array
    """int32. Drawn tokens, and the given tokens, which are kept."""
    log_probs: Array
    """float32. Log-probability of each drawn token in nats under the model with its conditions, without guidance,
    temperature and filters. 0 where the token was given."""


@dataclass(frozen=True)
class GridNetwork:
    """The network that predicts the tokens of a cell from the caption, the label and the cells that it has read.

    The argument `params` of its methods is {"transformer": ...}, and with `inner` also "inner".
    """

    grid: Grid
    transformer: Transformer
    inner: InnerHead | None
    """Head that predicts the J tokens of a cell. None: J = 1, and the transformer has the logits."""

    def init(self, key: Key) -> dict[str, Params]:
        """Returns random initial parameters, {"transformer": ...}, and with `inner` also "inner"."""
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
        """Positions of the L tokens of the caption, the label and the T cells on A axes, int32 [L + 1 + T, A]."""
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
        """Runs the transformer on S positions. Returns (output [B, S, ...], the cache with these positions added).

        `logits` predicts cells from the output.

        cells: consecutive positions of the sequence caption, label, cells of the grid, int32 [B, S, J]. positions:
        int32 [S, A], their rows of `self.positions`. keys: dropout keys [B]; None: no dropout. cache: holds the
        positions before; None: no cache. begins: whether the sequence begins with these positions.
        """
        # The same number at another index j is another token, so each index has separate rows of the embedding.
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
        """Returns logits [B, S, J, V] of the J tokens of S cells. Each depends on the tokens before it in its cell.

        output: the output of `read` that predicts these cells, [B, S, ...]. cells: their tokens, int32 [B, S, J].
        only: compute only the logits of the token with this index, [B, S, 1, V]. None: of all J tokens.
        """
        if self.inner is None:
            # The network's other tokens, such as labels, are never predicted.
            return output[:, :, None, : self.grid.vocab]
        return self.inner.apply({"params": params["inner"]}, output, cells, only)  # pyright: ignore[reportReturnType]

    def draw(self, params: dict[str, Params], output: Array, given: Array, keys: Key, request: GridRequest) -> Drawn:
        """Draws the unknown tokens of S cells.

        output: the output of `read` that predicts these cells, [B, S, ...]. With guidance [2 B, S, ...]: the second
        half is without conditions. given: int32 [B, S, J], the known tokens, and PADDING (-1) at tokens to draw.
        keys: [B]. request: temperature, filters and guidance.
        """
        tokens, log_probs = jnp.maximum(given, 0), []
        # Each token of a cell depends on the tokens before it. J is small, so a Python loop compiles fast enough.
        for j in range(self.grid.count):
            before = tokens if len(output) == len(tokens) else jnp.concatenate([tokens, tokens])
            conditional, logits = guide(self.logits(params, output, before, j)[:, :, 0], len(tokens), request.guidance)
            drawn = draw_tokens(keep_likely(logits, request), fold_in(keys, j), request.temperature)
            token = jnp.where(given[..., j] < 0, drawn, given[..., j])
            # The probability under the model, without guidance, filters and temperature.
            log_prob = jnp.take_along_axis(jax.nn.log_softmax(conditional), token[..., None], axis=-1)[..., 0]
            tokens = tokens.at[..., j].set(token)
            log_probs.append(jnp.where(given[..., j] < 0, log_prob, 0).astype(jnp.float32))
        return Drawn(tokens, jnp.stack(log_probs, axis=-1))

    def fronts(self, n: int, condition: Condition, guidance: float) -> Array:
        """Returns the tokens that the network reads before the grids of n samples: int32 [n, L + 1, J].

        They are L tokens of the caption, then the label. Each is repeated J times, because the network reads J tokens at
        each position. condition: the caption and the label of each sample. If guidance is not 1, the result is
        int32 [2 n, L + 1, J], and the second half has an empty caption and "no label".
        """
        # One batch of twice the size, because two batches with separate caches took 1.05 times the CPU time (64 grids
        # of 7x7 cells, 1,024 tokens, 4 layers of width 128).
        front = self.grid.front(n, condition)
        return front if guidance == 1 else jnp.concatenate([front, self.grid.front(n, Condition())])

    def begin_cache(self, params: dict[str, Any], rows: int) -> tuple[dict[str, Any], Cache]:
        """Returns (`params` in the form that decoding needs, an empty cache).

        The cache has room for `rows` sequences of L + 1 + T positions: caption, label and all cells.
        """
        transformer, empty = begin_decoding(self.transformer, params["transformer"], rows)
        return params | {"transformer": transformer}, empty(self.grid.words + 1 + self.grid.length)


def make_network(config: GridModel, grid: Grid, causal: bool) -> GridNetwork:
    """Returns the network of a config for these grids. causal: whether a cell sees only earlier cells, or all."""
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

    u: logits without conditions. Ho and Salimans 2022, equation 6, with w = guidance - 1.

    logits: [2 n, ...], first c and then u. Or [n, ...], only c, if there is no guidance: then both results are c.
    """
    if len(logits) == n:
        return logits, logits
    c, u = logits[:n], logits[n:]
    return c, u + guidance * (c - u)
