"""Makes a GenerativeModel of the functions of a model of grids."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params
from gen.families import learner
from gen.families.grid.grid import Grid, GridModel, GridRequest, mean_over_tokens
from gen.families.grid.network import GridNetwork
from gen.networks.transformer import RULES


class GridFunctions(Protocol):
    """The functions of a model of grids. They are arguments of `learner.family`, which describes them."""

    @property
    def config(self) -> GridModel: ...
    @property
    def network(self) -> GridNetwork: ...

    def loss(self, params: dict[str, Params], batch: Batch, keys: Key) -> Array: ...
    def evaluate(self, params: dict[str, Params], batch: Batch, keys: Key) -> tuple[Array, Metrics]: ...
    def sample(self, params: dict[str, Params], keys: Key, given: Batch, request: Any) -> dict[str, Array]: ...


def assemble(model: GridFunctions, steps: int, request: type[GridRequest], how: str, name: str) -> GenerativeModel:
    """Returns the GenerativeModel with the functions of `model`.

    steps: updates of the whole run.
    request: the class of `sample`'s argument `request`.
    how: how the nats of a token are estimated, as text for the protocol.
    name: name of the metric "nats of a whole grid", such as "nll".
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
    """Returns the GenerativeModel.protocol of the metrics of `measure_grids`: how each is estimated.

    It is {metric: {setting: value}}. how, name: see `assemble`.
    """
    tokens: dict[str, object] = {"tokens": how, "conditional": grid.conditions.names}
    found = {"loss": tokens, name: tokens | {"unit": "nats"}}
    return found if grid.pixels is None else found | {"bits_per_dim": tokens | {"of": name}}
