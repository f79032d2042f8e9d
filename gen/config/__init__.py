"""Configs of experiments: loaded from Python files, changed by command-line options, and stored as JSON in run directories.

A config file defines `config`. It may change another config, which `load` finds by its name from any folder:

    from dataclasses import replace
    from gen.config import load

    base = load("vae_digits")
    config = replace(base, steps=3000, model=replace(base.model, beta=1.0))

A config file can import modules from its folder. So a new family may be defined next to its config, or in the config file
itself. The run's config.json names the family's module, for instance examples.flow, and `sample.py RUN --trust examples.flow`
imports it. Python must find the module: below the folder of sample.py, or below a folder of PYTHONPATH.
"""

from gen.config.alarm import Alarm
from gen.config.command_line import DryRun, Launch, override, read_trust
from gen.config.encoding import MAX_INT, decode, encode, import_trusted, walk
from gen.config.experiment import Config
from gen.config.files import load
from gen.config.identity import difference, digest, identity, identity_changed, settings
from gen.config.launch import Alarms, Faults, Log, Parallel, Save, profile_steps
from gen.config.new_run import check_new_run
from gen.config.objects import parse_object, scalar

__all__ = [
    "MAX_INT",
    "Alarm",
    "Alarms",
    "Config",
    "DryRun",
    "Faults",
    "Launch",
    "Log",
    "Parallel",
    "Save",
    "check_new_run",
    "decode",
    "difference",
    "digest",
    "encode",
    "identity",
    "identity_changed",
    "import_trusted",
    "load",
    "override",
    "parse_object",
    "profile_steps",
    "read_trust",
    "scalar",
    "settings",
    "walk",
]
