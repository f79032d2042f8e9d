"""Checks that no schedule of a config has a warm-up that is longer than the run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace

from gen.config.experiment import Config
from gen.errors import UserError
from gen.optim import Schedule


def check_warmups(config: Config) -> None:
    """Raises: UserError if the `warmup` of a schedule is longer than the run. The schedule would never reach its peak."""
    for path, schedule in find_schedules(config.model, "model"):
        warmup = getattr(schedule, "warmup", 0)
        steps = count_schedule_steps(config, path)
        if warmup > steps:
            longer = config.steps * -(-warmup // steps)
            shorter = f'--{path.replace("_", "-")} "{replace(schedule, warmup=steps // 10)}"'
            if re.search(r"\.\d", path):
                shorter = f"warmup={steps // 10} in the config"  # no option names an element of a tuple
            raise UserError(
                f"{path} warms up for {warmup} steps, and the run has {steps}, so it would never reach its peak; the fix: "
                f"{shorter}, or a longer run: --steps {longer}"
            )


def count_schedule_steps(config: Config, path: str) -> int:
    """Returns the number of steps that a schedule counts in a whole run. path: where it is, such as "model.optim.lr".

    The result is larger than `config.steps` for a discriminator that makes several steps in each step of the run.
    """
    return config.model.count_steps(path.split(".")[1], config.steps)


def find_schedules(x: object, path: str) -> Iterator[tuple[str, Schedule]]:
    """Yields (path, schedule) for each schedule inside x, at any depth, such as ("model.optim.lr", WarmupCosine(...)).

    x: a config, or a value inside a config. path: the path of x, such as "model". Yielded paths begin with it. An
    element of a tuple has its index as its name.
    """
    if isinstance(x, Schedule):
        yield path, x
        return
    parts: dict[str, object] = {f.name: getattr(x, f.name) for f in fields(x)} if is_dataclass(x) else {}
    if isinstance(x, tuple):
        parts = {str(i): element for i, element in enumerate(x)}
    for name, part in parts.items():
        yield from find_schedules(part, f"{path}.{name}")
