"""Draws samples from a trained run.

Writes files to look at, the arrays, and a manifest from which the same files can be made again.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from gen import config as configs
from gen import files
from gen.core import Request
from gen.errors import UserError, check_seed, note, say, show
from gen.families.labels import with_class_number
from gen.media.arrays import pack_arrays
from gen.runs import checkpoint
from gen.runs.provenance import CheckpointRecord, Manifest, conditions, read_manifest, write_manifest
from gen.runs.trained import TrainedRun, open_run

USAGE = """usage: sample.py RUN [OPTIONS]          (sample.py RUN --help lists the options of the run's family)
       sample.py --verify MANIFEST     (sample.py --verify MANIFEST --help lists the options)

Both take --trust MODULE for a module outside gen that the run's config names."""
Dataclass = Any
"""An instance of a frozen dataclass."""
R = TypeVar("R")
M = TypeVar("M")


@dataclass(frozen=True)
class Options(Generic[R, M]):
    """Draw samples from a trained run. Writes files to look at, the arrays, and a manifest."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    request: Annotated[R, tyro.conf.arg(name="")]
    medium: Annotated[M, tyro.conf.arg(name="")]
    seed: int = 0
    """Seed of the samples."""
    step: int | None = None
    """Step of the checkpoint to sample from. None: the best checkpoint."""
    out: Path | None = None
    """Folder to write to. None: a folder in RUN/generated/, whose name has the settings."""
    base: str | None = None
    """Where the base of an adapter is now, if it was moved."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that may be imported, because the run's config names its classes."""

    def __post_init__(self):
        check_seed(self.seed)


@dataclass(frozen=True)
class Verify:
    """Make the samples of a manifest again, and compare the files byte for byte."""

    verify: Path
    """The manifest.json."""
    run: Path | None = None
    """The run directory, if it was moved."""
    data_dir: str | None = None
    """Folder of the data set now, if it was moved after training. Only for samples with --neighbours."""
    base: str | None = None
    """Where the base of an adapter is now, if it was moved."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that the run's config names and that may be imported."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command line of sample.py, and returns the exit status."""
    if any(a.split("=")[0] == "--verify" for a in arguments):
        return verify(files.expand_paths(tyro.cli(Verify, args=list(arguments), prog="sample.py")))
    if arguments and not arguments[0].startswith("-"):
        return _sample_command(arguments)
    show(USAGE)
    return 0 if {"-h", "--help"} & set(arguments) else 2


def _sample_command(arguments: Sequence[str]) -> int:
    # The options depend on the run's family, so the run is opened before the other arguments are read.
    run = open_run(files.expand_user(arguments[0]), configs.read_trust(arguments))
    options = tyro.cli(Options[run.model.request, run.medium.options], args=list(arguments), prog="sample.py")
    sample(files.expand_paths(options), run)
    return 0


def sample(options: Options[Dataclass, Dataclass], run: TrainedRun) -> Path:
    """Generates samples, and writes them and their manifest to a folder. Returns the folder.

    Raises: UserError if the options don't fit the run, or if the folder can't be used, for instance because it has
    other samples.
    """
    step = run.choose_step(options.step)
    # The manifest and the folder's name hold the number of a class, because its name might change.
    options = replace(options, request=with_class_number(options.request, run.spec))
    read = run.medium.read_options(options.medium)
    folder = options.out or run.workdir / "generated" / _folder_name(step, options.seed, options.request, read)
    # Checked before samples are drawn, because drawing may take long.
    if not (nearest := next(path for path in (folder, *folder.parents) if path.exists())).is_dir():
        raise UserError(f"{nearest} is not a folder; the fix: another --out")
    outputs = make_outputs(run, step, options.seed, options.request, read, options.base)
    _check_no_others(folder, outputs)
    files.check_targets(folder, [*outputs, "manifest.json"])
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in outputs.items():
        (folder / file).parent.mkdir(exist_ok=True)
        # Files in a sub-folder are many, and waiting for each of them would take minutes. --verify would notice an incomplete file.
        files.write_bytes(folder / file, content, wait="/" not in file)
    manifest = Manifest(
        run=os.path.relpath(run.workdir.resolve(), folder.resolve()),
        identity=configs.digest(run.config),
        checkpoint=CheckpointRecord(step, run.digest(step)),
        reference=_sha256(_reference(run)),
        seed=options.seed,
        request=configs.encode(options.request),
        medium=_encode_medium(read),
        conditions=conditions(),
        outputs={file: _sha256(content) for file, content in outputs.items()},
        classes=run.spec["label"].names if "label" in run.spec else None,
    )
    write_manifest(folder / "manifest.json", manifest)
    # A run that trains on may delete this checkpoint, and then its manifest can't be verified any more.
    if (done := max(checkpoint.steps(run.checkpoints))) < run.config.steps:
        note(f"{run.workdir} is not finished: {done} of {run.config.steps} steps")
    # An empty text is printed too: it ends the line of a text that was printed token by token.
    if (text := run.medium.describe(outputs, read)) is not None:
        show(text)
    say(f"{folder}: {', '.join([*_summarize(outputs), 'manifest.json'])}")
    return folder


def _check_no_others(folder: Path, outputs: Mapping[str, bytes]) -> None:
    """Raises: UserError if a sub-folder of the outputs has other files. They could be mistaken for samples of this call."""
    for name in {file.partition("/")[0] for file in outputs if "/" in file}:
        existing = {path.name for path in (folder / name).glob("*")} if (folder / name).is_dir() else set()
        # gen.evaluate writes the scores of a folder of images to this file in the folder.
        others = existing - {file.partition("/")[2] for file in outputs} - {"evaluation.json"}
        if others:
            raise UserError(
                f"{folder / name} has files of other samples, such as {min(others)}; remove it, or choose another --out"
            )


def _summarize(outputs: Iterable[str]) -> list[str]:
    """Returns the names of the files to print. All files of a sub-folder share one entry, such as "samples/ (64 files)"."""
    counts = Counter(file.partition("/")[0] + "/" * ("/" in file) for file in outputs)
    return [f"{name} ({count} files)" if name.endswith("/") else name for name, count in counts.items()]


def make_outputs(
    run: TrainedRun, step: int, seed: int, request: Request, options: Dataclass, base: str | None
) -> dict[str, bytes]:
    """Draws samples. Returns {file name: content}: the files that the medium shows them in, and samples.npz with all arrays.

    step: step of the checkpoint. options: options of the medium, as `Medium.read_options` returns them. base: where the base of an
    adapter is now, if it was moved.
    """
    drawn = run.draw(step, seed, request, options, base)
    # The medium reads the run through a view. Training has the same view, so it shows samples in the same way.
    shown = run.medium.show(drawn.arrays, run.view(), drawn.options)
    return {**shown.files, "samples.npz": pack_arrays({**drawn.arrays, **shown.arrays})}


def verify(options: Verify) -> int:
    """Makes the samples of a manifest again, and prints the differences. Returns 0 if there are none, otherwise 1."""
    manifest = read_manifest(options.verify)
    run = open_run(options.run or options.verify.parent / manifest.run, options.trust)
    step = run.choose_step(manifest.checkpoint.step)
    request = configs.decode(run.model.request, manifest.request, options.trust, at="request")
    asked = configs.decode(run.medium.options, manifest.medium, options.trust, at="medium")
    if options.data_dir is not None and hasattr(asked, "data_dir"):
        asked = replace(asked, data_dir=options.data_dir)
    outputs = make_outputs(run, step, manifest.seed, request, asked, options.base)

    differences = _compare_outputs(manifest, options.verify.parent, outputs)
    # Other versions or devices may explain a difference, so they are printed too.
    here = conditions()
    others = [f"{k}: {v!r} then, {here.get(k)!r} now" for k, v in manifest.conditions.items() if here.get(k) != v]
    lines = [f"differs: {line}" for line in differences]
    lines += [f"changed: {name}" for name in _changed_inputs(manifest, run, step)]
    lines += [f"other conditions: {line}" for line in others]
    if differences and others:
        lines.append("samples are only the same byte for byte under the same conditions")
    if not differences:
        lines.append(f"verified: {', '.join(_summarize(manifest.outputs))}, byte for byte")
    say(*lines)
    return 1 if differences else 0


def _compare_outputs(manifest: Manifest, folder: Path, outputs: Mapping[str, bytes]) -> list[str]:
    """Returns a line for each file in `folder` that is missing or changed, and for each file whose new content differs.

    outputs: {file name: content} of the samples that were made again.
    """
    differences = []
    for name, sha256 in manifest.outputs.items():
        file = folder / name
        # Links are not followed: they could lead to a device, which has no end, or to a private file.
        linked = file.is_symlink() or ("/" in name and file.parent.is_symlink())
        if linked or not file.is_file():
            differences.append(f"{name} is missing")
        elif _sha256(files.read_bytes(file)) != sha256:
            differences.append(f"{name} is not the file that the manifest names")
        if _sha256(outputs.get(name, b"")) != sha256:
            differences.append(f"{name} comes out differently")
    return differences


def _changed_inputs(manifest: Manifest, run: TrainedRun, step: int) -> list[str]:
    """Returns the names of the inputs, such as "config", that have changed since the manifest was written."""
    changed = {
        "config": not run.has_identity(manifest.identity),
        "checkpoint": manifest.checkpoint.sha256 != run.digest(step),
        "reference.npz": manifest.reference != _sha256(_reference(run)),
    }
    return [name for name, is_changed in changed.items() if is_changed]


def _folder_name(step: int, seed: int, request: Dataclass, medium: Dataclass) -> str:
    """Returns the name of the folder for samples, such as "step500-seed0-n9".

    It depends on all settings that differ from their defaults, so other settings get another folder.
    """
    changed = {f.name: v for f in fields(request) if (v := getattr(request, f.name)) != f.default}
    name = "-".join([f"step{step}", f"seed{seed}", *(f"{k}{v}" for k, v in changed.items())])
    kept = [f for f in fields(medium) if not f.metadata.get("launch")]
    special = {f.name: v for f in kept if (v := getattr(medium, f.name)) != f.default}
    # The settings of a medium may be long texts, so the name contains a digest of them.
    return name + (f"-{_sha256(repr(special).encode())[:8]}" if special else "")


def _encode_medium(options: Dataclass) -> dict[str, object]:
    """Returns {option: JSON value} of the medium's options, without options that don't change the samples."""
    launch = {f.name for f in fields(options) if f.metadata.get("launch")}
    return {name: value for name, value in configs.encode(options).items() if name not in launch}


def _reference(run: TrainedRun) -> bytes:
    try:
        return files.read_bytes(run.workdir / "reference.npz")
    except FileNotFoundError:
        raise UserError(f"{run.workdir} has no reference.npz; training the run again makes one") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
