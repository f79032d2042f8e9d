"""The hostile inputs of tests/hostile.py, by kind."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from safetensors.numpy import save

import gen
from gen import config as configs
from gen import sample
from gen.core import Feature
from gen.data.images import Images
from gen.data.text import Text, tokenizers
from gen.families.language import LM, language
from gen.interop.convert import export_run, import_run
from gen.interop.gpt2 import GPT2, describe, to_gpt2
from gen.networks.transformer import Architecture
from gen.runs import base as runs_base
from gen.runs import checkpoint, curve, directory, manifest, merge, trouble
from tests.hostile import EVIL, Case, World
from tests.old_runs import make_old

ESCAPED = EVIL.replace("/", "_")
"""EVIL as the name of a file."""
LETTERS = EVIL.replace("\n", " ")


class Code:
    """An object that writes a file when it is unpickled."""

    def __reduce__(self):
        return open, ("code-was-run", "w")


def all_cases() -> list[Case]:
    """Returns all cases, in a fixed order."""
    kinds = (links, names, config_files, spec_files, manifests, arrays, references, records, tokenizer_files)
    kinds += (pictures, texts, imports, sample_manifests)
    return [case for kind in kinds for case in kind()]


# Links, pipes and folders in the place of files.

LINKED = (".lock", ".config.json.tmp", "config.json", "spec.json", ".spec.json.tmp", "metrics.jsonl", "telemetry.jsonl")
LINKED += ("reference.npz", ".reference.npz.tmp", "evaluation.json", ".evaluation.json.tmp", "events.out", "generated")
LINKED += ("checkpoints", "checkpoints/2", "checkpoints/3", "checkpoints/2/meta/metadata", "checkpoints/2.unsound")
LINKED += ("samples", "samples/a.png", "logs", "logs/host-000.log", "profile", "tokenizer.json")


def links() -> Iterator[Case]:
    targets = {"a file": "victim.txt", "nothing": "nothing.txt", "a folder": "private"}
    for place in LINKED:
        for what, target in targets.items():
            yield Case("links", f"{place} to {what}, sampled", partial(_sampled_link, place, target))
            yield Case("links", f"{place} to {what}, trained", partial(_trained_link, place, target, True))
            yield Case(
                "links", f"{place} to {what}, trained without a config", partial(_trained_link, place, target, False)
            )
    for place in (".samples.png.tmp", ".manifest.json.tmp", "samples", "samples/.00000.png.tmp"):
        for what, target in targets.items():
            if not (place == "samples" and what == "a file"):
                yield Case("links", f"--out with {place} to {what}", partial(_linked_out, place, target))
    for place in (".evaluation.json.tmp", ".reference.npz.tmp"):
        yield Case("links", f"{place} put there after the check", partial(_linked_later, place))
    for place in ("config.json", "pipe", "checkpoints/2/manifest.json", "metrics.jsonl", ".config.json.tmp"):
        yield Case("links", f"a pipe as {place}", partial(_pipe, place))
    yield Case("links", "a merge into a link to a folder that is not empty", _merge_into_link)
    yield Case("links", "an export into a link to a folder that is not empty", _export_into_link)
    yield Case("links", "a link within the run", _inner_link, refused=False)
    yield Case("links", "a link to itself", lambda w, f: _sampled(_link(_copy(w.run, f), "loop", "loop")), refused=None)


def _copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "run", symlinks=True))


def _sampled(run: Path, *arguments: object) -> object:
    return sample.main([str(run), "--n", "4", "--out", str(run / "out"), *map(str, arguments)])


def _link(run: Path, place: str, target: str | Path) -> Path:
    path = run / place
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return run


def _outside(folder: Path, target: str) -> Path:
    return folder.parent / target


def _sampled_link(place: str, target: str, world: World, folder: Path) -> None:
    run = _link(_copy(world.run, folder), place, _outside(folder, target))
    _sampled(run)


def _trained_link(place: str, target: str, known: bool, world: World, folder: Path) -> None:
    run = _copy(world.run, folder) if known else folder / "run"
    run.mkdir(exist_ok=True)
    config, facts = directory.read_config(world.run)
    _link(run, place, _outside(folder, target))
    with directory.lock_run(run):
        directory.write_config(run, config, facts.data)


def _linked_out(place: str, target: str, world: World, folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    _link(out, place, _outside(folder, target))
    sample.main([str(world.run), "--n", "4", "--files", "--out", str(out)])


def _linked_later(place: str, world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    with directory.lock_run(run):
        _link(run, place, folder.parent / "victim.txt")
        directory.write_evaluation(run, {"tstr": 1.0}, {})
        directory.write_reference(run, {"kl": np.zeros(3)})


def _pipe(place: str, world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    (run / place).unlink(missing_ok=True)
    os.mkfifo(run / place)
    with directory.lock_run(run):
        _sampled(run)


def _filled(folder: Path) -> Path:
    (folder / "filled").mkdir()
    (folder / "filled" / "file").write_text("mine")
    (folder / "link").symlink_to("filled")
    return folder / "link"


def _merge_into_link(world: World, folder: Path) -> None:
    merge.merge(world.run, _filled(folder))


def _export_into_link(world: World, folder: Path) -> None:
    export_run(world.text, _filled(folder))


def _inner_link(world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    (run / "latest").symlink_to("generated")
    _sampled(run)


# Names that control a terminal.


def names() -> Iterator[Case]:
    yield Case("names", "a file in a checkpoint, sampled", lambda w, f: _sampled(_named_file(w, f)))
    yield Case("names", "a file in a checkpoint, another is sound", _second_checkpoint, refused=False)
    yield Case("names", "a file in a checkpoint, as a base", lambda w, f: runs_base.open_base(_named_file(w, f)))
    yield Case("names", "a file in a checkpoint, scored", _scored)
    yield Case(
        "names",
        "a file in a checkpoint, of which the step is asked",
        lambda w, f: _sampled(_named_file(w, f), "--step", 2),
    )
    yield Case(
        "names", "a run directory", lambda w, f: _sampled(Path(shutil.copytree(w.run, f / ESCAPED))), refused=False
    )
    yield Case("names", "a run directory that is no run", lambda w, f: _sampled(f / ESCAPED))
    yield Case("names", "a link out of a run", lambda w, f: _sampled(_link(_copy(w.run, f), ESCAPED, "/etc/passwd")))
    yield Case("names", "a folder of images", partial(_images_named, ESCAPED, "a.png", True), refused=False)
    yield Case("names", "an image", partial(_images_named, "images", f"{ESCAPED}.png", True), refused=False)
    yield Case("names", "an image that is damaged", partial(_images_named, "images", f"{ESCAPED}.png", False))
    yield Case("names", "a damaged image that is skipped", _skipped_image, refused=False)
    yield Case("names", "two classes", _classes, refused=False)
    yield Case("names", "the endings of files that are left out", _endings, refused=False)
    yield Case("names", "a hidden folder", lambda w, f: _hidden(f), refused=False)
    yield Case("names", "a text", lambda w, f: _text(f, b"a sound text " * 90, f"{ESCAPED}.txt"), refused=False)
    yield Case("names", "a text that is damaged", lambda w, f: _text(f, b"\xff\xff", f"{ESCAPED}.txt"))
    yield Case("names", "a key of JSON lines", lambda w, f: _jsonl(f, json.dumps({EVIL: 1, "b": 2})))
    yield Case("names", "a value of JSON lines", lambda w, f: _jsonl(f, json.dumps({"text": [EVIL]})))
    yield Case("names", "class names in spec.json", _class_names)
    yield Case("names", "an unknown metric", lambda w, f: _evaluated(w.run, "--metrics", EVIL))
    yield Case("names", "an unknown field of a request", lambda w, f: _evaluated(w.run, "--request", f"{EVIL}=1"))
    yield Case("names", "a data set", lambda w, f: Images(name=EVIL).build())
    yield Case("names", "a tensor", lambda w, f: _import_changed(w, f, tensor=EVIL))
    yield Case("names", "a file of an index", _index_name)
    yield Case(
        "names",
        "an output of a manifest of samples",
        lambda w, f: _verify(w, f, outputs={EVIL.replace("/", ""): "0"}),
        refused=False,
    )
    yield Case(
        "names",
        "conditions of a manifest of samples",
        lambda w, f: _verify(w, f, conditions={EVIL: EVIL}),
        refused=False,
    )
    yield Case("names", "an array in reference.npz", lambda w, f: _reference(w, f, _npz(**{LETTERS: np.array(["a"])})))
    yield Case("names", "an alarm in telemetry.jsonl", _telemetry, refused=False)
    yield Case("names", "what a library logs", _logged, refused=False)
    yield Case("names", "what a library warns of", _warned, refused=False)
    yield Case("names", "a text that a model writes", _written, refused=False)


def _named_file(world: World, folder: Path) -> Path:
    run = _copy(world.run, folder)
    (run / "checkpoints" / "2" / ESCAPED).touch()
    return run


def _second_checkpoint(world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / "3")
    (run / "checkpoints" / "3" / ESCAPED).touch()
    _sampled(run)


def _scored(world: World, folder: Path) -> None:
    _evaluated(_named_file(world, folder))


def _evaluated(run: Path, *arguments: str) -> None:
    import sys

    from gen import evaluate

    before, sys.argv = sys.argv, ["gen.evaluate", str(run), *arguments]
    try:
        evaluate.main()
    finally:
        sys.argv = before


def _picture(size: tuple[int, int] = (4, 4), mode: str = "L", form: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new(mode, size).save(content, form, **options)
    return content.getvalue()


WHOLE: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), "train")


def _built(root: Path, **settings: Any) -> None:
    data = Images(name=f"folder:{root}", **{**WHOLE, "batch_size": 2, **settings}).build()
    data.batch(0, 0, range(2))


def _images_named(folder_name: str, name: str, sound: bool, world: World, folder: Path) -> None:
    root = folder / folder_name
    root.mkdir()
    (root / "b.png").write_bytes(_picture())
    (root / name).write_bytes(_picture() if sound else b"damaged")
    _built(root)


def _skipped_image(world: World, folder: Path) -> None:
    root = folder / ESCAPED
    root.mkdir()
    (root / "b.png").write_bytes(_picture())
    (root / f"{ESCAPED}.png").write_bytes(b"damaged")
    _built(root, skip_bad=True)


def _classes(world: World, folder: Path) -> None:
    for name in (ESCAPED, "\u202etac"):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "a.png").write_bytes(_picture())
    _built(folder / "images")


def _endings(world: World, folder: Path) -> None:
    root = folder / "images"
    root.mkdir()
    (root / "a.png").write_bytes(_picture())
    (root / "a.\x1b[2J\n").touch()
    _built(root)


def _hidden(folder: Path) -> None:
    root = folder / "images"
    (root / f".{ESCAPED}").mkdir(parents=True)
    (root / "a.png").write_bytes(_picture())
    _built(root)


def _class_names(world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    _edit(run / "spec.json", lambda spec: spec["label"].update(names=[f"{EVIL}{i}" for i in range(10)]))
    _sampled(run, "--label", "none of them")


def _index_name(world: World, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": EVIL.replace("/", "")}}))
    shutil.copy(world.gpt2 / "config.json", folder)
    import_run(folder, folder / "run")


def _telemetry(world: World, folder: Path) -> None:
    from gen.runs import log

    (folder / "telemetry.jsonl").write_text("".join(json.dumps({"step": i, "alarm": EVIL * i}) + "\n" for i in (1, 2)))
    with log.open_log(folder, configs.load("vae_digits").log, 0, 1, 1, 0, ()) as logger:
        for text in trouble.repeat_warnings(folder / "telemetry.jsonl"):
            logger.say(text)
        logger.alarm(1, EVIL)
    print(next(folder.glob("logs/*")).read_text())


def _logged(world: World, folder: Path) -> None:
    import logging

    logging.getLogger("a library").warning("%s", LETTERS)


def _warned(world: World, folder: Path) -> None:
    import sys
    import warnings

    print(warnings.formatwarning(LETTERS, UserWarning, LETTERS, 1), file=sys.stderr)


def _written(world: World, folder: Path) -> None:
    run = _copy(world.text, folder)
    tokenizer = json.loads((run / "tokenizer.json").read_text())
    letters = dict(enumerate(f"\x1b\u202e\x07{chr(i)}" for i in range(0x100, 0x400)))
    vocabulary = {letters[i] if i > 1 else word: i for word, i in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"], tokenizer["decoder"] = vocabulary, {"type": "Fuse"}
    # A run of an older version, whose checkpoints don't know its tokenizer.
    make_old(run)
    (run / "tokenizer.json").write_text(json.dumps(tokenizer))
    sample.main([str(run), "--n", "2", "--out", str(folder / "out"), "--tokens", "4", "--stream"])


# config.json and spec.json.


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def _set(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(facts: Any) -> None:
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    return change


def _large(path: Path, size: int) -> None:
    """Makes a sparse file: it has this size, and takes no space."""
    with open(path, "wb") as file:
        file.truncate(size)


JSON: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "an object": b'{"a": 1}',
    "not UTF-8": b'{"\xff": 1}',
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "a long number": b'{"format": ' + b"1" * 100_000 + b"}",
    "millions of lists": b"[" + b"[]," * (3 * 2**20) + b"[]]",
    "millions of objects": b'{"sha256": [' + b"{}," * (3 * 2**20) + b"{}]}",
    "an escape": json.dumps({EVIL: EVIL}).encode(),
    "binary": bytes(range(256)),
}


def _json_cases(kind: str, name: str, act: Callable[[Path], object], **others: bytes) -> Iterator[Case]:
    """Yields a case for each damaged content of a JSON file of a run."""
    for what, content in {**JSON, **others}.items():

        def try_one(world: World, folder: Path, content: bytes = content) -> None:
            run = _copy(world.run, folder)
            (run / name).write_bytes(content)
            act(run)

        yield Case(kind, f"{name} is {what}", try_one)

    def try_large(world: World, folder: Path) -> None:
        run = _copy(world.run, folder)
        _large(run / name, 2**30)
        act(run)

    yield Case(kind, f"{name} has 1 GiB", try_large)


CONFIG: dict[str, Callable[[Any], Any]] = {
    "a later format": _set("format", value=10**30),
    "a format with escapes": _set("format", value=EVIL),
    "NaN": _set("config", "seed", value=float("nan")),
    "an infinity": _set("config", "steps", value=float("inf")),
    "a huge number": _set("config", "steps", value=10**400),
    "a module of Python": _set("config", "model", "type", value="os.system"),
    "a module outside gen": _set("config", "model", "type", value="strangers.Code"),
    "a module named like gen": _set("config", "model", "type", value="gen.errors.run_command"),
    "a private module": _set("config", "model", "type", value="gen..os.system"),
    "a name with escapes": _set("config", "model", "type", value=f"gen.{LETTERS}"),
    "data that are a model": lambda facts: facts["config"].update(data=facts["config"]["model"]),
    "an unknown field": _set("config", "model", LETTERS, value=1),
    "a wrong type": _set("config", "model", "latents", value=LETTERS),
    "a huge model": _set("config", "model", "network", "hidden", value=[10**7, 10**7]),
    "an impossible model": _set("config", "model", "network", "hidden", value=[2**62]),
    "a deep model": _set("config", "model", "network", "hidden", value=[1] * 5_000_000),
    "negative sizes": _set("config", "model", "latents", value=[-3]),
    "a base that is no run": _set("base", value={"path": "../..", "step": 1, "sha256": "0"}),
    "a base of wrong types": _set("base", value=[EVIL]),
    "another base": _set("config", "init_from", value=EVIL),
}


def config_files() -> Iterator[Case]:
    yield from _json_cases("configs", "config.json", _sampled, twice=b'{"format": 1, "format": 1}')
    for name, change in CONFIG.items():

        def act(world: World, folder: Path, change: Callable[[Any], Any] = change) -> None:
            (folder.parent / "strangers.py").write_text("open('code-was-run', 'w')")
            run = _copy(world.run, folder)
            _edit(run / "config.json", change)
            _sampled(run)

        yield Case("configs", name, act, refused=None if "base" in name else True)


SPEC: dict[str, dict[str, Any]] = {
    "a negative shape": {"shape": [-8, 8, 1]},
    "a huge shape": {"shape": [2**40, 8, 1]},
    "a shape larger than memory": {"shape": [2**13, 2**13, 3]},
    "a shape of floats": {"shape": [8.0, 8, 1]},
    "a shape that is a text": {"shape": EVIL},
    "no shape": {"shape": None},
    "another rank": {"shape": [8, 8]},
    "no levels": {"levels": 0},
    "NaN levels": {"levels": float("nan")},
    "huge levels": {"levels": 10**12},
    "a dtype with escapes": {"dtype": EVIL},
    "a dtype that is an object": {"dtype": "object"},
    "a vocabulary beyond memory": {"vocab": 10**12},
    "an end outside of the vocabulary": {"end": 3},
    "names without classes": {"names": [EVIL]},
    "names that are numbers": {"names": [1]},
    "an unknown field": {LETTERS: 1},
}


def spec_files() -> Iterator[Case]:
    yield from _json_cases("specs", "spec.json", _sampled, twice=b'{"image": {}, "image": {}}')
    for name, change in SPEC.items():

        def act(world: World, folder: Path, change: dict[str, Any] = change) -> None:
            run = _copy(world.run, folder)
            _edit(run / "spec.json", lambda spec: spec["image"].update(change))
            _sampled(run)

        yield Case("specs", name, act, refused=True)


# Manifests of checkpoints, and their facts.


def manifests() -> Iterator[Case]:
    yield from _json_cases("manifests", "checkpoints/2/manifest.json", _sampled, twice=b'{"format": 1, "format": 1}')
    sums: dict[str, Any] = {
        "a key with escapes": {EVIL: "0"},
        "a key that is a path": {"../../config.json": "0"},
        "a key that is absolute": {"/etc/passwd": "0"},
        "sums that are numbers": {"params/_METADATA": 0},
        "sums that are a list": [EVIL],
        "sums with escapes": {"params/_METADATA": EVIL},
        "no sums": {},
    }
    for name, value in sums.items():
        yield Case("manifests", name, partial(_with_manifest, "sha256", value))
    for name, value in {"a later format": 10**30, "a text": EVIL, "true": True, "NaN": float("nan")}.items():
        refused = None if name == "true" else True
        yield Case("manifests", f"a format that is {name}", partial(_with_manifest, "format", value), refused)
    facts: dict[str, bytes] = {
        "escapes": json.dumps({"validation": {EVIL: EVIL}}).encode(),
        "nothing": b"",
        "numbers that are texts": b'{"validation": {"loss": "low"}}',
        "a huge number": b'{"validation": {"loss": ' + str(10**400).encode() + b"}}",
        "NaN": b'{"validation": {"loss": NaN}}',
        "depth": b"[" * 200_000,
        "a list": b"[]",
    }
    for name, content in facts.items():
        yield Case("manifests", f"facts with {name}", partial(_with_facts, content), refused=None)
    for name in ("99999999999999999999999", "\u0663", "-1", ESCAPED, "2.unsound"):
        yield Case("manifests", f"a step named {ascii(name)[:30]}", partial(_with_step, name), refused=False)
    yield Case("manifests", "a step that is a file", _step_file, refused=False)
    yield Case("manifests", "a folder as manifest", _manifest_folder)


def _with_manifest(key: str, value: Any, world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    _edit(run / "checkpoints" / "2" / "manifest.json", _set(key, value=value))
    _sampled(run)


def _with_facts(content: bytes, world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    (run / "checkpoints" / "2" / "meta" / "metadata").write_bytes(content)
    _seal(run)
    checkpoint.best(run / "checkpoints", replace(directory.read_config(run)[0].save, best=("loss", "min")), warn=print)
    checkpoint.read_facts(run / "checkpoints", 2)
    _sampled(run)


def _with_step(name: str, world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    (run / "checkpoints" / name).mkdir()
    _sampled(run)


def _step_file(world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    (run / "checkpoints" / "3").write_text("no folder")
    _sampled(run)


def _manifest_folder(world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    (run / "checkpoints" / "2" / "manifest.json").unlink()
    (run / "checkpoints" / "2" / "manifest.json").mkdir()
    _sampled(run)


# Arrays, sealed again.


def _seal(run: Path) -> None:
    manifest.seal(run / "checkpoints" / "2")


def _array(run: Path) -> Path:
    """Returns the folder of the largest array of the parameters."""
    found = (run / "checkpoints" / "2" / "params").glob("*/.zarray")
    return max(found, key=lambda path: int(np.prod(json.loads(path.read_text())["shape"]))).parent


def _with_array(change: Callable[[Path], object], world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    change(_array(run))
    _seal(run)
    _sampled(run)


def frame(size: int | None, blocks: bytes) -> bytes:
    """Returns a frame of Zstandard. size: the number of bytes that its header claims. None: it claims none (RFC 8878)."""
    # One segment and a size of 8 bytes; or a window of 128 KiB and no size.
    header = b"\xe0" + struct.pack("<Q", size) if size is not None else b"\x00\x38"
    return b"\x28\xb5\x2f\xfd" + header + blocks


def zeros(size: int) -> bytes:
    """Returns blocks of Zstandard that unpack to this number of zeros: 4 bytes for each 128 KiB."""
    sizes = [2**17] * (size // 2**17) + [size % 2**17]
    last = len(sizes) - 1
    return b"".join(struct.pack("<I", (i == last) | 1 << 1 | n << 3)[:3] + b"\0" for i, n in enumerate(sizes))


def _size(array: Path) -> int:
    return 4 * int(np.prod(json.loads((array / ".zarray").read_text())["chunks"]))


def _zarray(**changes: Any) -> Callable[[Path], object]:
    return lambda array: _edit(array / ".zarray", lambda facts: facts.update(changes))


def _chunk(make: Callable[[int], bytes]) -> Callable[[Path], object]:
    """Returns a change that replaces the chunk of an array. make: (its bytes, unpacked) -> the content of the file."""

    def change(array: Path) -> None:
        chunk = next(path for path in array.iterdir() if path.name != ".zarray")
        chunk.write_bytes(make(_size(array)))

    return change


def _added(name: str, content: bytes = b"{}") -> Callable[[Path], object]:
    def change(array: Path) -> None:
        (array / name).parent.mkdir(parents=True, exist_ok=True)
        (array / name).write_bytes(content)

    return change


def _item(name: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    return lambda array: _edit(array.parent / name, change)


def _first_tree(**changes: Any) -> Callable[[Any], None]:
    def change(facts: Any) -> None:
        next(iter(facts["tree_metadata"].values())).update(changes)

    return change


ZARR3 = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [1],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [40000, 40000]}},
    "chunk_key_encoding": {"name": "default"},
    "fill_value": 0.0,
    "codecs": [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "gzip", "configuration": {"level": 1}},
    ],
}


def _as_zarr3(array: Path) -> None:
    for path in array.iterdir():
        path.unlink()
    (array / "zarr.json").write_text(json.dumps(ZARR3))
    (array / "c").mkdir()
    (array / "c" / "0").write_bytes(gzip.compress(bytes(2**20), 1))


ARRAYS: dict[str, Callable[[Path], object]] = {
    "zarr 3": _as_zarr3,
    "zarr 3 next to zarr 2": _added("zarr.json", json.dumps(ZARR3).encode()),
    "zarr 3, as the metadata say": _item("_METADATA", lambda facts: facts.update(use_zarr3=True)),
    "OCDBT": _added("../manifest.ocdbt", b"\x0c\xdb"),
    "OCDBT of a host": _added("../ocdbt.process_0/manifest.ocdbt", b"\x0c\xdb"),
    "OCDBT in an array": _added("manifest.ocdbt", b"\x0c\xdb"),
    "N5": _added("attributes.json"),
    "a zarr group": _added("../.zgroup", b'{"zarr_format": 2}'),
    "attributes": _added(".zattrs"),
    "an unknown file": _added("LICENSE"),
    "a file with escapes": _added(ESCAPED),
    "a folder in an array": _added("more/0"),
    "blosc": _zarray(compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}),
    "gzip": _zarray(compressor={"id": "gzip", "level": 1}),
    "zlib": _zarray(compressor={"id": "zlib", "level": 1}),
    "bz2": _zarray(compressor={"id": "bz2", "level": 1}),
    "no compressor": _zarray(compressor=None),
    "a compressor with escapes": _zarray(compressor={"id": EVIL}),
    "a compressor with more settings": _zarray(compressor={"id": "zstd", "level": 1, "checksum": True}),
    "filters": _zarray(filters=[{"id": "delta", "dtype": "<f4"}]),
    "Fortran order": _zarray(order="F"),
    "a fill value": _zarray(fill_value=0),
    "a huge fill value": _zarray(fill_value="A" * 10_000_000),
    "another separator": _zarray(dimension_separator="/"),
    "objects": _zarray(dtype="|O"),
    "texts": _zarray(dtype="<U1000000"),
    "a structure": _zarray(dtype=[["a", "<f4"]]),
    "a structure with an offset": _zarray(dtype=[["a", "<f4", [10**9]]]),
    "big-endian numbers": _zarray(dtype=">f4"),
    "numbers of 8 bytes": _zarray(dtype="<f8"),
    "complex numbers": _zarray(dtype="<c16"),
    "a dtype with escapes": _zarray(dtype=EVIL),
    "a huge shape": _zarray(shape=[2**60]),
    "a negative shape": _zarray(shape=[-1]),
    "a huge chunk": _zarray(chunks=[2**40]),
    "a chunk of nothing": _zarray(chunks=[0, 0]),
    "a chunk of floats": _zarray(chunks=[1.5, 2.0]),
    "a chunk of true": _zarray(chunks=[True, True]),
    "chunks of another rank": _zarray(chunks=[1]),
    "a thousand dimensions": _zarray(shape=[1] * 1000, chunks=[1] * 1000),
    "zarr 2 as a float": _zarray(zarr_format=2.5),
    "an unknown entry": _zarray(**{LETTERS: 1}),
    "a deep .zarray": lambda array: (array / ".zarray").write_bytes(b"[" * 200_000),
    "a .zarray of 1 GiB": lambda array: _large(array / ".zarray", 2**30),
    "a chunk that is a bomb": _chunk(lambda n: frame(4 * 2**30, zeros(4 * 2**30))),
    "a bomb that claims the right size": _chunk(lambda n: frame(n, zeros(4 * 2**30))),
    "a bomb without a size": _chunk(lambda n: frame(None, zeros(4 * 2**30))),
    "a bomb after the chunk": _chunk(lambda n: frame(n, zeros(n)) + frame(4 * 2**30, zeros(4 * 2**30))),
    "a bomb in a skippable frame": _chunk(lambda n: b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(20)),
    "a bomb of empty blocks": _chunk(lambda n: frame(n, bytes(3) * 2**20 + zeros(n))),
    "a chunk that is damaged inside": _chunk(lambda n: frame(n, b"\x45\0\0" + bytes(8))),
    "a chunk of half the size": _chunk(lambda n: frame(n // 2, zeros(n // 2))),
    "a chunk that is cut off": _chunk(lambda n: frame(n, zeros(n))[:-5]),
    "a chunk that is empty": _chunk(lambda n: b""),
    "a chunk of noise": _chunk(lambda n: np.random.default_rng(0).bytes(n)),
    "a chunk of 1 GiB": lambda array: _large(array / "0.0", 2**30),
    "no chunk": lambda array: [path.unlink() for path in array.iterdir() if path.name != ".zarray"],
    "no .zarray": lambda array: (array / ".zarray").unlink(),
    "no array": lambda array: shutil.rmtree(array),
    "no metadata": lambda array: (array.parent / "_METADATA").unlink(),
    "deep metadata": lambda array: (array.parent / "_METADATA").write_bytes(b"[" * 200_000),
    "metadata of millions": lambda array: (array.parent / "_METADATA").write_bytes(JSON["millions of lists"]),
    "metadata of another tree": _item("_METADATA", _set("tree_metadata", value={})),
    "metadata that are a list": _item("_METADATA", lambda facts: [EVIL]),
    "metadata with another type": _item("_METADATA", _first_tree(value_metadata={"value_type": EVIL})),
    "metadata with keys that are paths": _item(
        "_METADATA", _first_tree(key_metadata=[{"key": "../../x", "key_type": 2}])
    ),
    "shardings that lie": _item("_sharding", lambda facts: dict.fromkeys(facts, EVIL)),
    "shardings of a million devices": _item(
        "_sharding", lambda facts: dict.fromkeys(facts, json.dumps({"shape": [10**6]}))
    ),
    "deep shardings": lambda array: (array.parent / "_sharding").write_bytes(b"[" * 200_000),
    "chunks that another file denies": _item("array_metadatas/process_0", lambda facts: {"array_metadatas": []}),
    "deep facts of arrays": lambda array: (array.parent / "array_metadatas" / "process_0").write_bytes(b"[" * 200_000),
    "another file of a host": _added("../array_metadatas/evil", b"{}"),
    "an item handler outside Orbax": lambda array: _edit(
        array.parent.parent / "_CHECKPOINT_METADATA", lambda facts: facts["item_handlers"].update(params="os.system")
    ),
    "deep facts of the checkpoint": lambda array: (array.parent.parent / "_CHECKPOINT_METADATA").write_bytes(
        b"[" * 200_000
    ),
}
USED = ("shardings", "an item handler", "chunks that another file", "metadata with another type")
"""Beginnings of the names of arrays that Orbax may use as they are."""


def arrays() -> Iterator[Case]:
    for name, change in ARRAYS.items():
        yield Case("arrays", name, partial(_with_array, change), refused=None if name.startswith(USED) else True)


# reference.npz, and files of numbers.


def _npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _zip(entries: dict[str, bytes], sizes: int | None = None, encrypted: bool = False) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
            if sizes is not None:
                archive.infolist()[-1].file_size = sizes
            if encrypted:
                archive.infolist()[-1].flag_bits |= 1
    return content.getvalue()


def _npy(shape: tuple[int, ...], content: bytes = b"\0" * 4, dtype: str = "<f4") -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue() + content


def _reference(world: World, folder: Path, content: bytes) -> None:
    run = _copy(world.run, folder)
    (run / "reference.npz").write_bytes(content)
    directory.read_reference(run)
    _sampled(run, "--mode", "reconstruct")


REFERENCES: dict[str, Callable[[], bytes]] = {
    "a pickle": lambda: pickle.dumps(Code()),
    "an array of objects": lambda: _npz(image=np.array([Code()], object)),
    "an array of texts": lambda: _npz(image=np.array([EVIL])),
    "dates": lambda: _npz(image=np.zeros(3, "M8[s]")),
    "a structure": lambda: _npz(image=np.zeros(3, [("a", "f4")])),
    "a bomb": lambda: _zip({"image.npy": _npy((2**27, 1, 1, 1), bytes(2**29))}),
    "many small bombs": lambda: _zip({f"a{i}.npy": _npy((2**22,), bytes(2**24)) for i in range(40)}),
    "a claim of terabytes": lambda: _zip({"image.npy": _npy((10**12,))}),
    "a claim that overflows": lambda: _zip({"image.npy": _npy((2**62, 2**62))}),
    "a negative shape": lambda: _zip({"image.npy": _npy((-1, 8, 8, 1))}),
    "a claim of the archive": lambda: _zip({"image.npy": _npy((4,))}, sizes=2**32 - 2),
    "a smaller claim of the archive": lambda: _zip({"image.npy": _npy((2**27,), bytes(2**29))}, sizes=100),
    "a password": lambda: _zip({"image.npy": _npy((1,))}, encrypted=True),
    "a name that is a path": lambda: _zip({"../../image.npy": _npy((1,))}),
    "no header": lambda: _zip({"image.npy": b"no header"}),
    "a header of Python": lambda: _zip(
        {"image.npy": b"\x93NUMPY\x01\0\x40\0" + b"__import__('os').system('touch code-was-run')".ljust(64)}
    ),
    "a header that is deep": lambda: _zip({"image.npy": b"\x93NUMPY\x01\0\xff\xff" + b"(" * 65535}),
    "no archive": lambda: b"no archive",
    "nothing": lambda: b"",
    "half an archive": lambda: _npz(image=np.zeros((4, 8, 8, 1)))[:100],
    "other examples": lambda: _npz(image=np.zeros((4, 9, 9, 1))),
    "a single number": lambda: _npz(image=np.float32(1)),
}


def references() -> Iterator[Case]:
    for name, make in REFERENCES.items():
        yield Case("references", name, lambda w, f, make=make: _reference(w, f, make()))
    yield Case("references", "1 GiB", _large_reference)


def _large_reference(world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    _large(run / "reference.npz", 2**30)
    directory.read_reference(run)


# Lines that training wrote.


def records() -> Iterator[Case]:
    for what, content in {**JSON, "no number": b'{"split": "validation", "step": "x"}'}.items():

        def read(world: World, folder: Path, content: bytes = content) -> None:
            lines = [b'{"step": 1, "split": "train", "loss": 1.0}', b'"split": "validation" "alarm"' + content]
            for name in ("metrics.jsonl", "telemetry.jsonl"):
                (folder / name).write_bytes(b"\n".join([*lines, b""]))
            trouble.repeat_warnings(folder / "telemetry.jsonl")
            for split in ("train", "validation"):
                curve.read_split(folder / "metrics.jsonl", split)

        def scores(world: World, folder: Path, content: bytes = content) -> None:
            (folder / "evaluation.json").write_bytes(content)
            assert directory.read_evaluation(folder) is None

        yield Case("records", f"metrics.jsonl and telemetry.jsonl with {what}", read)
        yield Case("records", f"evaluation.json with {what}", scores, refused=False)
    yield Case("records", "curves of gen.open", _curves)


def _curves(world: World, folder: Path) -> None:
    run = _copy(world.run, folder)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"split": "train", "step": [\n')
    gen.open(run).metrics()


# Tokenizers.

WORDS = {tokenizers.END: 0, "a": 1, "b": 2, "ab": 3}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "a normalizer that makes texts longer": {
        "normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    },
    "a lower-casing normalizer": {"normalizer": {"type": "Lowercase"}},
    "a distant token": {"model": {"type": "BPE", "vocab": {**WORDS, "far": 2**31}, "merges": []}},
    "a token beyond 64 bits": {"model": {"type": "BPE", "vocab": {**WORDS, "far": 2**70}, "merges": []}},
    "a negative token": {"model": {"type": "BPE", "vocab": {**WORDS, "far": -1}, "merges": []}},
    "merges of unknown tokens": {"model": {"type": "BPE", "vocab": WORDS, "merges": [["x", "y"]]}},
    "merges with escapes": {"model": {"type": "BPE", "vocab": WORDS, "merges": [[EVIL, "y"]]}},
    "merges that are numbers": {"model": {"type": "BPE", "vocab": WORDS, "merges": [[1, 2]]}},
    "a million merges": {"model": {"type": "BPE", "vocab": WORDS, "merges": [["a", "b"]] * 10**6}},
    "no END": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []},
    "words without an unknown token": {"model": {"type": "WordLevel", "vocab": {tokenizers.END: 0}, "unk_token": "?"}},
    "an unknown model": {"model": {"type": EVIL}},
    "an unknown decoder": {"decoder": {"type": EVIL}},
    "a pre-tokenizer that panics": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a regular expression that is none": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}
    },
    "a regular expression that backtracks": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    },
    "a huge regular expression": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a{999}){999}"}, "behavior": "Isolated", "invert": False}
    },
    "added tokens with escapes": {
        "added_tokens": [{"id": 9**9, "content": EVIL, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}]
    },
    "truncation": {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
    "padding to a gigabyte": {
        "padding": {"strategy": {"Fixed": 2**30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "a"}
    },
    "a post-processor": {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}},
    "a version with escapes": {"version": EVIL},
}  # fmt: skip
READ = (
    "truncation",
    "padding",
    "a post-processor",
    "a regular",
    "a huge regular",
    "added tokens",
    "a version",
    "a million",
)


def tokenizer_files() -> Iterator[Case]:
    yield from _json_cases_of_tokenizer()
    sound = json.loads(tokenizers.dump(tokenizers.byte()))
    for name, change in TOKENIZERS.items():
        content = json.dumps({**sound, **change}).encode()
        yield Case("tokenizers", name, partial(_tokenizer, content), refused=None if name.startswith(READ) else True)
    yield Case("tokenizers", "1 GiB", _large_tokenizer)


def _json_cases_of_tokenizer() -> Iterator[Case]:
    for what, content in JSON.items():
        yield Case("tokenizers", what, partial(_tokenizer, content))


def _tokenizer(content: bytes, world: World, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    tokenizer = tokenizers.load_folder(folder)
    for text in ("abc <|endoftext|>", "a" * 30 + "!", EVIL):
        tokens = tokenizers.encode(tokenizer, text)
        tokenizers.decode(tokenizer, [*tokens, 2**20])
    tokenizers.widths(tokenizer)


def _large_tokenizer(world: World, folder: Path) -> None:
    _large(folder / "tokenizer.json", 2**30)
    tokenizers.load_folder(folder)


# Pictures.


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a PNG file of these chunks."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


def _header(width: int, height: int, depth: int = 8, color: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)


def _animated(form: str, frames: int = 3) -> bytes:
    content, images = io.BytesIO(), [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(frames)]
    images[0].save(content, form, save_all=True, append_images=images[1:])
    return content.getvalue()


def _oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return _picture((4, 6), "RGB", "JPEG", exif=exif)


BIG = (9400, 9400)
PIXELS = zlib.compress(bytes(5 * 4), 1)
PICTURES: dict[str, tuple[Callable[[], bytes], bool | None]] = {
    "a bomb": (lambda: _picture((10_000, 10_000), "1"), True),
    "a bomb of a claim": (lambda: _png(_header(2**31 - 1, 2**31 - 1), (b"IDAT", PIXELS), (b"IEND", b"")), True),
    "a large grey one": (lambda: _picture(BIG, "L"), False),
    "a large one of bits": (lambda: _picture(BIG, "1"), False),
    "a large one with a palette": (lambda: _picture(BIG, "P"), False),
    "a large transparent palette": (lambda: _picture(BIG, "P", transparency=0), False),
    "a large one in colour": (lambda: _picture(BIG, "RGB"), False),
    "a large transparent one": (lambda: _picture(BIG, "RGBA"), False),
    "a large JPEG": (lambda: _picture(BIG, "RGB", "JPEG"), False),
    "a large CMYK JPEG": (lambda: _picture(BIG, "CMYK", "JPEG"), False),
    "a large turned TIFF": (lambda: _picture(BIG, "RGB", "TIFF", compression="tiff_deflate", tiffinfo={274: 6}), False),
    "a thin one": (lambda: _picture((80_000, 1), "L"), False),
    "cut off": (lambda: _picture((64, 64), "RGB", "PNG")[:-30], True),
    "a JPEG that is cut off": (lambda: _picture((64, 64), "RGB", "JPEG")[:400], True),
    "a GIF with frames": (lambda: _animated("GIF"), False),
    "a PNG with frames": (lambda: _animated("PNG"), False),
    "a WebP with frames": (lambda: _animated("WEBP"), False),
    "a TIFF with frames": (lambda: _animated("TIFF"), False),
    "CMYK": (lambda: _picture(mode="CMYK", form="JPEG"), False),
    "16 bits": (lambda: _picture(mode="I;16"), True),
    "16 bits in colour": (lambda: _png(_header(1, 1, 16, 2), (b"IDAT", zlib.compress(bytes(7))), (b"IEND", b"")), None),
    "floats": (lambda: _picture(mode="F", form="TIFF"), True),
    "a palette": (lambda: _picture(mode="P"), False),
    "a transparent palette": (lambda: _picture(mode="P", transparency=b"\0\x80"), False),
    "grey with transparency": (lambda: _picture(mode="LA"), False),
    "no pixels": (lambda: _png(_header(4, 4), (b"IEND", b"")), True),
    "no size": (lambda: _png(_header(0, 0), (b"IDAT", PIXELS), (b"IEND", b"")), True),
    "a checksum that is wrong": (lambda: _picture()[:-20] + bytes(20), True),
    "a bomb of a text": (
        lambda: _png(_header(4, 4), (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))), (b"IDAT", PIXELS), (b"IEND", b"")), None
    ),
    "a bomb of a profile": (
        lambda: _png(_header(4, 4), (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27))), (b"IDAT", PIXELS), (b"IEND", b"")), None
    ),
    "a bomb after the pixels": (lambda: _png(_header(4, 4), (b"IDAT", zlib.compress(bytes(2**28))), (b"IEND", b"")), None),
    "an impossible orientation": (lambda: _oriented(65000), False),
    "turned": (lambda: _oriented(6), False),
    "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch code-was-run) system\n", True),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>', True),
    "a web page": (lambda: b"<html>404", True),
    "a zip archive": (lambda: _zip({"a.png": _picture()}), True),
    "gzip": (lambda: gzip.compress(_picture()), True),
    "empty": (lambda: b"", True),
    "zeros": (lambda: bytes(1000), True),
}  # fmt: skip


def pictures() -> Iterator[Case]:
    for name, (make, refused) in PICTURES.items():
        yield Case("pictures", name, partial(_image, make, {}), refused)
        if name.startswith("a large"):
            yield Case("pictures", f"{name}, of which there are six", partial(_image, make, {"copies": 6}), refused)
        if not name.startswith("a large"):
            yield Case("pictures", f"{name}, skipped if it is bad", partial(_image, make, {"skip_bad": True}), False)
    yield Case("pictures", "a file of 100 GiB", _large_picture)


def _image(make: Callable[[], bytes], settings: dict[str, Any], world: World, folder: Path) -> None:
    root = folder / "images"
    root.mkdir()
    settings = dict(settings)
    (root / "0.png").write_bytes(_picture())
    content = make()
    for i in range(settings.pop("copies", 1)):
        (root / f"{i}a.png").write_bytes(content)
    _built(root, size=4, colors=3, **settings)


def _large_picture(world: World, folder: Path) -> None:
    (folder / "images").mkdir()
    _large(folder / "images" / "a.png", 100 * 2**30)
    _built(folder / "images", size=4)


# Texts.


def _text(folder: Path, content: bytes, name: str = "a.txt", **settings: Any) -> None:
    root = folder / "texts"
    root.mkdir()
    (root / name).write_bytes(content)
    _trained_texts(f"text:{root}", **settings)


def _jsonl(folder: Path, *lines: str | bytes) -> None:
    content = b"\n".join(line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in lines)
    (folder / "lines.jsonl").write_bytes(content)
    _trained_texts(f"jsonl:{folder / 'lines.jsonl'}")


def _trained_texts(name: str, **settings: Any) -> None:
    settings = {"split": "tail:0.3", "tokenizer": "byte", "length": 8, "batch_size": 4, **settings}
    data = Text(name=name, **settings).build()
    data.batch(0, 0, range(4))


SOUND = b"a sound text of a few words\n" * 40
TEXTS: dict[str, tuple[Callable[[], bytes], bool | None]] = {
    "NUL": (lambda: SOUND + b"\0" + SOUND, None),
    "mostly NUL": (lambda: bytes(5000), None),
    "a line of megabytes": (lambda: b"a" * 3_000_000, False),
    "a line of words": (lambda: b"word " * 300_000, False),
    "no UTF-8": (lambda: SOUND + b"\xff", True),
    "overlong UTF-8": (lambda: SOUND + b"\xc0\xaf", True),
    "surrogates": (lambda: SOUND + b"\xed\xa0\x80", True),
    "beyond Unicode": (lambda: SOUND + b"\xf4\x90\x80\x80", True),
    "half a character": (lambda: SOUND + b"\xe4\xb8", True),
    "a mark of order": (lambda: b"\xef\xbb\xbf" + SOUND, False),
    "UTF-16": (lambda: SOUND.decode().encode("utf-16"), True),
    "UTF-32": (lambda: SOUND.decode().encode("utf-32-le"), True),
    "gzip": (lambda: gzip.compress(SOUND), True),
    "a bomb of gzip": (lambda: gzip.compress(bytes(2**26)), True),
    "a zip archive": (lambda: _zip({"../../evil": SOUND}), True),
    "a PNG picture": (lambda: _picture((64, 64)), True),
    "PDF": (lambda: b"%PDF-1.7 " + bytes(range(256)), True),
    "escapes": (lambda: (EVIL * 100).encode(), False),
    "controls": (lambda: bytes(range(32)) * 100, None),
    "combining marks": (lambda: ("a" + "\u0301" * 100_000).encode(), False),
    "the end token": (lambda: b"<|endoftext|>" * 100, False),
    "empty": (lambda: b"", True),
    "blanks": (lambda: b" \n" * 1000, None),
}
LINES: dict[str, tuple[tuple[str | bytes, ...], bool | None]] = {
    "depth": ((b"[" * 100_000,), True),
    "deep objects": ((b'{"text": ' * 50_000,), True),
    "long numbers": ((b'{"text": ' + b"1" * 5000 + b"}",), True),
    "NaN": ((b'{"text": NaN}',) * 9, None),
    "lone surrogates": ((json.dumps({"text": "\ud800" * 50}),), True),
    "names twice": ((b'{"text": "a text of words", "text": "another text of words"}',) * 9, None),
    "other keys": ((json.dumps({"text": "a"}), json.dumps({EVIL: "a"})), True),
    "objects in an array": ((json.dumps([{"text": "a text of words"}] * 99),), False),
    "millions of objects": ((JSON["millions of objects"][11:-1] * 3,), True),
    "a line of megabytes": ((json.dumps({"text": "a" * 3_000_000}),) * 2, None),
    "no objects": ((b"1", b"2"), True),
    "no UTF-8": ((b'{"text": "\xff"}',), True),
    "a link as a value": ((json.dumps({"text": {"$ref": "/etc/passwd"}}),), True),
    "a template in a pair": (
        tuple(json.dumps({"source": "{0.__class__}", "target": f"{{a}}{i}"}) for i in range(20)),
        False,
    ),
}


def texts() -> Iterator[Case]:
    for name, (make, refused) in TEXTS.items():
        yield Case("texts", name, lambda w, f, make=make: _text(f, make()), refused)
    for name in ("escapes", "a line of megabytes", "combining marks", "controls"):
        make, refused = TEXTS[name]
        for tokenizer in ("bpe", "character"):
            act = lambda w, f, make=make, tokenizer=tokenizer: _text(f, make(), tokenizer=tokenizer, vocabulary=260)
            yield Case("texts", f"{name}, by {tokenizer}", act, None if tokenizer == "character" else refused)
    for name, (lines, refused) in LINES.items():
        yield Case("texts", f"JSON lines with {name}", lambda w, f, lines=lines: _jsonl(f, *lines), refused)
    yield Case("texts", "a prompt file of escapes", _prompt_file, refused=None)
    yield Case("texts", "a prompt file that is a pipe to nothing", _prompt_folder)


def _prompt_file(world: World, folder: Path) -> None:
    (folder / "prompt.txt").write_text(LETTERS)
    sample.main(
        [
            str(world.text),
            "--n",
            "1",
            "--tokens",
            "2",
            "--prompt-file",
            str(folder / "prompt.txt"),
            "--out",
            str(folder / "out"),
        ]
    )


def _prompt_folder(world: World, folder: Path) -> None:
    sample.main([str(world.text), "--n", "1", "--prompt-file", str(folder), "--out", str(folder / "out")])


# Models of Hugging Face.


def write_gpt2(folder: Path) -> None:
    """Writes a GPT-2 of two layers in the format of transformers."""
    arch = Architecture(layers=2, width=8, heads=2, dropout=0.1, **GPT2)
    spec = {"tokens": Feature((17,), "int32", vocab=520, end=0)}
    state = jax.eval_shape(LM(network=arch).build(spec, 1).init, jax.random.key(0))
    shapes = jax.eval_shape(to_gpt2, state.params["transformer"])
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(describe(arch, language.tokens(spec))["config.json"]))
    (folder / "model.safetensors").write_bytes(save(tensors))
    (folder / "tokenizer.json").write_bytes(tokenizers.dump(tokenizers.character(map(chr, range(0x100, 0x300)))))


def _safetensors(header: Any, content: bytes = b"") -> bytes:
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + content


def _tensor(**changes: Any) -> dict[str, Any]:
    return {"wte.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "half a header": lambda: b"\xff\0\0\0\0\0\0\0{",
    "a header of exabytes": lambda: b"\xff" * 8 + b"{}",
    "a deep header": lambda: _safetensors(b"[" * 200_000),
    "a header that is a list": lambda: _safetensors([EVIL]),
    "a header with millions of tensors": lambda: _safetensors({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}),
    "a shape beyond the file": lambda: _safetensors(_tensor(shape=[2**40, 2**40])),
    "a shape that overflows": lambda: _safetensors(_tensor(shape=[2**63, 2])),
    "a negative shape": lambda: _safetensors(_tensor(shape=[-1, 2])),
    "offsets beyond the file": lambda: _safetensors(_tensor(data_offsets=[0, 2**60])),
    "offsets that go back": lambda: _safetensors(_tensor(data_offsets=[16, 0]), bytes(16)),
    "offsets that overlap": lambda: _safetensors({**_tensor(), "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    "another dtype": lambda: _safetensors(_tensor(dtype="I32"), bytes(16)),
    "a dtype with escapes": lambda: _safetensors(_tensor(dtype=EVIL), bytes(16)),
    "names with escapes": lambda: _safetensors({EVIL: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    "metadata with escapes": lambda: _safetensors({"__metadata__": {"format": EVIL}, **_tensor()}, bytes(16)),
    "a pickle": lambda: pickle.dumps(Code()),
}  # fmt: skip
GPT2_CONFIG: dict[str, dict[str, Any]] = {
    "no layers": {"n_layer": 0},
    "layers beyond memory": {"n_layer": 10**9},
    "layers with escapes": {"n_layer": EVIL},
    "a width beyond memory": {"n_embd": 10**9},
    "a negative width": {"n_embd": -8},
    "NaN": {"n_embd": float("nan")},
    "no heads": {"n_head": 0},
    "a vocabulary beyond memory": {"vocab_size": 10**30},
    "positions beyond memory": {"n_positions": 10**12},
    "another model": {"model_type": EVIL},
    "another activation": {"activation_function": EVIL},
    "code of its own": {"auto_map": {"AutoModel": "evil.Code"}, "model_type": "evil"},
}


def imports() -> Iterator[Case]:
    for name, make in SAFETENSORS.items():
        yield Case("imports", f"safetensors with {name}", lambda w, f, make=make: _import_changed(w, f, weights=make()))
    for name, change in GPT2_CONFIG.items():
        yield Case(
            "imports", f"config.json with {name}", lambda w, f, change=change: _import_changed(w, f, config=change)
        )
    yield Case("imports", "weights that are a pickle", _import_pickle)
    for name in ("..", "", "../a", "/etc/passwd", "a/b", EVIL):
        yield Case("imports", f"an index to {ascii(name)[:20]}", partial(_import_index, name))


def _import_changed(
    world: World, folder: Path, weights: bytes | None = None, config: dict[str, Any] | None = None, tensor: str = ""
) -> None:
    source = Path(shutil.copytree(world.gpt2, folder / "gpt2"))
    if tensor:
        content = (source / "model.safetensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        header[tensor] = header.pop(next(name for name in header if name.endswith("wpe.weight")))
        weights = _safetensors(header, content[8 + size :])
    if weights is not None:
        (source / "model.safetensors").write_bytes(weights)
    if config is not None:
        _edit(source / "config.json", lambda facts: facts.update(config))
    import_run(source, folder / "run")


def _import_pickle(world: World, folder: Path) -> None:
    source = Path(shutil.copytree(world.gpt2, folder / "gpt2"))
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))
    import_run(source, folder / "run")


def _import_index(name: str, world: World, folder: Path) -> None:
    source = Path(shutil.copytree(world.gpt2, folder / "gpt2"))
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    import_run(source, folder / "run")


# Manifests of samples.


def sample_manifests() -> Iterator[Case]:
    for what, content in JSON.items():

        def act(world: World, folder: Path, content: bytes = content) -> None:
            (folder / "manifest.json").write_bytes(content)
            sample.verify(sample.Verify(folder / "manifest.json"))

        yield Case("samples", f"a manifest that is {what}", act)
    changes: dict[str, dict[str, Any]] = {
        "a run elsewhere": {"run": "/etc"},
        "a run with escapes": {"run": EVIL},
        "outputs elsewhere": {"outputs": {"../../victim.txt": "0"}},
        "absolute outputs": {"outputs": {"/etc/passwd": "0"}},
        "no outputs": {"outputs": {}},
        "outputs with zeros": {"outputs": {"\0": "0"}},
        "a seed beyond 32 bits": {"seed": 2**40},
        "a seed that is true": {"seed": EVIL},
        "a step with escapes": {"checkpoint": {"step": EVIL, "sha256": "0"}},
        "a step beyond all": {"checkpoint": {"step": 10**30, "sha256": "0"}},
        "a request of a billion": {"request": {"n": 10**9}},
        "a request with escapes": {"request": {EVIL: 1}},
        "a medium with escapes": {"medium": {EVIL: 1}},
    }
    for name, change in changes.items():
        verify = partial(_verify_changed, change)
        yield Case("samples", name, verify, refused=None if "zeros" in name else True)


def _verify_changed(change: dict[str, Any], world: World, folder: Path) -> None:
    _verify(world, folder, **change)


def _verify(world: World, folder: Path, **changes: Any) -> None:
    run = _copy(world.run, folder)
    path = run / "generated" / "manifest.json"
    _edit(path, lambda facts: facts.update(changes))
    sample.verify(sample.Verify(path))
