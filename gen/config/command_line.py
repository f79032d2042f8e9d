"""The command line of train.py. Every field of a config is an option, and its value may be a class or a schedule."""

from __future__ import annotations

import copy
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import tyro

from gen.config.experiment import Config
from gen.config.objects import choices, dataclasses_in, parse_object, scalar
from gen.errors import UserError
from gen.optim import Schedule

FILES = ("audio", "captions", "folder", "jsonl", "midi", "pairs", "rolls", "text")
"""Kinds of data that are read from files: the words before the colon in `--data.name folder:PICTURES`. `choose_classes`
uses them to recognize the common mistake `--data folder:PICTURES`."""


@dataclass(frozen=True)
class DryRun:
    """The devices that --dry-run plans for. They need not exist."""

    devices: int | None = None
    """Number of devices. None: the devices of this machine."""
    hosts: int | None = None
    """Number of hosts that share the devices. None: one host, or on a TPU the hosts of a slice with this number of devices."""
    platform: Literal["cpu", "tpu"] = "cpu"
    """Platform to compile the step for. tpu: needs pip install 'gen[tpu-plan]', but no TPU."""


@dataclass(frozen=True)
class Launch:
    """train.py [CONFIG] [OPTIONS]: trains a config in its run directory. The same command again resumes the run.

    CONFIG comes first: a file, or the name of a file in configs/ (default: vae_digits). The value of an option may be a class,
    with or without values for its fields: --model.network Residual, --model.network "Residual(widths=(32, 64))", or
    --model.network my.module:Network. The fields of the chosen class are options, too."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the resolved config and the memory, FLOPs and communication of a step. Train nothing."""
    plan: DryRun = DryRun()
    """Devices that --dry-run plans for."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen whose classes options may name. Importing it runs its code."""

    def __post_init__(self):
        if not self.dry_run and self.plan != DryRun():
            raise UserError(
                "--plan options need --dry-run; the fix: add --dry-run (or to train on N devices: --parallel.devices N)"
            )
        if self.plan.devices is None and self.plan != DryRun():
            raise UserError("--plan.hosts and --plan.platform need the number of devices; the fix: --plan.devices N")


def override(config: Config, arguments: Sequence[str], prog: str) -> Launch:
    """Parses the options of train.py, such as `--model.latents 64`. Returns them, with the changed config in `Launch.config`.

    config: the config to change. arguments: the command line after CONFIG. prog: the name of the program, for messages.
    `--help` prints every field. An unknown option ends the process with status 2 and a message that names the nearest option.

    Raises: UserError for a wrong class or value.
    """
    config, others = choose_classes(config, arguments, read_trust(arguments))
    # Without AvoidSubcommands, tyro would make a subcommand of each class that a field allows. With it, the options are the fields
    # of the class that the config has.
    return tyro.cli(tyro.conf.AvoidSubcommands[Launch], default=Launch(config), args=others, prog=prog, registry=_RULES)


def read_trust(arguments: Sequence[str]) -> tuple[str, ...]:
    """Returns MODULE of each option `--trust MODULE` or `--trust=MODULE`.

    Other options may name classes of these modules, so the modules must be known before the other options are parsed.
    """
    after = [value for flag, value in pairwise(arguments) if flag == "--trust"]
    return (*after, *(a.removeprefix("--trust=") for a in arguments if a.startswith("--trust=")))


def choose_classes(config: Config, arguments: Sequence[str], trust: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """Applies the options `--path.to.field OBJECT` that replace an object of the config, such as `--model.network Residual`.

    Returns the changed config and the remaining arguments. The new object takes no values from the object that it replaces:
    fields that OBJECT does not give have their defaults. trust: modules outside gen that may be imported.

    Raises: UserError for an unknown class, or a value that does not fit.
    """
    options: list[tuple[list[str], str, int, str | None]] = []
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            path = flag.removeprefix("--").replace("-", "_").split(".")
            options.append((path, flag, i, value if equals else None))
    used: set[int] = set()
    # Whether an option's field holds an object depends on the config, so the options are looked up one by one. Shorter paths come
    # first: --model.network.base must find the network that --model.network chooses.
    for path, flag, i, value in sorted(options, key=lambda option: len(option[0])):
        hint = _object_hint(config, path)
        if hint is None:
            continue
        used.add(i)
        if value is None:  # "--flag VALUE", not "--flag=VALUE": the value is the next argument
            if i + 1 == len(arguments) or arguments[i + 1].startswith("--"):
                raise UserError(
                    f"{flag} has no value; give it a class, such as {', '.join(choices(hint)) or 'module:Class'}"
                )
            used.add(i + 1)
            value = arguments[i + 1]
        if flag == "--data" and value.partition(":")[0] in FILES:
            raise UserError(f"--data takes a class; the fix: --data.name {value}")
        config = _unchecked(config, path, parse_object(value, hint, trust, flag))
    return config, [argument for i, argument in enumerate(arguments) if i not in used]


def _object_hint(config: Config, path: Sequence[str]) -> object | None:
    """Returns the declared type of the field at a path, if it contains a dataclass, as `Network | None` does.

    Returns None if the field does not exist, if its type contains no dataclass, or if its type is `Scalar`.
    """
    *parents, last = path
    x: object = config
    # The class of the value decides which fields exist, not the declared class: a subclass may have more.
    for name in parents:
        x = getattr(x, name, None) if is_dataclass(x) else None
    if not is_dataclass(x) or last not in {f.name for f in fields(x)}:
        return None
    hint = typing.get_type_hints(type(x))[last]
    classes = dataclasses_in(hint)
    # A field of type `Scalar` holds a number or a schedule, and tyro reads it with `_scalar_rule`.
    return hint if classes and Schedule not in classes else None


def _unchecked(x: Any, path: Sequence[str], value: object) -> Any:
    """Returns a copy of a dataclass with the field at the path replaced. `__post_init__` does not check the copy.

    The value may only be valid together with options that follow. tyro later builds every object again from all options, and
    that checks them.
    """
    name, *inner = path
    copied = copy.copy(x)
    object.__setattr__(copied, name, _unchecked(getattr(x, name), inner, value) if inner else value)
    return copied


_RULES = tyro.constructors.ConstructorRegistry()


@_RULES.primitive_rule
def _scalar_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Lets `Scalar` fields take a number or a schedule: `--model.optim.lr "WarmupCosine(1e-3, 500)"`."""
    members = typing.get_args(info.type)
    if Schedule not in members:
        return None  # another rule of tyro applies
    optional = type(None) in members

    def read(words: list[str]) -> float | Schedule | None:
        return None if optional and words[0] == "None" else scalar(words[0])

    def accepts(x: object) -> bool:
        return isinstance(x, float | int | Schedule) or (optional and x is None)

    def write(x: object) -> list[str]:
        return [str(x)]

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="FLOAT|SCHEDULE", instance_from_str=read, is_instance=accepts, str_from_instance=write
    )
