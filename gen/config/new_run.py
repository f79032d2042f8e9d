"""Checks of the config of a new run. Existing runs are not checked, so that older runs can still be continued and sampled."""

from __future__ import annotations

from dataclasses import fields

from gen.config.experiment import Config
from gen.config.warmups import check_warmups
from gen.errors import UserError


def check_new_run(config: Config) -> None:
    """Raises: UserError if a warm-up is longer than the run, or if `lora` or `prompt` has settings that finetune does not use."""
    _check_adapters(config)
    check_warmups(config)


def _check_adapters(config: Config) -> None:
    """Raises: UserError if `lora` or `prompt` was changed, but `finetune` names another method, which would ignore the settings."""
    for name in ("lora", "prompt"):
        given, default = getattr(config, name), getattr(Config, name)
        if name == config.finetune or given == default:
            continue
        changed = [f.name for f in fields(default) if getattr(given, f.name) != getattr(default, f.name)]
        setting = ".".join([name, *changed[:1]])
        raise UserError(
            f"{setting} has no effect with finetune {config.finetune}; the fix: --finetune {name}, or leave --{setting} out"
        )
