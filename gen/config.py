"""An experiment as one frozen dataclass: loaded from a file of Python, overridden from the command line, kept as JSON."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import json
import math
import re
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gen import adapters, alarms, checkpoint, faults, log, parallel, profile
from gen.core import LAUNCH, DataConfig, FamilyConfig, UserError, checked_seed, positive
from gen.schedules import Schedule

MOST = 2**53  # of whole numbers, which shapes are made of


@dataclass(frozen=True)
class Config:
    """One experiment. What is not marked LAUNCH is its identity: a run directory belongs to one identity."""

    model: FamilyConfig
    """The family and its hyper-parameters."""
    data: DataConfig
    """The examples."""
    steps: int
    """Updates to do."""
    seed: int = 0
    """Seed of the initialization, the order of the data and all noise."""
    init_from: str | None = None
    """A run whose best checkpoint is the start: its network and its tokenizer are taken over."""
    finetune: Literal["full", "lora", "prompt"] = "full"
    """What is trained of it: all; low-rank changes of some matrices; a prompt of vectors."""
    lora: adapters.LoRA = adapters.LoRA()
    """How finetune lora adapts the base."""
    prompt: adapters.Prompt = adapters.Prompt()
    """How finetune prompt does."""
    base: str | None = field(default=None, metadata=LAUNCH)
    """Where the run of init_from is now, if it was moved."""
    steps_per_call: int = field(default=1, metadata=LAUNCH)
    """Steps of one compiled program, for models whose step takes less time than asking for it; what is due between ends a call, and
    signals are heeded after one. A processor makes convolutions no faster so, and compiles longer."""
    evaluate_every: int = field(default=1000, metadata=LAUNCH)
    """Steps between evaluations on the validation split (0: at the end only)."""
    workdir: str | None = field(default=None, metadata=LAUNCH)
    """The run directory; None: runs/NAME of the config."""
    parallel: parallel.Config = field(default=parallel.Config(), metadata=LAUNCH)
    """Engine and devices."""
    save: checkpoint.Config = field(default=checkpoint.Config(), metadata=LAUNCH)
    """Checkpoints."""
    log: log.Config = field(default=log.Config(), metadata=LAUNCH)
    """What is printed and written while training."""
    alarms: alarms.Config = field(default=alarms.Config(), metadata=LAUNCH)
    """What is watched while training, and what an alarm does."""
    faults: faults.Config = field(default=faults.Config(), metadata=LAUNCH)
    """What is done about a step whose metrics are not finite, or whose loss jumps."""
    profile: str | None = field(default=None, metadata=LAUNCH)
    """STEP:COUNT, so many steps from there on, and what else their calls make, are traced into the run directory, for TensorBoard
    and Perfetto."""

    def __post_init__(self):
        positive(steps=self.steps, steps_per_call=self.steps_per_call)
        checked_seed(self.seed)
        if large := [x for x in walk(self) if isinstance(x, int) and abs(x) >= MOST]:
            raise UserError(f"{large[0]} is too large; a config's whole numbers are below 2**53")
        if self.finetune != "full" and self.init_from is None:
            raise UserError(f"finetune {self.finetune} adapts a run that is there; the fix: --init-from RUN")
        if self.steps_per_call > 1 and (self.faults.spike is not None or self.faults.action == "rollback"):
            raise UserError(
                f"a spike, or a rollback, is for the very next steps, and steps_per_call makes {self.steps_per_call} at once; the "
                "fix: --steps-per-call 1"
            )
        if self.profile is not None:
            profile.steps(self.profile)
        if self.evaluate_every < 0:
            raise UserError(
                f"evaluate_every is {self.evaluate_every}; 0 evaluates at the end only, else it counts steps"
            )


# --- identity -------------------------------------------------------------------------------------------------------


def identity(config: Config) -> dict[str, Any]:
    """What a run is, as JSON: everything but launch fields, and `steps` only where a schedule reads it."""
    kept = _identity(config)
    if not any(isinstance(x, Schedule) and x.reads_steps for x in walk(config)):
        del kept["steps"]
    return kept


def digest(config: Config) -> str:
    """SHA-256 of the identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def difference(old: Config, new: Config) -> list[str]:
    """Lines "field: old -> new" for the fields in which two identities differ."""
    a, b = (dict(_flat(identity(c))) for c in (old, new))
    shown = lambda side, key: json.dumps(side[key]) if key in side else "(absent)"
    return [f"{k}: {shown(a, k)} -> {shown(b, k)}" for k in sorted(a | b) if shown(a, k) != shown(b, k)]


def _identity(x: Any) -> Any:
    """`encode` without launch fields; an integer is the same as the float of its value."""
    if is_dataclass(x) and not isinstance(x, type):
        kept = [f.name for f in fields(x) if not f.metadata.get("launch")]
        return {"type": _name(type(x))} | {name: _identity(getattr(x, name)) for name in kept}
    if isinstance(x, tuple):
        return [_identity(v) for v in x]
    return int(x) if isinstance(x, float) and x.is_integer() else x


