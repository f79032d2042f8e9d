"""The devices that a dry run plans for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import jax

from gen import errors
from gen.config import Config
from gen.errors import UserError
from gen.runtime import backend

Platform = Literal["cpu", "tpu"]

TOPOLOGIES = {
    **{1: "v5e:1x1", 2: "v5e:1x2", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 32: "v5e:4x8", 64: "v5e:8x8"},
    **{128: "v5e:8x16", 256: "v5e:16x16", 512: "v5p:8x8x8", 1024: "v5p:8x8x16"},
}
"""Slices of TPUs by the number of their chips; a v5e has up to 256."""


def _devices(config: Config, n: int | None, platform: Platform) -> Sequence[Any]:
    """This machine's devices, or n fake ones of its processor, or n chips of a TPU that need not be there."""
    if n is None:
        backend.start_backend(config.parallel)
        return jax.devices()[: config.parallel.devices]
    errors.check_positive(**{"--devices": n})
    jax.config.update("jax_platforms", "cpu")  # nothing is put on an accelerator, if there is one
    if platform == "tpu":
        backend.start_backend(replace(config.parallel, devices=None, cpu_devices=None))
        return topology(n)
    backend.start_backend(replace(config.parallel, devices=None, cpu_devices=n))
    return jax.devices()


def topology(n: int) -> Sequence[Any]:
    """n chips to compile for, of which TPU's compiler knows. Raises: UserError if it isn't installed, or for another n."""
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("TPU's compiler is not installed; the fix: pip install 'gen[tpu-plan]'") from None
    if n not in TOPOLOGIES:
        raise UserError(f"a TPU of {n} chips is not known; there are {', '.join(map(str, TOPOLOGIES))}")
    # Of a machine that has no TPU: else the library asks the network who it is, and writes its complaints and logs.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    quiet |= {"TPU_LOG_DIR": "disabled", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    quiet |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # two plans at once
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[n]).devices


def _hosts(devices: Sequence[Any], n: int | None) -> list[int]:
    """The host of each device: as they are, or n with as many devices each."""
    if n is None:
        return [device.process_index for device in devices]
    errors.check_positive(**{"--hosts": n})
    if len(devices) % n:
        raise UserError(f"{len(devices)} devices can't be shared by {n} hosts; choose a divisor")
    return [i // (len(devices) // n) for i in range(len(devices))]


@contextmanager
def _fitting(n: int) -> Iterator[None]:
    """Raises: UserError if a compiler finds that the step needs more memory than a device has."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0].strip()
        raise UserError(
            f"the step doesn't fit on {n} devices: {reason}\nmore --devices, a smaller --data.batch-size, "
            "--parallel.engine jit --parallel.fsdp, or a transformer's --model.network.remat may help"
        ) from None
