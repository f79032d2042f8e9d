"""An experiment as data: loaded from a Python file, overridden from the command line, kept as JSON."""

from gen.config.command_line import Launch, override, scalar
from gen.config.encoding import MAX_INT, decode, encode, walk
from gen.config.experiment import Config, load
from gen.config.identity import difference, digest, identity
from gen.config.launch import Alarms, Faults, Log, Parallel, Save, profile_steps

__all__ = [
    "MAX_INT",
    "Alarms",
    "Config",
    "Faults",
    "Launch",
    "Log",
    "Parallel",
    "Save",
    "decode",
    "difference",
    "digest",
    "encode",
    "identity",
    "load",
    "override",
    "profile_steps",
    "scalar",
    "walk",
]
