"""Builds the GenerativeModel of a model of token grids from the model's loss, evaluation and sampling functions."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params
from gen.families import learner
from gen.families.grid.grid import Grid, GridModel, GridRequest, mean_over_tokens
from gen.families.grid.network import GridNetwork
from gen.networks.transformer import RULES


class GridFunctions(Protocol):
    """Interface of a model of token grids. `learner.family` takes loss, evaluate and sample, and describes them."""

    @property
    def config(self) -> GridModel: ...
    @property
    def network(self) -> GridNetwork: ...

    def loss(self, params: dict[str, Params], batch: Batch, keys: Key) -> Array: ...
    def evaluate(self, params: dict[str, Params], batch: Batch, keys: Key) -> tuple[Array, Metrics]: ...
    def sample(self, params: dict[str, Params], keys: Key, given: Batch, request: Any) -> dict[str, Array]: ...


def assemble(model: GridFunctions, steps: int, request: type[GridRequest], how: str, name: str) -> GenerativeModel:
    """Returns the GenerativeModel that is trained, evaluated and sampled with the functions of `model`.

    steps: number of updates of the whole run, which schedules read.
    request: the class of the argument `request` of `model.sample`.
    how: how the nats of a token are computed, such as "each given the tokens before it". Stored next to each score.
    name: name of the metric that is the nats of a whole grid: "nll", or "nll_bound" for an upper bound.
    """
    built = learner.family(
        model.config,
        steps,
        init=model.network.init,
        loss=model.loss,
        evaluate=model.evaluate,
        sample=model.sample,
        request=request,
        rules=RULES,
        protocol=grid_protocol(model.network.grid, how, name),
    )
    return built._replace(summarize=partial(mean_over_tokens, name=name))


def grid_protocol(grid: Grid, how: str, name: str) -> dict[str, dict[str, object]]:
    """Returns how each metric of `measure_grids` is estimated, {metric: {setting: value}}. how, name: see `assemble`.

    It is stored next to each score, so that only comparable scores are compared.
    """
    tokens: dict[str, object] = {"tokens": how, "conditional": grid.conditions.names}
    found = {"loss": tokens, name: tokens | {"unit": "nats"}}
    return found if grid.pixels is None else found | {"bits_per_dim": tokens | {"of": name}}
