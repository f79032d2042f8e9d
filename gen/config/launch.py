"""Settings that may change each time a run is started: engine and devices, checkpoints, logs, alarms, faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gen.config.alarm import Alarm
from gen.errors import UserError, check_fraction, check_not_negative, check_positive


@dataclass(frozen=True)
class Parallel:
    """The engine that runs the training step, and its devices and hosts."""

    engine: Literal["pmap", "jit"] = "pmap"
    """pmap: data parallelism with one replica per device. jit: one program over all devices, which can shard the state."""
    fsdp: bool = False
    """Shard parameters, moving averages and optimizer state over the devices. Needs engine jit."""
    tensor: int = 1
    """Number of devices in each group that processes the same examples, with each layer's matrices divided among them (tensor
    parallelism). Above 1 it needs engine jit."""
    devices: int | None = None
    """Number of devices to use. None: all."""
    cpu_devices: int | None = None
    """Number of JAX devices to split the CPU into. None: the CPU is not split."""
    coordinator: str | None = None
    """HOST:PORT of the process with --parallel.host 0, to which the others connect. None: taken from the scheduler."""
    hosts: int | None = None
    """Number of processes that train together. None: taken from the cluster's scheduler, or 1 if there is none."""
    host: int | None = None
    """Index of this process, in [0, hosts). None: taken from the cluster's scheduler."""
    startup_seconds: int = 300
    """Seconds that the hosts wait for each other at the start."""
    heartbeat_seconds: int = 20
    """Seconds without a sign of life after which a host counts as dead. The others then exit, so that the scheduler restarts all."""
    grace_seconds: float = 60.0
    """Seconds allowed for saving after SIGTERM or SIGUSR1. After that, the process exits without saving."""

    def __post_init__(self):
        # pmap would silently ignore these, and a user would wait for memory that is never saved.
        for name, shards in (("fsdp", self.fsdp), ("tensor", self.tensor != 1)):
            if shards and self.engine != "jit":
                raise UserError(f"{name} shards the state, but pmap replicates it; the fix: --parallel.engine jit")
        counts = ("tensor", "devices", "cpu_devices", "hosts", "startup_seconds", "heartbeat_seconds", "grace_seconds")
        check_positive(**{f"parallel.{k}": v for k in counts if (v := getattr(self, k)) is not None})
        # Hosts count from 0, which is easily missed in a launch script.
        if self.host is not None and self.host not in range(self.hosts or 0):
            raise UserError(
                f"parallel.host is {self.host}; with --parallel.hosts N it must be between 0 and N - 1 (hosts: {self.hosts})"
            )


@dataclass(frozen=True)
class Alarms:
    """Alarms while training: limits on the metrics and on a small set of generated images, checked at evaluations and saves."""

    action: Literal["off", "warn", "stop"] = "off"
    """off: check only the metrics, and print each alarm. warn: check generated images, too. stop: like warn, and an alarm ends the
    run without saving; earlier checkpoints are kept."""
    samples: int = 256
    """Number of images to generate for each check, and number of real images to compare them with."""
    classes: float = 0.6
    """Minimum number of predicted classes, as a fraction of the number for real images (only for data with labels)."""
    entropy: float = 0.6
    """Minimum entropy of the predicted classes, as a fraction of the entropy for real images (only for data with labels)."""
    duplicates: float = 0.25
    """Maximum fraction of generated images that have a near duplicate among the others (birthday paradox test)."""
    spread: float = 0.6
    """Minimum mean distance between two generated images, as a fraction of the mean distance between two real images."""
    saturation: float = 0.95
    """Maximum fraction of held-out examples on which the discriminator's loss is nearly minimal (it has won)."""
    codes: float = 0.5
    """Minimum fraction of a tokenizer's codes that occur in the validation split."""
    gradient: tuple[float, float] = (1e-7, 1e4)
    """Minimum and maximum norm of the gradient of each player (a network with its own optimizer)."""
    request: tuple[str, ...] = ()
    """Sampling options of the family as FIELD=VALUE, such as truncation=0.5, for the generated images."""
    extra: tuple[Alarm, ...] = ()
    """More alarms: objects of subclasses of gen.config.Alarm, given in a config file."""

    def __post_init__(self):
        if self.samples < 2:
            raise UserError(
                f"alarms.samples is {self.samples}; it must be at least 2, since images are compared in pairs"
            )
        fractions = ("classes", "entropy", "duplicates", "saturation", "codes")
        check_fraction(**{f"alarms.{name}": getattr(self, name) for name in fractions})
        check_not_negative(**{"alarms.spread": self.spread})
        least, most = self.gradient
        check_not_negative(**{"the minimum of alarms.gradient": least})
        # The maximum may be infinite. A maximum below the minimum would make every gradient an alarm.
        if not least < most:
            raise UserError(f"alarms.gradient is {least:g} {most:g}; give the minimum, then a larger maximum")