def walk(x: Any) -> typing.Iterator[Any]:
    """Every value in a config, parents first."""
    yield x
    children = [getattr(x, f.name) for f in fields(x)] if is_dataclass(x) else x if isinstance(x, tuple) else ()
    for child in children:
        yield from walk(child)


def _flat(x: Any, path: str = "") -> typing.Iterator[tuple[str, Any]]:
    if isinstance(x, dict):
        for key, value in x.items():
            yield from _flat(value, f"{path}.{key}" if path else key)
    else:
        yield path, x


# --- from a file and the command line -------------------------------------------------------------------------------


def load(name: str, root: Path = Path("configs")) -> Config:
    """The `config` of a config file: a path, or the NAME of `root/NAME.py`.

    Raises: UserError for an unknown name (with the nearest), or a file without `config`.
    """
    path = Path(name) if name.endswith(".py") else root / f"{name}.py"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.py"))
        near = difflib.get_close_matches(path.stem, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"{path.parent}/ has {', '.join(known) or 'none'}"
        raise UserError(f"no config file {path}; {hint}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "config", None), Config):
        raise UserError(f"{path} defines no `config = Config(...)`")
    return module.config


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
        return decode(kind, {"type": _name(kind), **values}, at=text)
    except UserError as error:
        raise ValueError(str(error)) from None
    except (SyntaxError, AssertionError, KeyError, TypeError, ValueError):
        raise ValueError(f"{text!r} is neither a number nor one of {', '.join(kinds)}(...)") from None


# --- to and from JSON -----------------------------------------------------------------------------------------------


def encode(x: Any) -> Any:
    """A config as JSON values; each dataclass says its class as "type": "module.Class"."""
    if is_dataclass(x) and not isinstance(x, type):
        return {"type": _name(type(x))} | {f.name: encode(getattr(x, f.name)) for f in fields(x)}
    return [encode(v) for v in x] if isinstance(x, tuple) else x


def decode(kind: Any, value: Any, trust: Sequence[str] = (), at: str = "config") -> Any:
    """The inverse of `encode` for a value that should be a `kind`. Imports only families, kinds of data, and modules in `trust`;
    what has been imported is used.

    Raises: UserError that names the field, for anything else than a `kind`.
    """
    wrong = UserError(f"{at} is {json.dumps(value)[:80]}, which is no {getattr(kind, '__name__', kind)}")
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for member in members:
            try:
                return decode(member, value, trust, at)
            except UserError as error:
                wrong = error
        raise wrong
    if origin is Literal:
        if any(type(value) is type(member) and value == member for member in members):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            each = members[:1] * len(value) if members[1:] == (...,) else members
            if len(each) == len(value):
                return tuple(
                    decode(k, v, trust, f"{at}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True))
                )
    elif isinstance(kind, type) and is_dataclass(kind):
        if isinstance(value, dict) and isinstance(value.get("type"), str):
            return _decode_dataclass(kind, value, trust, at)
    elif kind is float and (type(value) is float or (type(value) is int and abs(value) < 2**1023)):
        return float(value)
    elif value is None if kind is type(None) else type(value) is kind and (kind is not int or abs(value) < MOST):
        return value
    raise wrong


def _decode_dataclass(kind: type, value: dict[str, Any], trust: Sequence[str], at: str) -> Any:
    cls = _resolve(value["type"], kind, trust, at)
    hints = typing.get_type_hints(cls)
    given = {k: v for k, v in value.items() if k != "type"}
    unknown = sorted(set(given) - {f.name for f in fields(cls)})
    if unknown:
        raise UserError(f"{at}.{unknown[0]} is no field of {value['type']}")
    required = {f.name for f in fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(given)):
        raise UserError(f"{at}.{missing[0]} is missing")
    return cls(**{k: decode(hints[k], v, trust, f"{at}.{k}") for k, v in given.items()})


def _resolve(name: str, kind: type, trust: Sequence[str], at: str) -> Any:
    """The dataclass `name`, a `kind`. Its module's name is checked before anything is imported, since importing runs code."""
    module, _, cls = name.rpartition(".")
    trusted = any(module == t or module.startswith(t + ".") for t in ("gen.families", "gen.data", *trust))
    plain = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name)
    if not plain or not (trusted or module in sys.modules):
        raise UserError(
            f"{at} names {name[:80]!r}, which is not part of gen; if you trust that code: --trust {module[:60]}"
        )
    try:
        found = getattr(importlib.import_module(module), cls, None)
    except ImportError as error:
        raise UserError(f"{at} names {name}, but {error}") from None
    abstract = found in (FamilyConfig, DataConfig)
    if not (isinstance(found, type) and is_dataclass(found) and issubclass(found, kind)) or abstract:
        raise UserError(f"{at} names {name}, which is no {kind.__name__}")
    return found


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
