"""Checks that all hosts have the same config, data, software, settings and program.

Otherwise the hosts would train different models together, or wait for each other for ever. If hosts differ, all of them exit with a
message that names the hosts and the difference. A host is one of several processes that train a run (gen.runtime.hosts).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax

from gen import config as configs
from gen.config import Config
from gen.errors import UserError
from gen.runtime import hosts

PACKAGES = ("gen", "jax", "jaxlib", "numpy")
"""Packages whose versions are compared, because results may depend on them. Other packages matter only through the program, which is
compared as well."""
SETTINGS = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable"),
    *("jax_numpy_dtype_promotion", "jax_debug_nans", "jax_debug_infs", "jax_disable_jit"),
    *("jax_disable_most_optimizations", "jax_cpu_collectives_implementation"),
)
"""Settings of JAX that change results or programs."""
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
"""Environment variables that change results or programs."""
OWN_FLAGS = re.compile(r"_(dump|dir|path|log|logs|device_count)(_|$)")
"""An XLA flag may differ between hosts if its name has one of these words, such as a flag for the path of a log."""
MAX_DIFFERENCES = 3
"""Largest number of differences that a message names."""

F = TypeVar("F", bound=Callable[..., Any])
Facts = dict[str, dict[str, str]]
"""{kind of fact, such as "versions": {name: value}}."""


def check_agree(config: Config, workdir: Path, data: str) -> None:
    """Checks that all hosts have the same config, data and environment. Call it on all hosts. data: digest of the data set.

    Raises: UserError on every host if they differ.
    """
    if hosts.count() > 1:
        check_facts(hosts.gather(facts(config, workdir, data)))


def facts(config: Config, workdir: Path, data: str) -> Facts:
    """Returns the facts that must be the same on all hosts: config, data, versions, settings and environment.

    The compiled program must be the same too, but `check_program` compares it. data: digest of the data set.
    """
    # Each host has another number, and hosts may reach the coordinator under different names. So these two are not compared.
    shared = replace(config, parallel=replace(config.parallel, host=None, coordinator=None))
    return {
        "configs": {"workdir": str(workdir), **_flat(configs.encode(shared))},
        "data": {"digest of the data": data},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "settings": {name: str(getattr(jax.config, name, None)) for name in SETTINGS},
        "environments": {name: _flags(os.environ.get(name, "")) for name in VARIABLES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # gen itself, if it runs from a folder
        return "not installed"


def _flags(text: str) -> str:
    """Returns the flags in the value of an environment variable, without flags that may differ between hosts (OWN_FLAGS)."""
    return " ".join(flag for flag in text.split() if not OWN_FLAGS.search(flag.partition("=")[0]))


def _flat(value: object, path: str = "") -> dict[str, str]:
    """Returns {dotted path: value as JSON text} of nested JSON objects: {"a": {"b": 1}} gives {"a.b": "1"}."""
    if not isinstance(value, Mapping):
        return {path: json.dumps(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{path}.{key}" if path else str(key))
    return flat


def check_facts(gathered: Sequence[Facts]) -> None:
    """Compares the facts of all hosts with the facts of host 0. gathered: the facts of each host.

    Raises: UserError with the first kind of facts in which a host differs.
    """
    first = gathered[0]
    for kind in first:
        for host, theirs in enumerate(gathered):
            if theirs.get(kind) != first[kind]:
                changed = differences(first[kind], theirs.get(kind, {}), host)
                raise UserError(f"the hosts have different {kind}: {changed}; start all of them with the same")


def differences(first: Mapping[str, str], theirs: Mapping[str, str], host: int) -> str:
    """Returns a text that names the first MAX_DIFFERENCES differences. first: values of host 0. theirs: values of `host`."""
    names = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
    shown = [
        f"{name} is {_shown(first.get(name))} on host 0 and {_shown(theirs.get(name))} on host {host}"
        for name in names[:MAX_DIFFERENCES]
    ]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def _shown(value: str | None) -> str:
    return "absent" if value is None else value[:80] or "empty"


def check_devices(processes: Iterable[int]) -> None:
    """Checks that each host has the same number of devices. processes: index of the host of each device.

    Raises: UserError on every host if the numbers differ.
    """
    counts = Counter(processes)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{n} on host {host}" for host, n in sorted(counts.items()))
        raise UserError(f"each host needs the same number of devices; there are {each}")


def check_program(name: str, compiled: F) -> F:
    """Wraps a compiled function: its first call checks that all hosts have the same program. Call it on all hosts.

    The check compares the program that JAX passes to the compiler, without paths and lines of the source. JAX keeps the traced program,
    so nothing is traced or compiled twice. name: name of the function, for the message.

    The first call raises: UserError on every host if programs differ.
    """
    checked = False

    @wraps(compiled)
    def run(*arguments: Any) -> Any:
        nonlocal checked
        if not checked:
            check_same_program(name, compiled.lower(*arguments).as_text())  # pyright: ignore[reportFunctionMemberAccess]
            checked = True
        return compiled(*arguments)

    run.lower = compiled.lower  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    return run  # pyright: ignore[reportReturnType]


def check_same_program(name: str, text: str) -> None:
    """Checks that all hosts have the same program. Call it on all hosts. Raises: UserError on every host if programs differ.

    name: name of the program, for the message. text: the program, as JAX lowers it.
    """
    digests = hosts.gather(hashlib.sha256(text.encode()).hexdigest())
    different = [host for host, digest in enumerate(digests) if digest != digests[0]]
    if not different:
        return
    # Every host sees the same digests, so all hosts get here, and they can exchange more.
    sources = hosts.gather(source())
    files = {**sources[0], **sources[different[0]]}
    changed = [file for file in files if sources[0].get(file) != sources[different[0]].get(file)]
    where = f" (these files of gen differ: {', '.join(changed[:MAX_DIFFERENCES])})" if changed else ""
    which = ", ".join(map(str, different))
    raise UserError(
        f"the program of the {name} on host {which} differs from the program of host 0{where}; start all of them with the same code"
    )


def source() -> dict[str, str]:
    """Returns {file: short digest} of the source of gen on this host."""
    folder = Path(configs.__file__).parent.parent
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in sorted(folder.rglob("*.py"))
    }
