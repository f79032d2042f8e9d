"""From a run directory alone to pictures and texts, with a manifest from which they can be made again, byte for byte."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
import tyro

from gen import checkpoint, finetune, foreign, parallel, pictures, run, texts
from gen import config as configs
from gen.core import Dataset, GenerativeModel, Spec, State, UserError, checked_seed, printable
from gen.data import tokenizers
from gen.networks.positions import PADDING

FORMAT = 2
VERSIONS = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers")
R = TypeVar("R")
M = TypeVar("M")


@dataclass(frozen=True)
class Options(Generic[R, M]):
    """Samples of a trained run: what people look at, the arrays, and a manifest."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    request: Annotated[R, tyro.conf.arg(name="")]
    medium: Annotated[M, tyro.conf.arg(name="")]
    seed: int = 0
    """Seed of the samples."""
    step: int | None = None
    """Checkpoint to sample from; None: the best."""
    out: Path | None = None
    """Where to write; None: generated/ in the run directory."""
    base: str | None = None
    """Where the run that an adapter stands on is now, if it was moved."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that the run's config names and that may be imported (a fork's family)."""

    def __post_init__(self):
        checked_seed(self.seed)


@dataclass(frozen=True)
class Verify:
    """Make the outputs of a manifest again and compare them byte for byte."""

    verify: Path
    """The manifest.json."""
    run: Path | None = None
    """The run directory, if it was moved."""
    data_dir: str | None = None
    """Where the data set is, if neighbours are shown and it is not where it was in training."""
    base: str | None = None
    """Where the run that an adapter stands on is now, if it was moved."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that the run's config names and that may be imported."""


def main(arguments: Sequence[str]) -> int:
    """The command line of sample.py; the exit status."""
    prog = "sample.py"
    if any(a.split("=")[0] == "--verify" for a in arguments):
        return verify(tyro.cli(Verify, args=list(arguments), prog=prog))
    if not arguments or arguments[0].startswith("-"):
        print("usage: sample.py RUN [OPTIONS]       (sample.py RUN --help lists those of the run's family)")
        print("       sample.py --verify MANIFEST")
        return 0 if {"-h", "--help"} & set(arguments) else 2
    trust = tuple(value for flag, value in pairwise(arguments) if flag == "--trust")
    trust += tuple(a.removeprefix("--trust=") for a in arguments if a.startswith("--trust="))
    workdir = Path(arguments[0])
    model = load(workdir, trust)[1]
    medium = medium_of(run.read_spec(workdir))
    options = tyro.cli(Options[model.request, medium.options], args=list(arguments), prog=prog)
    sample(options, model, medium)
    return 0


class Medium(NamedTuple):
    """What samples are made of, and how people see them."""

    options: type
    """Its part of the command line."""
    resolved: Callable[[Any], Any]
    """The options with the contents of files that they name."""
    given: Callable[[Path, configs.Config, Any], tuple[dict[str, Any], dict[str, Any]]]
    """(run directory, its config, options) -> what is given to `generate`: arrays, and functions by name."""
    files: Callable[..., dict[str, bytes]]
    """(run directory, options, arrays, trust) -> {file name: content}."""


def medium_of(spec: Spec) -> Medium:
    """Texts if the model's data are tokens, else pictures."""
    return TEXTS if "tokens" in spec else PICTURES


def _pictures(workdir: Path, options: pictures.Options, arrays: Any, trust: Sequence[str]) -> dict[str, bytes]:
    return pictures.files(arrays, dataset(workdir, options.data_dir, trust) if options.neighbours else None)


def _given(workdir: Path, config: configs.Config, options: texts.Options) -> tuple[dict[str, Any], dict[str, Any]]:
    tokenizer = tokenizers.of_run(workdir)
    listen = texts.listener(options, tokenizer)
    seen = run.read_reference(workdir).get("tokens", np.zeros((0, 1)))[:, 0]
    begins = len(seen) > 1 and bool((seen == tokenizers.end(tokenizer)).all())  # as each pair does
    if options.source and "source" not in run.read_spec(workdir):
        if not begins:
            raise UserError(f"{workdir} was trained on texts, not on pairs; give it a --prompt")
        options = texts.joined(options, getattr(config.data, "template", ""))
    return texts.given(options, tokenizer, begins), {} if listen is None else {"listen": listen}


PICTURES = Medium(
    pictures.Options, lambda options: options, lambda workdir, *_: (run.read_reference(workdir), {}), _pictures
)
TEXTS = Medium(
    texts.Options,
    texts.resolved,
    _given,
    lambda workdir, options, arrays, _: texts.files(arrays, tokenizers.of_run(workdir), options),
)


