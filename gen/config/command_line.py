"""The command line of train.py: every field of a config is an option, and scalars may be schedules."""

from __future__ import annotations

import ast
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from gen.config.encoding import decode, type_name
from gen.config.experiment import Config
from gen.errors import UserError
from gen.optim import Schedule


@dataclass(frozen=True)
class Launch:
    """train.py [CONFIG] [OPTIONS]: train a config in its run directory; run again, it goes on where it was.

    CONFIG comes first: a file, or the name of one in configs/ (vae_digits if left out)."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the resolved config and what a step takes: bytes, FLOPs and what is sent; train nothing."""
    devices: int | None = None
    """Of a dry run: plan for so many devices, which need not be there. None: this machine's."""
    hosts: int | None = None
    """Of a dry run: the hosts that these devices belong to. None: one; of a TPU, as they are."""
    platform: Literal["cpu", "tpu"] = "cpu"
    """Of a dry run: whose compiler plans for these devices (tpu: pip install 'gen[tpu-plan]', and no TPU)."""

    def __post_init__(self):
        if not self.dry_run and (self.devices or self.hosts or self.platform != "cpu"):
            raise UserError(
                "--devices, --hosts and --platform are of a plan; the fix: --dry-run (or to train: --parallel.devices)"
            )
        if self.dry_run and self.devices is None and (self.hosts or self.platform != "cpu"):
            raise UserError("--hosts and --platform go with the devices to plan for; the fix: --devices N")


def override(config: Config, arguments: Sequence[str], prog: str) -> Launch:
    """The config with typed overrides such as `--model.latents 64`; `--help` lists every field. Exits 2 on a wrong one."""
    # A field narrows to the class of its default, so that a family's own fields are options.
    kind = tyro.conf.AvoidSubcommands[Launch]
    return tyro.cli(kind, default=Launch(config), args=list(arguments), prog=prog, registry=_REGISTRY)


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _scalar(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """`Scalar` fields take a number or a schedule as Python writes it: `--model.optim.lr "WarmupCosine(1e-3, 500)"`."""
    members = typing.get_args(info.type)
    if Schedule not in members:
        return None
    optional = type(None) in members
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT|SCHEDULE",
        instance_from_str=lambda args: None if optional and args[0] == "None" else scalar(args[0]),
        is_instance=lambda x: isinstance(x, float | int | Schedule) or (optional and x is None),
        str_from_instance=lambda x: [str(x)],
    )


def scalar(text: str) -> float | Schedule:
    """`0.1`, or a schedule as Python writes it: `WarmupCosine(peak=1e-3, warmup=500)`. Nothing is evaluated.

    Raises: ValueError with what was expected.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if math.isfinite(number):
        return number
    kinds = {kind.__name__: kind for kind in Schedule.__subclasses__()}
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        kind = kinds[call.func.id]
        names = [f.name for f in fields(kind)]
        arguments = [ast.literal_eval(a) for a in call.args]
        assert len(arguments) <= len(names)
        assert not {k.arg for k in call.keywords} & set(names[: len(arguments)])
        values = dict(zip(names, arguments, strict=False)) | {
            str(k.arg): ast.literal_eval(k.value) for k in call.keywords
        }
        return decode(kind, {"type": type_name(kind), **values}, at=text)
    except UserError as error:
        raise ValueError(str(error)) from None
    except (SyntaxError, AssertionError, KeyError, TypeError, ValueError):
        raise ValueError(f"{text!r} is neither a number nor one of {', '.join(kinds)}(...)") from None