@dataclass(frozen=True)
class Save:
    """When checkpoints are saved, and which are kept."""

    every: int = 1000
    """Steps between checkpoints. The last step is always saved."""
    keep: int = 2
    """Number of latest checkpoints to keep, at least 2. The best and the latest one for a rollback are also kept."""
    best: tuple[str, Literal["min", "max"]] | None = None
    """Validation metric that chooses the best checkpoint: METRIC min or METRIC max. If an evaluation is the best so far, a checkpoint
    is saved at its step, too. None: the latest checkpoint is the best."""

    def __post_init__(self):
        check_positive(**{"save.every": self.every})
        # If the only checkpoint were replaced, a crash while writing the new one would lose the run.
        if self.keep < 2:
            raise UserError(
                f"save.keep is {self.keep}; it must be at least 2, so that one checkpoint is whole while another is written"
            )


@dataclass(frozen=True)
class Faults:
    """Handling of bad steps and of runs that explode. A step is bad if its metrics are not finite, or if its loss or gradient norm
    is far above the run's history."""

    action: Literal["stop", "skip", "rollback"] = "stop"
    """stop: end the run if metrics are not finite, and warn of other bad steps. skip: discard bad steps. rollback: return to the
    weights and the optimizer of the last regular checkpoint, and continue with the batches after the bad step. `skip` and
    `rollback` hold a second copy of the state during each step."""
    spike: float | None = None
    """A step is also bad if its loss exceeds the running mean of losses by this number of standard deviations. Action
    stop then ends the run at any bad step. None: this check is off."""
    patience: int = 10
    """Stop the run after this number of discarded steps since the last regular checkpoint (one that save.every asked for)."""
    explosion: int | None = 200
    """Stop the run if a counter reaches this number. A step whose loss is far above its best so far adds 1, and any other step
    subtracts 1 (never below 0). Models with several players, such as GANs, also count gradient norms. None: only warn."""

    def __post_init__(self):
        check_positive(**{"faults.patience": self.patience})
        for name in ("spike", "explosion"):
            if (value := getattr(self, name)) is not None:
                check_positive(**{f"faults.{name}": value})


@dataclass(frozen=True)
class Log:
    """Settings of the printed and written metrics."""

    every: int = 50
    """Steps between two lines of training metrics, printed and in metrics.jsonl."""
    tensorboard: bool = True
    """Whether to write TensorBoard events into the run directory."""
    request: tuple[str, ...] = ()
    """Sampling options of the family as FIELD=VALUE, such as label=3 or n=16, for the samples at each evaluation."""

    def __post_init__(self):
        check_positive(**{"log.every": self.every})


def profile_steps(text: str) -> range:
    """Parses "STEP:COUNT". Returns the steps to profile: COUNT steps from STEP, which is at least 1.

    Raises: UserError for another format.
    """
    first, _, count = text.partition(":")
    if not (first.isdecimal() and count.isdecimal() and int(first) > 0 and int(count) > 0):
        raise UserError(f"profile is {text!r}; it must be STEP:COUNT, for instance 100:5")
    return range(int(first), int(first) + int(count))
