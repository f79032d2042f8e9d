"""The config of an experiment: one frozen dataclass with everything that train.py needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gen.config import launch
from gen.config.encoding import MAX_INT, walk
from gen.config.launch import Alarms, Faults, Log, Parallel, Save
from gen.core import LAUNCH, Data, Family
from gen.errors import UserError, check_positive, check_seed
from gen.optim import adapters


@dataclass(frozen=True)
class Config:
    """The config of one run. Fields with the metadata LAUNCH may change each time the run is started.

    All other fields must stay the same, except that `steps` may change if no schedule depends on it.
    """

    model: Family
    """The family and its hyper-parameters."""
    data: Data
    """The training data."""
    steps: int
    """Number of training steps (updates) of the whole run."""
    seed: int = 0
    """Seed of the initialization, the order of the data and all noise."""
    init_from: str | None = None
    """Run directory to start from: its best checkpoint, network and tokenizer are used."""
    finetune: Literal["full", "lora", "prompt"] = "full"
    """Weights to train if init_from is set. full: all weights; lora: low-rank changes of some matrices; prompt: a few vectors."""
    lora: adapters.LoRA = adapters.LoRA()
    """Settings of finetune lora."""
    prompt: adapters.Prompt = adapters.Prompt()
    """Settings of finetune prompt."""
    base: str | None = field(default=None, metadata=LAUNCH)
    """Run directory to use instead of init_from, if that run was moved since this run began."""
    steps_per_call: int = field(default=1, metadata=LAUNCH)
    """Training steps per compiled call. Above 1 it hides the dispatch time of small models. Evaluations and saves end a call
    early; signals are handled between calls. Models with convolutions don't get faster by it on a CPU, and compile longer."""
    evaluate_every: int = field(default=1000, metadata=LAUNCH)
    """Steps between evaluations on the validation split. 0: only at the end."""
    workdir: str | None = field(default=None, metadata=LAUNCH)
    """The run directory. None: runs/NAME of the config."""
    parallel: Parallel = field(default=Parallel(), metadata=LAUNCH)
    """Engine, devices and hosts."""
    save: Save = field(default=Save(), metadata=LAUNCH)
    """Checkpoints."""
    log: Log = field(default=Log(), metadata=LAUNCH)
    """Printed and written metrics."""
    alarms: Alarms = field(default=Alarms(), metadata=LAUNCH)
    """Limits to watch while training, and the action if one is violated."""
    faults: Faults = field(default=Faults(), metadata=LAUNCH)
    """Handling of steps whose metrics are not finite or jump, and of runs that explode."""
    profile: str | None = field(default=None, metadata=LAUNCH)
    """STEP:COUNT records a profile of COUNT steps, beginning with STEP (from 1), for TensorBoard and Perfetto. It is written into
    the run directory. If a compiled call makes several steps, it is recorded as a whole."""

    def __post_init__(self):
        check_positive(steps=self.steps, steps_per_call=self.steps_per_call)
        check_positive(**{"--data.batch-size": self.data.batch_size})
        check_seed(self.seed)
        # The config may come from a stranger's run, and larger integers would overflow later, without a clear error.
        if large := [x for x in walk(self) if isinstance(x, int) and abs(x) >= MAX_INT]:
            raise UserError(f"{large[0]} is too large; integers of a config must be below 2**53")
        if self.finetune != "full" and self.init_from is None:
            raise UserError(f"finetune {self.finetune} adapts a trained run; the fix: --init-from RUN")
        # Parsed here so that a wrong text is an error before training begins.
        if self.profile is not None:
            launch.profile_steps(self.profile)
        if self.evaluate_every < 0:
            raise UserError(f"evaluate_every is {self.evaluate_every}; it must be 0 (only at the end) or above")
