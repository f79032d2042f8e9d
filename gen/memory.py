"""Checks that arrays fit into memory before they are made. Otherwise the system would kill processes, without any message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import jax

from gen.errors import UserError

T = TypeVar("T")
GROUPS = Path("/sys/fs/cgroup")
"""Linux shows the limits of groups of processes in this folder. Containers and schedulers of clusters set them."""
OWN_GROUP = Path("/proc/self/cgroup")
"""File with the group of this process: a line "0::/GROUP", or with version 1 of groups a line "N:memory:/GROUP"."""


def check_fits(shapes: T, path: Path) -> T:
    """Returns `shapes`, a tree of shapes and dtypes, if arrays of these shapes fit in the memory of this host or container.

    The size of the arrays is compared with the total memory, not with the free memory. path: folder of the run, for the message.

    Raises: UserError if they do not fit.
    """
    check_memory(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)), f"the model of {path}")
    return shapes


def check_memory(needed: int, what: str) -> None:
    """Raises: UserError "WHAT needs ..." if this process can't have `needed` bytes of memory, even if all of it were free."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(f"{what} needs {needed / 2**30:,.0f} GiB of memory, but this machine has {memory / 2**30:,.0f}")
    limit = min(read_limits(GROUPS, OWN_GROUP), default=memory)
    if needed > limit:
        raise UserError(
            f"{what} needs {needed / 2**30:,.3g} GiB of memory, but the container or job has {limit / 2**30:,.3g}; the fix: "
            "ask for more"
        )


def read_limits(groups: Path, own: Path) -> Iterator[int]:
    """Yields the limits of memory, in bytes, of this process's group and of the groups around it.

    Yields nothing on systems other than Linux. groups, own: GROUPS and OWN_GROUP, or other paths in a test.
    """
    try:
        lines = own.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, kinds, group = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        # Version 2 of groups has no kinds.
        root, name = (groups / "memory", "memory.limit_in_bytes") if kinds else (groups, "memory.max")
        folder = root / group.strip("/")
        # Inside of a container, the group's name may be that of the host, whose folder can't be seen. The root is the container.
        for each in [folder, *folder.parents][: len(folder.relative_to(root).parts) + 1]:
            try:
                yield int((each / name).read_text())
            except (OSError, ValueError):  # no such file, or "max": no limit
                continue
