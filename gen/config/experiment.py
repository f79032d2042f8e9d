"""An experiment as one frozen dataclass, and how it is loaded from a Python file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gen.config import launch
from gen.config.encoding import MAX_INT, walk
from gen.config.launch import Alarms, Faults, Log, Parallel, Save
from gen.core import LAUNCH, Data, Family
from gen.errors import UserError, check_positive, check_seed
from gen.optim import adapters


@dataclass(frozen=True)
class Config:
    """One experiment. What is not marked LAUNCH is its identity: a run directory belongs to one identity."""

    model: Family
    """The family and its hyper-parameters."""
    data: Data
    """The examples."""
    steps: int
    """Updates to do."""
    seed: int = 0
    """Seed of the initialization, the order of the data and all noise."""
    init_from: str | None = None
    """A run whose best checkpoint is the start: its network and its tokenizer are taken over."""
    finetune: Literal["full", "lora", "prompt"] = "full"
    """What is trained of it: all; low-rank changes of some matrices; a prompt of vectors."""
    lora: adapters.LoRA = adapters.LoRA()
    """How finetune lora adapts the base."""
    prompt: adapters.Prompt = adapters.Prompt()
    """How finetune prompt does."""
    base: str | None = field(default=None, metadata=LAUNCH)
    """Where the run of init_from is now, if it was moved."""
    steps_per_call: int = field(default=1, metadata=LAUNCH)
    """Steps of one compiled program, for models whose step takes less time than asking for it; what is due between ends a call, and
    signals are heeded after one. A processor makes convolutions no faster so, and compiles longer."""
    evaluate_every: int = field(default=1000, metadata=LAUNCH)
    """Steps between evaluations on the validation split (0: at the end only)."""
    workdir: str | None = field(default=None, metadata=LAUNCH)
    """The run directory; None: runs/NAME of the config."""
    parallel: Parallel = field(default=Parallel(), metadata=LAUNCH)
    """Engine and devices."""
    save: Save = field(default=Save(), metadata=LAUNCH)
    """Checkpoints."""
    log: Log = field(default=Log(), metadata=LAUNCH)
    """What is printed and written while training."""
    alarms: Alarms = field(default=Alarms(), metadata=LAUNCH)
    """What is watched while training, and what an alarm does."""
    faults: Faults = field(default=Faults(), metadata=LAUNCH)
    """What is done about a step whose metrics are not finite, or whose loss jumps."""
    profile: str | None = field(default=None, metadata=LAUNCH)
    """STEP:COUNT, so many steps from there on, and what else their calls make, are traced into the run directory, for TensorBoard
    and Perfetto."""

    def __post_init__(self):
        check_positive(steps=self.steps, steps_per_call=self.steps_per_call)
        check_seed(self.seed)
        if large := [x for x in walk(self) if isinstance(x, int) and abs(x) >= MAX_INT]:
            raise UserError(f"{large[0]} is too large; a config's whole numbers are below 2**53")
        if self.finetune != "full" and self.init_from is None:
            raise UserError(f"finetune {self.finetune} adapts a run that is there; the fix: --init-from RUN")
        if self.steps_per_call > 1 and (self.faults.spike is not None or self.faults.action == "rollback"):
            raise UserError(
                f"a spike, or a rollback, is for the very next steps, and steps_per_call makes {self.steps_per_call} at once; the "
                "fix: --steps-per-call 1"
            )
        if self.profile is not None:
            launch.profile_steps(self.profile)
        if self.evaluate_every < 0:
            raise UserError(
                f"evaluate_every is {self.evaluate_every}; 0 evaluates at the end only, else it counts steps"
            )


def load(name: str, root: Path = Path("configs")) -> Config:
    """The `config` of a config file: a path, or the NAME of `root/NAME.py`.

    Raises: UserError for an unknown name (with the nearest), or a file without `config`.
    """
    path = Path(name) if name.endswith(".py") else root / f"{name}.py"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.py"))
        near = difflib.get_close_matches(path.stem, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"{path.parent}/ has {', '.join(known) or 'none'}"
        raise UserError(f"no config file {path}; {hint}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "config", None), Config):
        raise UserError(f"{path} defines no `config = Config(...)`")
    return module.config
