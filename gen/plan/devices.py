"""The devices that a dry run plans for: those of this machine, fake CPUs, or TPU chips that need not exist."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import jax

from gen import errors
from gen.config import Config
from gen.errors import UserError
from gen.runtime import backend
from gen.runtime.backend import Device

Platform = Literal["cpu", "tpu"]

TOPOLOGIES = {
    **{1: "v5e:1x1", 2: "v5e:1x2", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 32: "v5e:4x8", 64: "v5e:8x8"},
    **{128: "v5e:8x16", 256: "v5e:16x16", 512: "v5p:8x8x8", 1024: "v5p:8x8x16"},
}
"""{number of chips: TPU slice}. Slices of up to 256 chips are v5e, which has no larger ones, and the others v5p."""
# Environment variables for the TPU library. Without them it asks the network for facts about the machine, writes logs,
# and refuses to be loaded by two processes at once.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def find_devices(config: Config, n: int | None, platform: Platform) -> Sequence[Device]:
    """Returns the devices to plan for: n fake CPU devices or n TPU chips, by platform.

    n None: the devices of this machine that the config uses. platform is then ignored.
    """
    if n is None:
        backend.start_backend(config.parallel)
        return jax.devices()[: config.parallel.devices]
    errors.check_positive(**{"--plan.devices": n})
    # A plan for other devices must not take memory of this machine's accelerator.
    jax.config.update("jax_platforms", "cpu")
    # TPU chips come from `topology`, so a plan for them needs no fake CPUs.
    cpu_devices = None if platform == "tpu" else n
    backend.start_backend(replace(config.parallel, devices=None, cpu_devices=cpu_devices))
    return topology(n) if platform == "tpu" else jax.devices()


def topology(n: int) -> Sequence[Device]:
    """Returns n TPU chips to compile for. They need not exist.

    Raises: UserError if the TPU compiler is not installed, or if TOPOLOGIES has no slice of n chips.
    """
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("the TPU compiler is not installed; the fix: pip install 'gen[tpu-plan]'") from None
    if n not in TOPOLOGIES:
        raise UserError(f"there is no TPU slice of {n} chips; choose one of {', '.join(map(str, TOPOLOGIES))}")
    for name, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[n]).devices


def assign_hosts(devices: Sequence[Device], n: int | None) -> list[int]:
    """Returns the number of the host of each device.

    n: number of hosts, each with the same number of consecutive devices. None: the hosts that the devices have.

    Raises: UserError if n does not divide the number of devices.
    """
    if n is None:
        return [device.process_index for device in devices]
    errors.check_positive(**{"--plan.hosts": n})
    if len(devices) % n:
        raise UserError(f"{len(devices)} devices can't be divided among {n} hosts; choose a divisor of {len(devices)}")
    return [i // (len(devices) // n) for i in range(len(devices))]


@contextmanager
def explain_out_of_memory(n: int) -> Iterator[None]:
    """Replaces the compiler's error by a UserError if the step needs more memory than one of the n devices has.

    Use it as `with explain_out_of_memory(n):` around the compilation.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0].strip()
        raise UserError(
            f"the step does not fit on {n} devices: {reason}",
            "these may help: more --plan.devices, a smaller "
            "--data.batch-size, --parallel.engine jit --parallel.fsdp, or a transformer's --model.network.remat",
        ) from None