def load(workdir: Path, trust: Sequence[str]) -> tuple[configs.Config, GenerativeModel]:
    """The config and the model of a run."""
    parallel.start(parallel.Config())
    config, _ = run.read_config(workdir, trust)
    return config, config.model.build(run.read_spec(workdir), config.steps)


def sample(options: Options[Any, Any], model: GenerativeModel, medium: Medium) -> None:
    """Generate, and write the outputs and their manifest."""
    config, _ = load(options.run, options.trust)
    step = choose(options.run, config, options.step)
    asked = medium.resolved(options.medium)
    given, functions = medium.given(options.run, config, asked)
    arrays = generate(options.run, model, step, options.seed, options.request, given, functions, base=options.base)
    if "listen" in functions:
        functions["listen"](np.full(len(arrays["samples"]), PADDING))  # no more comes
    outputs = medium.files(options.run, asked, arrays, options.trust)
    changed = {f.name: v for f in fields(options.request) if (v := getattr(options.request, f.name)) != f.default}
    kept = {f.name: getattr(asked, f.name) for f in fields(asked) if not f.metadata.get("launch")}
    beyond = {k: v for k, v in kept.items() if v != type(asked).__dataclass_fields__[k].default}
    name = "-".join([f"step{step}", f"seed{options.seed}", *(f"{k}{v}" for k, v in changed.items())])
    if beyond:
        name += "-" + _sha256(repr(beyond).encode())[:8]
    folder = options.out or options.run / "generated" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in outputs.items():
        run.write_bytes(folder / file, content)
    manifest = {
        "format": FORMAT,
        "run": os.path.relpath(options.run.resolve(), folder.resolve()),
        "identity": configs.digest(config),
        "checkpoint": {"step": step, "sha256": checkpoint.digest(options.run / "checkpoints", step)},
        "reference": _sha256(_reference(options.run)),
        "seed": options.seed,
        "request": configs.encode(options.request),
        "medium": {k: v for k, v in configs.encode(asked).items() if k == "type" or k in kept},
        "conditions": conditions(),
        "outputs": {file: _sha256(content) for file, content in outputs.items()},
    }
    run.write_json(folder / "manifest.json", manifest)
    if (done := max(checkpoint.steps(options.run / "checkpoints"))) < config.steps:
        print(f"{options.run} is not finished: {done} of {config.steps} steps", file=sys.stderr)
    if "samples.txt" in outputs:
        first, rule, others = outputs["samples.txt"].decode().removesuffix("\n").partition(texts.RULE)
        print(printable(("" if asked.stream else first) + rule + others))
    print(f"{folder}: {', '.join([*outputs, 'manifest.json'])}")


def choose(workdir: Path, config: configs.Config, step: int | None) -> int:
    """The step asked for, or the best sound one. Raises: UserError if there is none."""
    checkpoints = workdir / "checkpoints"
    if step is not None:
        if reason := checkpoint.damage(checkpoints, step):
            there = ", ".join(map(str, checkpoint.steps(checkpoints))) or "none"
            raise UserError(f"checkpoint {step} of {workdir}: {reason}; there: {there}")
        return step
    best = checkpoint.best(checkpoints, config.save, warn=lambda text: print(f"warning: {text}"))
    if best is None:
        raise UserError(f"{workdir} has no checkpoint yet; its training saves one each {config.save.every} steps")
    return best


def restored(workdir: Path, model: GenerativeModel, step: int, base: str | None = None) -> State:
    """What samples are drawn from, of a checkpoint; on one device. base: where the run that it stands on was moved to."""
    abstract = foreign.fits(parallel.on_one_device(jax.eval_shape(model.init, jax.random.key(0))), workdir)
    state = checkpoint.restore(workdir / "checkpoints", step, abstract, items=("params", "ema", "stats"))
    if jax.tree.leaves(abstract.frozen):
        state = finetune.standing(state, abstract, finetune.of_run(workdir, base))
    return replace(state, step=jax.numpy.int32(step))


def generate(
    workdir: Path,
    model: GenerativeModel,
    step: int,
    seed: int,
    request: Any,
    given: Mapping[str, Any] | None = None,
    functions: Mapping[str, Any] = {},
    base: str | None = None,
) -> dict[str, Any]:
    """Arrays, a function of the run, the checkpoint, the seed, the request and what is given; on one device."""
    if functions.keys() - inspect.signature(model.generate).parameters.keys():
        raise UserError("a masked model writes at all places at once; leave out --stream and --stop")
    state = restored(workdir, model, step, base)
    given = run.read_reference(workdir) if given is None else given
    inputs = state, jax.random.key(seed), given
    program = jax.jit(partial(model.generate, request=request, **functions)).lower(*inputs).compile()
    if size := program.memory_analysis():
        foreign.check_memory(size.temp_size_in_bytes + size.output_size_in_bytes, "what is to be generated")
    return jax.device_get(program(*inputs))


