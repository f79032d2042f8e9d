"""Masked model of token grids: predicts masked cells from all other cells (Chang et al. 2022; Austin et al. 2021).

The fraction of masked cells is drawn from [0, 1] for each example, so the loss is a bound on the likelihood of a grid
(Sahoo et al. 2024). A grid is sampled in a few turns (passes of the network). Each turn writes many cells at once,
anywhere in the grid, so any gap can be filled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.axis import split_keys
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec
from gen.errors import check_not_negative, check_positive
from gen.families.conditions import Condition
from gen.families.grid.assemble import assemble
from gen.families.grid.grid import GridModel, GridRequest, mean_tokens, measure_grids
from gen.families.grid.network import GridNetwork, make_network
from gen.families.language import losses, masking
from gen.families.language.sampling import fold_in

PRIMES = (2, 3, 5, 7, 11, 13)
"""Bases of the Halton sequence, one for each axis of a grid."""


@dataclass(frozen=True)
class GridMLM(GridModel):
    """Hyper-parameters of a masked model of token grids. The tokens of a cell (a position) are masked together."""

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """Returns the model for grids of this spec. Raises: UserError if the data don't fit this config."""
        model = MaskedGrids(self, make_network(self, self.grid(spec), causal=False))
        how = "a fraction of the cells drawn from [0, 1] masked, one draw per grid"
        return assemble(model, steps, Request, how, "nll_bound")


