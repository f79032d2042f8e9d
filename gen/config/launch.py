"""Launch settings: engine and devices, checkpoints, logs, alarms and faults. They may change between launches of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gen.errors import UserError, check_positive


@dataclass(frozen=True)
class Parallel:
    """Engine, devices and hosts."""

    engine: Literal["pmap", "jit"] = "pmap"
    """pmap: data parallel, one replica a device; jit: one program over a mesh, which can shard the state."""
    fsdp: bool = False
    """Shard parameters, averages and optimizer state over the devices (engine jit)."""
    tensor: int = 1
    """Devices that share each example and divide the matrices of each layer (engine jit)."""
    devices: int | None = None
    """Number of devices to use; None: all."""
    cpu_devices: int | None = None
    """Split the processor into so many JAX devices."""
    coordinator: str | None = None
    """HOST:PORT of host 0, where the cluster doesn't say so itself."""
    hosts: int | None = None
    """Number of processes that train together; None: as the cluster says, else one."""
    host: int | None = None
    """Which of them this is, from 0; None: as the cluster says."""
    startup_seconds: int = 300
    """How long the hosts wait for each other at the start."""
    heartbeat_seconds: int = 20
    """After so long a silence a host is dead, and the others end, to be started again."""
    grace_seconds: float = 60.0
    """How long after SIGTERM or SIGUSR1 saving may take; then the process ends as it is."""

    def __post_init__(self):
        for name, does in (("fsdp", self.fsdp), ("tensor", self.tensor != 1)):
            if does and self.engine != "jit":
                raise UserError(f"{name} shards the state, and pmap replicates it; the fix: --parallel.engine jit")
        counts = ("tensor", "devices", "cpu_devices", "hosts", "startup_seconds", "heartbeat_seconds", "grace_seconds")
        check_positive(**{f"parallel.{k}": v for k in counts if (v := getattr(self, k)) is not None})
        if self.host is not None and self.host not in range(self.hosts or 0):
            raise UserError(f"parallel.host is {self.host} of {self.hosts} hosts; it counts from 0")


@dataclass(frozen=True)
class Alarms:
    """What is watched while training, and what an alarm does."""

    action: Literal["off", "warn", "stop"] = "off"
    """warn: say it and go on; stop: end the run, with the checkpoints from before kept and none saved after."""
    samples: int = 256
    """Images generated at each evaluation, and held-out ones that they are compared with."""
    classes: float = 0.6
    """Least share of classes covered, of those that as many real images cover (data with labels; by a classifier)."""
    entropy: float = 0.6
    """Least entropy of the predicted classes, as a share of the real images'."""
    duplicates: float = 0.25
    """Largest share of images that have a near duplicate among the others (birthday test)."""
    spread: float = 0.6
    """Least mean distance between two images, as a share of the real images'."""
    saturation: float = 0.95
    """Largest share of held-out examples on which the discriminator has nothing left to learn."""
    gradient: tuple[float, float] = (1e-7, 1e4)
    """Least and largest norm of each player's gradient."""

    def __post_init__(self):
        check_positive(**{"alarms.samples": self.samples - 1})


@dataclass(frozen=True)
class Save:
    """Checkpoints."""

    every: int = 1000
    """Steps between checkpoints; the last step is saved in any case."""
    keep: int = 2
    """Number of last checkpoints to keep, at least 2, besides the best."""
    best: tuple[str, Literal["min", "max"]] | None = None
    """The validation metric that names the best checkpoint, and its better end; None: the last is the best."""

    def __post_init__(self):
        check_positive(**{"save.every": self.every})
        if self.keep < 2:
            raise UserError(
                f"save.keep is {self.keep}; keep at least 2, so that one is sound while the other is written"
            )


@dataclass(frozen=True)
class Faults:
    """What is done about a step whose metrics are not finite, or whose loss jumps."""

    action: Literal["stop", "skip", "rollback"] = "stop"
    """stop: end the run; skip: leave its batch out; rollback: go on from the weights and the optimizer of the last checkpoint that
    was due, with the batches after the bad step. Other than stop keeps the state twice for the length of a step."""
    spike: float | None = None
    """Standard deviations above its running mean from which a loss has jumped; None: never."""
    patience: int = 10
    """Bad steps since the last checkpoint that was due, at which the run stops all the same."""

    def __post_init__(self):
        check_positive(
            **{"faults.patience": self.patience} | ({"faults.spike": self.spike} if self.spike is not None else {})
        )


@dataclass(frozen=True)
class Log:
    """What is printed and written while training."""

    every: int = 50
    """Steps between two lines of metrics."""
    tensorboard: bool = True
    """Write TensorBoard events into the run directory."""

    def __post_init__(self):
        check_positive(**{"log.every": self.every})


def profile_steps(text: str) -> range:
    """The steps of "STEP:COUNT". Raises: UserError if it is none."""
    first, _, count = text.partition(":")
    if not (first.isdecimal() and count.isdecimal() and int(first) > 0 and int(count) > 0):
        raise UserError(f"profile is {text!r}; it is STEP:COUNT, for instance 100:5")
    return range(int(first), int(first) + int(count))