def dataset(workdir: Path, data_dir: str | None, trust: Sequence[str], **read: Any) -> Dataset:
    """The data set that a run was trained on; `read`, fields of its config that change how it is read.

    Raises: UserError if it is another one now.
    """
    config, facts = run.read_config(workdir, trust)
    if data_dir is not None and hasattr(config.data, "data_dir"):
        read["data_dir"] = data_dir
    made_here = getattr(config.data, "tokenizer", None) in tokenizers.TRAINED and config.init_from is None
    if (workdir / tokenizers.FILE).exists() and not made_here:
        read["tokenizer"] = str(workdir)
    data = replace(config.data, **read).build()
    if data.digest != facts["data"]:
        raise UserError(f"the data are not those that {workdir} was trained on (their digests differ)")
    return data


def verify(options: Verify) -> int:
    """Regenerate what a manifest describes and say what differs; 0 if nothing does, else 1."""
    manifest = _read_manifest(options.verify)
    workdir = options.run or options.verify.parent / manifest["run"]
    config, model = load(workdir, options.trust)
    step = manifest["checkpoint"]["step"]
    choose(workdir, config, step)
    request = configs.decode(model.request, manifest["request"], options.trust, at="request")
    medium = medium_of(run.read_spec(workdir))
    asked = configs.decode(medium.options, manifest["medium"], options.trust, at="medium")
    if options.data_dir is not None and hasattr(asked, "data_dir"):
        asked = replace(asked, data_dir=options.data_dir)
    given = medium.given(workdir, config, asked)
    arrays = generate(workdir, model, step, manifest["seed"], request, *given, base=options.base)
    outputs = medium.files(workdir, asked, arrays, options.trust)

    found = {
        "config": (manifest["identity"], configs.digest(config)),
        "checkpoint": (manifest["checkpoint"]["sha256"], checkpoint.digest(workdir / "checkpoints", step)),
        "reference.npz": (manifest["reference"], _sha256(_reference(workdir))),
    }
    inputs = [name for name, (then, now) in found.items() if then != now]
    here = conditions()
    moved = [f"{k}: {v!r} then, {here.get(k)!r} now" for k, v in manifest["conditions"].items() if here.get(k) != v]
    differ = []
    for name, sha256 in manifest["outputs"].items():
        file = options.verify.parent / name
        if file.is_symlink() or not file.is_file():
            differ.append(f"{name} is missing")
        elif _sha256(foreign.content(file)) != sha256:
            differ.append(f"{name} is not the file that the manifest names")
        if _sha256(outputs.get(name, b"")) != sha256:
            differ.append(f"{name} comes out differently")
    for line in differ:
        print(printable(f"differs: {line}"))
    for name in inputs:
        print(f"changed: {name}")
    for line in moved:
        print(printable(f"other conditions: {line}"))
    if differ and moved:
        print("the same bytes are promised under the same conditions only")
    if not differ:
        print(f"verified: {', '.join(manifest['outputs'])}, byte for byte")
    return 1 if differ else 0


def conditions() -> dict[str, Any]:
    """What the bytes of a result depend on besides its inputs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **{name: metadata.version(name) for name in VERSIONS},
        "gen": metadata.version("gen"),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": parallel.processor(),
        "visible_cores": cores,
    }


def _read_manifest(path: Path) -> Mapping[str, Any]:
    try:
        manifest = foreign.parsed(path)
    except (FileNotFoundError, UserError) as error:
        raise UserError(f"{path} can't be read as a manifest: {error}") from None
    shape = {"run": str, "identity": str, "checkpoint": dict, "reference": str, "seed": int, "request": dict}
    shape |= {"medium": dict, "conditions": dict, "outputs": dict}
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is no manifest of format {FORMAT}")
    for name, kind in shape.items():
        if not isinstance(manifest.get(name), kind):
            raise UserError(f"{path}: {name} is missing or no {kind.__name__}")
    checked_seed(manifest["seed"])
    checkpoint_facts = {k: type(v) for k, v in manifest["checkpoint"].items()}
    if checkpoint_facts != {"step": int, "sha256": str}:
        raise UserError(f"{path}: checkpoint is not a step and its sha256")
    if not manifest["outputs"]:
        raise UserError(f"{path} names no outputs")
    if any(Path(name).name != name for name in manifest["outputs"]):
        raise UserError(f"{path}: an output's name leaves the manifest's folder")
    return manifest


def _reference(workdir: Path) -> bytes:
    try:
        return foreign.content(workdir / "reference.npz")
    except FileNotFoundError:
        raise UserError(f"{workdir} has no reference.npz; training it on makes one") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