@dataclass(frozen=True)
class Request(GridRequest):
    """Settings for generating grids."""

    turns: int = 12
    """Number of passes (turns) over the grid. Each turn draws all unknown cells, and keeps some of them."""
    order: Literal["spread", "confidence", "random"] = "spread"
    """Which of the drawn cells a turn keeps. spread: cells far from each other, few in the first turns and many in the
    last (Besnier et al. 2025). confidence: the cells of which the model is most certain, as many as with spread (Chang
    et al. 2022). random: random cells, on average the same number in each turn."""
    noise: float = 4.5
    """For order confidence: temperature of the Gumbel noise that is added to the log-probabilities of the cells. It
    falls linearly to 0 in the last turn. Larger values choose cells more at random."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(turns=self.turns)
        check_not_negative(noise=self.noise)


class Draft(NamedTuple):
    """Grids that are not finished."""

    tokens: Array
    """int32 [B, T, J]. PADDING where a token is unknown."""
    log_probs: Array
    """float32 [B, T, J]. Log-probability of each drawn token in nats, as in `Drawn`. 0 for other tokens."""
    unknown: Array
    """bool [B, T]. Whether the cell is still to be drawn."""


@dataclass(frozen=True)
class MaskedGrids:
    """The masked model: p(masked cell | cells that are not masked, condition).

    The condition is the label and the caption. The argument `params` of the methods is described at GridNetwork.
    """

    config: GridMLM
    network: GridNetwork

    def output(self, params: dict[str, Params], front: Array, cells: Array, masked: Array, keys: Key | None) -> Array:
        """Returns the network's output at each cell, [B, T, ...], from which GridNetwork.logits predicts the cell.

        front: caption and label, int32 [B, L + 1, J], see Grid.front. cells: int32 [B, T, J]. masked: bool [B, T],
        whether the network sees the mask instead of the cell. keys: dropout keys [B]. None: no dropout.
        """
        shown = jnp.where(masked[..., None], self.network.grid.mask, cells)
        read = jnp.concatenate([front, shown], axis=1)
        output, _ = self.network.read(params, read, self.network.positions[: read.shape[1]], keys)
        return output[:, front.shape[1] :]

    def nats(
        self, params: dict[str, Params], batch: Batch, condition: Condition, mask_keys: Key, keys: Key | None = None
    ) -> tuple[Array, Array]:
        """Masks random cells. Returns (nats, log Z) for J tokens of T cells, [B, T, J] each.

        nats: -log p(token | shown cells, condition) / t at masked tokens, where t is the probability with which the
        example's cells are masked, and 0 at tokens that are not masked. On average, the sum of nats is an upper bound
        on -log p(grid | condition). Z: normalizer of the softmax.

        mask_keys: [B]. keys: dropout keys [B]. None: no dropout.
        """
        grid = self.network.grid
        cells = grid.split(batch["tokens"])
        masks = masking.draw_bound_masks(mask_keys, cells.shape[1], self.config.real_dtype())
        output = self.output(params, grid.front(len(cells), condition), cells, masks.chosen, keys)
        nats, log_z = losses.cross_entropy(self.network.logits(params, output, cells), cells)
        # The bound is a sum over the masked cells alone: cells that are shown add nothing.
        return nats * (masks.chosen * masks.scale)[..., None], log_z

    def loss(self, params: dict[str, Params], batch: Batch, keys: Key) -> Array:
        """Returns the bound on -log p(grid | condition) in nats per counted token of each example, [B].

        All tokens are counted if the batch has no "counted". The gradient also has the term z_loss * log(Z)^2, where Z
        is the normalizer of the softmax and z_loss is in the config.

        keys: [B], for the masks, for dropped labels and captions, and for dropout.
        """
        mask_keys, label_keys, dropout_keys = split_keys(keys, 3)
        condition = self.config.drop(self.network.grid, batch, label_keys)
        nats, log_z = self.nats(params, batch, condition, mask_keys, dropout_keys)
        return mean_tokens(self.network.grid, batch, losses.with_z_loss(nats, log_z, self.config.z_loss))

    def evaluate(self, params: dict[str, Params], batch: Batch, keys: Key) -> tuple[Array, Metrics]:
        """Returns the bound in nats per counted token of each grid, [B], and metrics of each grid, {metric: [B]}.

        For the metrics, see `measure_grids`. "nll_bound" bounds the nats of a whole grid. keys: [B], for the masks.
        """
        nats, _ = self.nats(params, batch, self.network.grid.conditions.of(batch), keys)
        return measure_grids(self.network.grid, batch, nats, "nll_bound")

    def sample(self, params: dict[str, Params], keys: Key, given: Batch, request: Request) -> dict[str, Array]:
        """Draws n = request.n grids in request.turns turns. Returns "samples", int32 [n, *grid].

        Also returns "log_probs", float32 [n, *grid], the log-probability of each drawn token in nats, given the cells
        that were known before its turn (see `Drawn`). If the model reads labels or captions, it also returns "labels"
        int32 [n] or "captions" int32 [n, L].

        keys: [n]. given: may have labels and captions (see Conditions.to_generate), and "tokens" and "known" (see
        Grid.known). Known tokens are kept, and the others are drawn given all known tokens.

        Raises: UserError for a label that the model does not have, guidance without label dropout, or a mode without
            input.
        """
        grid = self.network.grid
        condition = self.config.condition(grid, request, given)
        front = self.network.fronts(request.n, condition, request.guidance)
        tokens = grid.known(given, request)
        # A cell is unknown if any of its tokens is. Its known tokens are kept.
        draft = Draft(tokens, jnp.zeros(tokens.shape, jnp.float32), (tokens < 0).any(-1))
        to_write = draft.unknown.sum(1)
        # The turns have the numbers below request.turns.
        places = spread(grid.cells, fold_in(keys, request.turns))

        def turn(i: Array, draft: Draft) -> Draft:
            return self.write(params, front, draft, to_write, places, fold_in(keys, i), i, request)

        draft = jax.lax.fori_loop(0, request.turns, turn, draft)
        made = {"samples": grid.join(draft.tokens), "log_probs": grid.join(draft.log_probs)}
        return made | condition.arrays()

    def write(
        self,
        params: dict[str, Params],
        front: Array,
        draft: Draft,
        to_write: Array,
        places: Array,
        keys: Key,
        i: Array,
        request: Request,
    ) -> Draft:
        """Makes turn i of request.turns, counted from 0: draws all unknown cells, and keeps some of them.

        front: captions and labels, see GridNetwork.fronts. draft: the grids after the turns before. to_write: int32
        [n], number of unknown cells before the first turn. places: [n, T], see `spread`. keys: [n], of this turn.
        """
        times = len(front) // request.n
        # Unknown cells hold PADDING, which is no row of the embedding. They are masked, so any token will do.
        cells, masked = jnp.tile(jnp.maximum(draft.tokens, 0), (times, 1, 1)), jnp.tile(draft.unknown, (times, 1))
        output = self.output(params, front, cells, masked, None)
        # All cells of a turn are drawn independently of each other, given the cells of earlier turns.
        drawn = self.network.draw(params, output, draft.tokens, keys, request)
        # `draw` folds in the indices 0 to J - 1 of a cell's tokens, so J is the first number that is free.
        order_keys = fold_in(keys, self.network.grid.count)
        if request.order == "random":
            now = masking.choose_any(draft.unknown, order_keys, request.turns - i)
        else:
            # Chang et al. 2022, section 3.2: after turn i a fraction cos(pi / 2 (i + 1) / turns) stays unknown.
            done = (i + 1) / request.turns
            left = jnp.floor(to_write * jnp.cos(math.pi / 2 * done)).astype(jnp.int32)
            if request.order == "spread":
                now = choose(draft.unknown, -places, left)
            else:
                noise = request.noise * (1 - done)
                now = choose_confident(draft.unknown, drawn.log_probs.sum(-1), left, order_keys, noise)
        return Draft(
            jnp.where(now[..., None], drawn.tokens, draft.tokens),
            jnp.where(now[..., None], drawn.log_probs, draft.log_probs),
            draft.unknown & ~now,
        )


def choose_confident(unknown: Array, log_probs: Array, left: Array, keys: Key, noise: Array) -> Array:
    """Chooses the drawn cells to keep by their confidence: the log-probability of the drawn tokens plus Gumbel noise.

    Without noise, the easiest cells would always be kept first. Chang et al. 2022, section 3.2.

    Returns bool [B, T]. log_probs: [B, T], of the drawn cells. keys: [B]. noise: scalar, temperature of the Gumbel
    noise. For `unknown` and `left`, see `choose`.
    """

    def draw(key: Key) -> Array:
        return jax.random.gumbel(key, unknown.shape[1:])

    return choose(unknown, log_probs + noise * jax.vmap(draw)(keys), left)


def choose(unknown: Array, score: Array, left: Array) -> Array:
    """Returns which newly drawn cells to keep, bool [B, T]: all unknown cells but the `left` with the lowest scores.

    If a grid has unknown cells, at least one is kept, so that no turn is wasted.

    unknown: bool [B, T]. score: [B, T]. left: int32 [B], number of cells that stay unknown.
    """
    # Sorting twice gives ranks. Known cells get the last ranks.
    rank = jnp.argsort(jnp.argsort(jnp.where(unknown, score, jnp.inf), axis=1), axis=1)
    left = jnp.clip(left, 0, jnp.maximum(unknown.sum(1) - 1, 0))
    return unknown & (rank >= left[:, None])


def spread(cells: tuple[int, ...], keys: Key) -> Array:
    """Returns a random order of the cells of a grid for each key, float32 [B, T]: each cell's place in it, from 0.

    Cells that follow each other in the order lie far apart in the grid. The cells of a turn are drawn independently,
    which is more accurate if they are far apart. The order is that of `halton`, shifted along each axis by a random
    number of cells. A cell that is shifted beyond an edge enters at the opposite edge.

    cells: number of cells on each axis. keys: [B].
    """
    places = jnp.asarray(halton(cells), jnp.float32)

    def one(key: Key) -> Array:
        shift = jax.random.randint(key, (len(cells),), 0, jnp.asarray(cells))
        return jnp.roll(places, shift, tuple(range(len(cells)))).reshape(-1)

    return jax.vmap(one)(keys)


@lru_cache
def halton(cells: tuple[int, ...]) -> np.ndarray:
    """Returns the place of each cell in the order in which the Halton sequence first meets the cells, int32 [*cells].

    The sequence fills a cube evenly. Coordinate a of its point number k is the radical inverse of k in the a-th prime
    base, see `mirror`. Halton 1960.

    cells: number of cells on each axis.
    """
    places, found, point = np.full(cells, -1, np.int32), 0, 0
    while found < places.size:
        at = tuple(int(size * mirror(point, base)) for size, base in zip(cells, PRIMES[: len(cells)], strict=True))
        if places[at] < 0:
            places[at], found = found, found + 1
        point += 1
    return places


def mirror(number: int, base: int) -> float:
    """Returns the radical inverse, in [0, 1): the number's digits in this base, mirrored at the radix point.

    For example, 6 = 110 in base 2 gives 0.011 = 3/8.
    """
    value, place = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        place /= base
        value += digit * place
    return value
