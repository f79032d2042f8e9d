"""Samples from a run directory: files to look at, arrays, and a manifest from which the same bytes can be made again."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import numpy as np
import tyro

from gen import config as configs
from gen import files
from gen.core import GenerativeModel
from gen.errors import UserError, check_seed, printable
from gen.media import text as media_text
from gen.media.medium import Medium, medium_of
from gen.networks.positions import PADDING
from gen.runs import checkpoint, directory
from gen.runs.trained import choose_step, generate, load_model
from gen.runtime import backend

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
        check_seed(self.seed)


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
    model = load_model(workdir, trust)[1]
    medium = medium_of(directory.read_spec(workdir))
    options = tyro.cli(Options[model.request, medium.options], args=list(arguments), prog=prog)
    sample(options, model, medium)
    return 0


def sample(options: Options[Any, Any], model: GenerativeModel, medium: Medium) -> None:
    """Generate, and write the outputs and their manifest."""
    config, _ = load_model(options.run, options.trust)
    step = choose_step(options.run, config, options.step)
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
        files.write_bytes(folder / file, content)
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
    files.write_json(folder / "manifest.json", manifest)
    if (done := max(checkpoint.steps(options.run / "checkpoints"))) < config.steps:
        print(f"{options.run} is not finished: {done} of {config.steps} steps", file=sys.stderr)
    if "samples.txt" in outputs:
        first, rule, others = outputs["samples.txt"].decode().removesuffix("\n").partition(media_text.RULE)
        print(printable(("" if asked.stream else first) + rule + others))
    print(f"{folder}: {', '.join([*outputs, 'manifest.json'])}")


def verify(options: Verify) -> int:
    """Regenerate what a manifest describes and say what differs; 0 if nothing does, else 1."""
    manifest = _read_manifest(options.verify)
    workdir = options.run or options.verify.parent / manifest["run"]
    config, model = load_model(workdir, options.trust)
    step = manifest["checkpoint"]["step"]
    choose_step(workdir, config, step)
    request = configs.decode(model.request, manifest["request"], options.trust, at="request")
    medium = medium_of(directory.read_spec(workdir))
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
        elif _sha256(files.read_bytes(file)) != sha256:
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
        "processor": backend.cpu_name(),
        "visible_cores": cores,
    }


def _read_manifest(path: Path) -> Mapping[str, Any]:
    try:
        manifest = files.read_json(path)
    except (FileNotFoundError, UserError) as error:
        raise UserError(f"{path} can't be read as a manifest: {error}") from None
    shape = {"run": str, "identity": str, "checkpoint": dict, "reference": str, "seed": int, "request": dict}
    shape |= {"medium": dict, "conditions": dict, "outputs": dict}
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is no manifest of format {FORMAT}")
    for name, kind in shape.items():
        if not isinstance(manifest.get(name), kind):
            raise UserError(f"{path}: {name} is missing or no {kind.__name__}")
    check_seed(manifest["seed"])
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
        return files.read_bytes(workdir / "reference.npz")
    except FileNotFoundError:
        raise UserError(f"{workdir} has no reference.npz; training it on makes one") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
