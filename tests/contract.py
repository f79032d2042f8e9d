"""Helpers of the contract tests: choose the configs that are tested, and train a tiny form of a config on an engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from _pytest.mark import ParameterSet

from gen import config as configs
from gen.config import Config, Parallel
from gen.core import Dataset, GenerativeModel, HostBatch, State
from gen.data.preprocess import with_preprocess
from gen.derived import ToText
from gen.networks.unet import UNet
from gen.optim import Optimizer
from gen.runtime.engine import Engine, compile_engine
from gen.runtime.feed import feed

ROOT = Path(__file__).parent.parent
OWN = (ROOT / "configs", ROOT / "examples")
"""Folders whose configs belong to the project."""
BUILT_IN = ("digits", "pydoc")
"""Names of data sets that come with Python packages. They are the smallest, so their configs compile fastest."""
ENGINES = {
    "pmap on 1": Parallel(devices=1),
    "pmap on 2": Parallel(devices=2),
    "pmap on 4": Parallel(devices=4),
    "pmap on 8": Parallel(devices=8),
    "jit on 1": Parallel(engine="jit", devices=1),
    "jit on 4": Parallel(engine="jit", devices=4),
    "fsdp on 4": Parallel(engine="jit", devices=4, fsdp=True),
    "tensor 2 on 2": Parallel(engine="jit", devices=2, tensor=2),
    "fsdp and tensor 2 on 8": Parallel(engine="jit", devices=8, fsdp=True, tensor=2),
}


@cache
def load(file: str) -> Config:
    """Returns the config of a file. Loading it again would make other classes, which equal none of the first ones."""
    return configs.load(file)


def config_files() -> list[str]:
    """Returns all config files of the project, sorted by name."""
    return sorted((str(path) for folder in OWN for path in folder.glob("*.py")), key=lambda file: Path(file).stem)


def one_per_family(files: Iterable[str]) -> list[str]:
    """Returns one config file for each class of model, preferably on built-in data, and conditional."""
    return _one_per(files, family_name)


def one_per_folder(files: Iterable[str]) -> list[str]:
    """Returns one config file for each folder of families, such as gen/families/language, preferably on built-in data, and conditional."""
    return _one_per(files, lambda config: type(config.model).__module__.rpartition(".")[0])


def family_name(config: Config) -> str:
    """Returns the class of the model, and whether its sources are texts or grids: these have encoders of their own."""
    model, grids = type(config.model), " of grids" if isinstance(config.data, ToText) else ""
    return f"{model.__module__}.{model.__qualname__}{grids}"


def _one_per(files: Iterable[str], key: Callable[[Config], str]) -> list[str]:
    chosen: dict[str, str] = {}
    # A conditional model has more that can go wrong: its labels, and those that are left out.
    for file in sorted(files, key=lambda file: (not is_built_in(file), not is_conditional(file))):
        chosen.setdefault(key(load(file)), file)
    return sorted(chosen.values(), key=lambda file: Path(file).stem)


def is_own(file: str) -> bool:
    """Returns whether a config belongs to the project, not to a fork."""
    return Path(file).resolve().parent in OWN


def is_built_in(file: str) -> bool:
    """Returns whether the data of a config come with a Python package."""
    return getattr(load(file).data, "name", "") in BUILT_IN


def is_conditional(file: str) -> bool:
    """Returns whether the model of a config reads labels or captions."""
    return bool(getattr(load(file).model, "conditional", False))


def has_unet(file: str) -> bool:
    """Returns whether the network of a config is a U-Net, which compiles three times as long as the others."""
    return isinstance(getattr(load(file).model, "network", None), UNet)


def as_parameters(files: Iterable[str], left_out: Mapping[str, Collection[str]]) -> list[ParameterSet]:
    """Returns pytest parameters named after the files' stems. left_out: {mark: files whose tests get it}.

    The project's code must not cause warnings. A fork's code may: it need not know the rules of this repository.
    """
    lenient = pytest.mark.filterwarnings("default")
    marks = {file: [] if is_own(file) else [lenient] for file in files}
    for mark, marked in left_out.items():
        for file in marked:
            marks[file].append(getattr(pytest.mark, mark))
    return [pytest.param(file, id=Path(file).stem, marks=marks[file]) for file in marks]


def hold_other_players(config: Config, loss: str) -> Config:
    """Returns the config that trains the player of one loss only. All parameters of the other players keep their values.

    The loss "loss/NAME" belongs to the optimizer in the model's field "NAME_optim". Any other loss belongs to all optimizers.
    """
    optimizers = [f.name for f in fields(config.model) if isinstance(getattr(config.model, f.name), Optimizer)]
    player = f"{loss.removeprefix('loss/')}_optim"
    others = [name for name in optimizers if name != player] if player in optimizers else []
    return replace_model(config, **dict.fromkeys(others, Optimizer(rule="frozen")))


def replace_model(config: Config, **changes: object) -> Config:
    """Returns the config with fields of its model replaced. Skips the test if the model lacks one of them."""
    if missing := changes.keys() - {f.name for f in fields(config.model)}:
        pytest.skip(f"{type(config.model).__name__} has no field {min(missing)}")
    return replace(config, model=replace(config.model, **changes))


class Parts(NamedTuple):
    """A config, built."""

    data: Dataset
    model: GenerativeModel
    engine: Engine
    batch: Callable[[int], HostBatch]
    """Step -> the batch, or stacked batches, that the engine takes."""


def build(config: Config, parallel: Parallel = Parallel(devices=1)) -> Parts:
    """Returns the parts of a config. Each is built and compiled once for all tests of a process."""
    return _build(config, parallel, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _build(config: Config, parallel: Parallel, double: bool) -> Parts:
    data = config.data.build()
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    engine = compile_engine(model, parallel, config.seed, config.data.batch_size)
    return Parts(data, model, engine, feed(data, model, config, engine.rows))


def run(config: Config, parallel: Parallel, steps: int) -> tuple[State, list[dict[str, np.ndarray]]]:
    """Trains for some steps. Returns the state and the metrics of each step."""
    _, _, engine, batch = build(config, parallel)
    state, metrics = engine.init(), []
    for step in range(steps):
        state, of_step = engine.update(state, batch(step))
        metrics.append(jax.device_get(of_step))
    return state, metrics


def leaves(tree: object) -> dict[str, np.ndarray]:
    """Returns {path: array} of a tree."""
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_close(a: object, b: object, rtol: float) -> None:
    """Asserts that two trees differ by at most rtol, relative to the largest number of each leaf."""
    left, right = leaves(a), leaves(b)
    assert left.keys() == right.keys()
    for name in left:
        scale = max(np.abs(left[name]).max(initial=0), 1e-3)
        assert np.abs(left[name] - right[name]).max(initial=0) <= rtol * scale, name


def assert_same(a: object, b: object) -> None:
    """Asserts that two trees are equal bit for bit."""
    left, right = leaves(a), leaves(b)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def assert_engines_agree(config: Config, steps: int, rtol: float, engines: Iterable[str] = ENGINES) -> None:
    """Asserts that training on several engines and numbers of devices gives the state and the metrics of one device."""
    state, metrics = run(config, Parallel(devices=1), steps)
    for engine in engines:
        other, other_metrics = run(config, ENGINES[engine], steps)
        assert_close(state, other, rtol)
        assert_close(metrics, other_metrics, rtol)


def drift(tree: object) -> list[str]:
    """Returns the paths of arrays whose replicas on 4 devices are not equal bit for bit."""
    shards = {
        jax.tree_util.keystr(path): [np.asarray(s.data) for s in x.addressable_shards]
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert all(len(replicas) == 4 for replicas in shards.values())
    return [name for name, replicas in shards.items() if any(not np.array_equal(replicas[0], r) for r in replicas)]
