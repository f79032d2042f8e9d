"""A stranger's run directory, images, texts and data sets cannot run code, leave their folder, take all memory, reveal the
environment, or end in a traceback."""

import ast
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen import config as configs
from gen import errors, files, sample
from gen.config import Config, Log, Parallel, Save
from gen.data import tfds_sets
from gen.data.images import Images
from gen.data.text import Text, tokenizers
from gen.errors import UserError
from gen.families.vae import VAE
from gen.interop import convert
from gen.runs import base as runs_base
from gen.runs import checkpoint, directory, manifest
from gen.train import train

ROOT = Path(__file__).parent.parent
SECRET = "hunter2-0123456789"


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Iterator[Path]:
    """A run that was trained with secrets in the environment."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    quick: dict[str, Any] = {
        "steps": 2,
        "evaluate_every": 0,
        "save": Save(every=2),
        "log": Log(every=1),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SECRET_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
            patch.setenv(name, SECRET)
        train(replace(tiny("vae_digits"), **quick, parallel=Parallel(devices=1)), workdir)
        sampled(workdir)
        yield workdir


@pytest.fixture
def foreigners(trained, tmp_path) -> Path:
    """A run of a stranger."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def edited(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def sampled(workdir: Path, *arguments: object) -> Path:
    sample.main([str(workdir), "--n", "4", "--out", str(workdir / "out"), *map(str, arguments)])
    return workdir / "out" / "manifest.json"


class Code:
    """An object that writes a file when it is unpickled."""

    def __reduce__(self):
        return open, ("code-was-run", "w")


def test_nothing_imports_a_module_that_unpickles():
    for path in [*ROOT.glob("*.py"), *(ROOT / "gen").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            unsafe = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch", "yaml"}
            assert not unsafe & {name.split(".")[0] for name in names}, path


def test_a_pickle_in_the_reference_is_not_read(foreigners, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(foreigners / "reference.npz", image=np.array([Code()], object))
    with pytest.raises(UserError, match=r"reference\.npz is damaged"):
        directory.read_reference(foreigners)
    (foreigners / "reference.npz").write_bytes(pickle.dumps(Code()))
    with pytest.raises(UserError, match=r"reference\.npz is damaged"):
        directory.read_reference(foreigners)
    assert not Path("code-was-run").exists()


def test_a_prepared_set_imports_nothing(tmp_path, monkeypatch):
    """TFDS would import any class that a features.json names."""
    (tmp_path / "strangers.py").write_text("open('code-was-run', 'w')")
    folder = tmp_path / "tfds" / "evil" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "evil", "version": "1.0.0", "fileFormat": "array_record"}')
    (folder / "features.json").write_text('{"pythonClassName": "strangers.Feature", "json": {"json": "{}"}}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for data in (Images(name="evil", data_dir="tfds"), Text(name="evil", data_dir="tfds")):
        with pytest.raises(UserError, match=r"names 'strangers\.Feature', which is not part of TFDS"):
            data.build()
    assert not Path("code-was-run").exists()
    (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        tfds_sets.open_set(folder)


def test_an_image_runs_no_program(tmp_path, monkeypatch):
    """Pillow recognizes images by their content, and runs Ghostscript for EPS."""
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/code-was-run\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png", "EPS")
    with pytest.raises(UserError, match="not an image that Pillow can read"):
        Images(name=f"folder:{tmp_path}/images", train="train", validation="train", test="train").build()
    assert not (tmp_path / "code-was-run").exists()


@pytest.mark.parametrize(
    "place", [".lock", ".config.json.tmp", "generated", "reference.npz", "checkpoints/2/meta/metadata", "checkpoints/3"]
)
def test_a_run_with_a_link_out_of_it_is_refused(place, foreigners, tmp_path):
    """Also a link that leads nowhere yet: writing through it would create a file."""
    target = tmp_path / "private"
    target.write_text("mine")
    for private in (target, tmp_path / "nothing"):
        link = foreigners / place
        link.unlink() if link.is_file() or link.is_symlink() else None
        link.symlink_to(os.path.relpath(private, link.parent))
        with pytest.raises(UserError, match="is a link out of"):
            sampled(foreigners)
        with pytest.raises(UserError, match="is a link out of"), directory.lock_run(foreigners):
            pass
    assert target.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_a_run_may_be_a_link_and_hold_links_into_itself(foreigners, tmp_path):
    (foreigners / "generated").mkdir()
    (foreigners / "latest").symlink_to("generated")
    (tmp_path / "linked").symlink_to(foreigners)
    assert sample.verify(sample.Verify(sampled(tmp_path / "linked"))) == 0


@pytest.mark.parametrize("place", ["config.json", "spec.json", "pipe", "checkpoints/2/manifest.json"])
def test_a_run_with_a_pipe_is_refused_without_waiting(place, foreigners):
    (foreigners / place).unlink(missing_ok=True)
    os.mkfifo(foreigners / place)
    with pytest.raises(UserError, match=r"is a pipe|neither a file nor a folder"):
        sampled(foreigners)


def test_an_output_that_is_a_link_is_not_read(foreigners, tmp_path, capsys):
    manifest = sampled(foreigners)
    (tmp_path / "copy").mkdir()
    for name in ("manifest.json", "samples.npz"):
        shutil.copy(manifest.parent / name, tmp_path / "copy")
    (tmp_path / "copy" / "samples.png").symlink_to("/dev/zero")
    assert sample.verify(sample.Verify(tmp_path / "copy" / "manifest.json", run=foreigners)) == 1
    assert "samples.png is missing" in capsys.readouterr().out


def test_a_base_elsewhere_is_named_and_another_run_is_not_read(foreigners, tmp_path, capsys):
    private = tmp_path / "private" / "checkpoints" / "2"
    private.mkdir(parents=True)
    (private / "manifest.json").write_text("{}")
    (tmp_path / "private" / "config.json").write_text("what reading would stumble over")
    base = {"path": "../private", "step": 2, "sha256": "0" * 64}
    edited(foreigners / "config.json", lambda facts: facts.update(base=base))
    with pytest.raises(UserError, match="their digests differ"):
        runs_base.base_of_run(foreigners, directory.read_config(foreigners)[1])
    assert f"has the base {tmp_path / 'private'}" in capsys.readouterr().err
    for wrong in ("../private", {}, {**base, "step": "2"}, {**base, "path": None}):
        edited(foreigners / "config.json", lambda facts: facts.update(base=wrong))  # noqa: B023
        with pytest.raises(UserError, match="its base is not a path, a step and a sha256"):
            runs_base.base_of_run(foreigners, directory.read_config(foreigners)[1])


def test_links_to_texts_are_followed_and_links_to_folders_and_pipes_left_out(tmp_path, capsys):
    """As in the stores of DVC, git-annex and Hugging Face."""
    store, folder, copies = tmp_path / "store", tmp_path / "texts", tmp_path / "copies"
    for each in (store, folder, copies):
        each.mkdir()
    for name in ("a", "b"):
        (store / name).write_text(f"the text of {name}\n" * 9)
        (folder / f"{name}.txt").symlink_to(store / name)
    (folder / "own.txt").write_text("its own text\n" * 9)
    for file in folder.iterdir():
        (copies / file.name).write_bytes(file.read_bytes())
    (folder / "linked").symlink_to(store)
    (folder / "broken.txt").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "c.txt")

    def build(path: Path) -> str:
        return Text(name=f"text:{path}", split="tail:0.3", length=8, batch_size=4).build().digest

    assert build(folder) == build(copies)
    said = (
        "2 of 3 files are links to files outside of it; left out 1 links to folders, 2 broken links, pipes and devices"
    )
    assert f"{folder}: {said}\n" in capsys.readouterr().err
    for name in ("a.txt", "b.txt", "own.txt"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="no text files in it; left out 1 links to folders, 2 broken links"):
        build(folder)


def test_pipes_in_folders_of_images_are_left_out(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (2, 2)).save(folder / "a.png")
    os.mkfifo(folder / "b.png")
    assert Images(name=f"folder:{folder}", train="train", validation="train", test="train").build().sizes["train"] == 1


@pytest.mark.parametrize("name", ["mnist/..", "mnist/.", "../mnist", "/mnist", "mnist/../.."])
def test_the_name_of_a_data_set_is_not_a_path(name):
    with pytest.raises(UserError, match="nor a TFDS name"):
        Images(name=name).build()


@pytest.mark.parametrize("name", ["..", "", "../other.safetensors", "/other.safetensors"])
def test_an_index_names_files_in_its_folder(name, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(UserError, match="no weight_map to files in its folder"):
        convert.weights(tmp_path)


def claimed(shape: tuple[int, ...]) -> bytes:
    """Returns an npz file whose image claims a shape and holds one number."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("image.npy", header.getvalue() + b"\0\0\0\0")
    return content.getvalue()


def test_an_archive_that_claims_100_gigabytes_is_refused(foreigners):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(25):
            archive.writestr(f"{i}.npy", b"\0" * 2**20)
            archive.infolist()[-1].file_size = 2**32 - 2
    for packed in (content.getvalue(), claimed((10**12,)), claimed((2**62, 2**62))):
        (foreigners / "reference.npz").write_bytes(packed)
        with pytest.raises(UserError, match=r"reference\.npz is damaged"):
            directory.read_reference(foreigners)


@pytest.mark.parametrize(
    "feature",
    [
        *({"shape": shape} for shape in ([-8, 8, 1], [10**9, 8, 1], [2**13, 2**13, 3], [8.0, 8, 1], "8", None, [8, 8])),
        *({"levels": levels} for levels in (0, -1, 10**12, float("nan"), "17", True)),
        *({"dtype": 3}, {"dequantized": 1}, {"end": -1}, {"end": 3}, {"vocab": 10**12}, {"size": 1}),
    ],
    ids=str,
)
def test_a_spec_with_impossible_sizes_is_refused(feature, foreigners):
    edited(foreigners / "spec.json", lambda spec: spec["image"].update(feature))
    with pytest.raises(UserError, match=r"spec\.json"):
        sampled(foreigners)


def test_nothing_larger_than_memory_is_allocated(foreigners, monkeypatch):
    manifest = sampled(foreigners)
    edited(manifest, lambda facts: facts["request"].update(n=100_000))
    monkeypatch.setattr(files.os, "sysconf", lambda _: 2**12)
    with pytest.raises(UserError, match="generating these samples needs 0 GiB"):
        sample.verify(sample.Verify(manifest))
    monkeypatch.undo()
    config, facts = directory.read_config(foreigners)
    assert isinstance(config.model, VAE)
    huge = replace(config, model=replace(config.model, network=replace(config.model.network, hidden=(10**7, 10**7))))  # pyright: ignore
    # A stranger's digests fit the config.
    directory.write_config(foreigners, huge, facts.data, identities=[facts.identity])
    with pytest.raises(UserError, match=r"the model of .* needs [\d,]+ GiB of memory"):
        sampled(foreigners)


@pytest.mark.parametrize("chunks", [[10**9, 192], [-1, -192], "all", None])
def test_a_chunk_unpacks_to_no_more_than_its_array(chunks, foreigners):
    step = foreigners / "checkpoints" / "2"
    edited(next(step.glob("params/*/.zarray")), lambda facts: facts.update(chunks=chunks))
    manifest.seal(step)
    with pytest.raises(UserError, match=r"\.zarray is damaged|not of this model"):
        sampled(foreigners)


@pytest.mark.parametrize("name", ["params/_METADATA", "params/array_metadatas/process_0"])
def test_a_sealed_checkpoint_of_another_model_is_a_short_error(name, foreigners):
    step = foreigners / "checkpoints" / "2"
    edited(step / name, lambda facts: facts.update({key: [3] for key in facts}))
    manifest.seal(step)
    with pytest.raises(UserError, match="is undamaged, but not of this model"):
        sampled(foreigners)


def test_without_numbers_the_latest_checkpoint_is_the_best(foreigners):
    (foreigners / "checkpoints" / "2" / "meta" / "metadata").write_text('{"validation": {"loss": "low"}}')
    best = replace(Save(), best=("loss", "min"))
    manifest.seal(foreigners / "checkpoints" / "2")
    assert checkpoint.best(foreigners / "checkpoints", best, pytest.fail) == 2


def test_an_image_that_is_a_bomb_is_refused(tmp_path):
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    (tmp_path / "a.png").write_bytes(bomb.getvalue())
    splits = dict.fromkeys(("train", "validation", "test"), "train")
    with pytest.raises(UserError, match="Pillow thinks safe"):
        Images(name=f"folder:{tmp_path}", **splits).build()
    Image.new("1", (9_000, 9_000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"--data\.size"):
        Images(name=f"folder:{tmp_path}", **splits).build()


def grown(facts: Any) -> None:
    facts["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
    }


def sparse(facts: Any) -> None:
    facts["model"]["vocab"]["far"] = 2**31


@pytest.mark.parametrize(("change", "message"), [(grown, "without a normalizer"), (sparse, "must be below")])
def test_a_tokenizer_that_would_take_all_memory_is_refused(change, message):
    facts = json.loads(tokenizers.dump(tokenizers.byte()))
    change(facts)
    with pytest.raises(UserError, match=message):
        tokenizers.load(json.dumps(facts).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},  # the library panics
        {"model": {"type": "WordLevel", "vocab": {tokenizers.END: 0}, "unk_token": "?"}},
        {"model": {"type": "BPE", "vocab": {tokenizers.END: 0, "日": 1}, "merges": []}},
    ],
)
def test_a_tokenizer_that_cannot_encode_is_a_short_error(change):
    facts = json.loads(tokenizers.dump(tokenizers.byte()))
    with pytest.raises(UserError, match=r"cannot read a text|not made of bytes"):
        tokenizers.encode(tokenizers.load(json.dumps(facts | change).encode()), "a text")


def test_an_import_with_more_layers_than_tensors_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"wte.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    facts = {"model_type": "gpt2", "n_layer": 10**7, "n_embd": 2, "n_head": 1, "vocab_size": 2, "n_positions": 2}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="too few for the 10000000 layers"):
        convert.import_run(tmp_path, tmp_path / "run")
    (tmp_path / "config.json").write_text(json.dumps({**facts, "vocab_size": 10**30}))
    with pytest.raises(UserError, match="vocab_size"):
        convert.import_run(tmp_path, tmp_path / "run")


DAMAGED = ["[" * 100_000, "1" * 5000, "\xff", "null", "[]", '{"a": 1}', ""]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("name", ["config.json", "spec.json", "evaluation.json", "checkpoints/2/manifest.json"])
def test_damaged_json_is_a_short_error(name, content, foreigners):
    (foreigners / name).write_text(content, encoding="latin1")
    if name == "evaluation.json":
        assert directory.read_evaluation(foreigners) is None
        return
    with pytest.raises(UserError):
        sampled(foreigners)


@pytest.mark.parametrize(
    "part", [{"metrics": []}, {"metrics": {"a": "x"}}, {"metrics": {"a": 10**400}}, {"protocol": 3}]
)
def test_an_evaluation_without_numbers_is_ignored(part, foreigners):
    edited(foreigners / "evaluation.json", lambda facts: facts.update(part))
    assert directory.read_evaluation(foreigners) is None


@pytest.mark.parametrize("arrays", [{"image": np.zeros(3)}, {"image": np.zeros((3, 9, 9, 1))}, {"x": np.float32(1)}])
def test_a_reference_for_other_data_is_a_short_error(arrays, foreigners):
    np.savez(foreigners / "reference.npz", **arrays)
    with pytest.raises(UserError, match="has the shape"):
        sampled(foreigners, "--mode", "reconstruct")
    (foreigners / "reference.npz").unlink()
    with pytest.raises(UserError, match=r"has no reference\.npz"):
        sampled(foreigners)


def test_values_that_only_look_right_are_refused():
    with pytest.raises(UserError, match="must be float"):
        configs.decode(float, 10**400)
    with pytest.raises(UserError, match=r"colors is true"):
        configs.decode(Images, configs.encode(Images()) | {"colors": True})
    with pytest.raises(UserError, match="size is 9223372036854775808"):
        configs.decode(Images, configs.encode(Images()) | {"size": 2**63})
    with pytest.raises(UserError, match="9223372036854775808 is too large"):
        Config(model=VAE(latents=(2**63,)), data=Images(), steps=1)


def test_a_file_name_that_is_not_unicode_is_accepted(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / os.fsdecode(b"\xff.png"))
    assert (
        Images(name=f"folder:{tmp_path}", train="train", validation="train", test="train").build().sizes["train"] == 1
    )


@pytest.mark.parametrize("name", ["folder:~nobody/x", "folder:" + "a" * 300])
def test_an_impossible_folder_is_a_short_error(name, capsys):
    with pytest.raises(SystemExit) as exit:
        errors.run_command(lambda: print(Images(name=name).build()))
    assert exit.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_number_with_too_many_digits_names_its_line(tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "a"}\n{"text": ' + "1" * 5000 + "}\n")
    with pytest.raises(UserError, match=r"lines\.jsonl:2: has a number with too many digits"):
        Text(name=f"jsonl:{tmp_path}/lines.jsonl").build()


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\xf6 \\u4e16"), ("latin-1", "\xf6 \\u4e16")])
def test_a_terminal_that_cannot_print_a_character_gets_an_escape(encoding, shown, monkeypatch):
    """On both streams. Every command of gen runs in `run_command`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    def fails() -> None:
        print("\xf6 \u4e16", flush=True)
        raise UserError("\xf6 \u4e16")

    with pytest.raises(SystemExit):
        errors.run_command(fails)
    assert out.buffer.getvalue().decode(encoding) == f"{shown}\n"  # pyright: ignore
    assert err.buffer.getvalue().decode(encoding) == f"error: {shown}\n"  # pyright: ignore
    commands = [*ROOT.glob("*.py"), *(ROOT / "gen").rglob("*.py")]
    mains = [path for path in commands if '__name__ == "__main__"' in path.read_text()]
    assert len(mains) >= 7
    assert not [path for path in mains if "run_command(main" not in path.read_text()]


def test_an_error_does_not_control_the_terminal(capsys):
    def fails() -> None:
        raise UserError("no \x1b[2J\x9b\rfile \ud800 é\n\tat all", "the fix")

    with pytest.raises(SystemExit):
        errors.run_command(fails)
    assert capsys.readouterr().err == "error: no \\x1b[2J\\x9b\\rfile \\ud800 é\\n\tat all\nthe fix\n"


def test_out_of_memory_is_a_short_error(capsys):
    with pytest.raises(SystemExit) as exit:
        errors.run_command(lambda: print(np.empty(10**17)))
    assert exit.value.code == 2
    assert "out of memory" in capsys.readouterr().err


def test_a_run_holds_nothing_of_the_environment(trained, tmp_path, capsys):
    manifest = sampled(shutil.copytree(trained, tmp_path / "run"))
    sample.verify(sample.Verify(manifest))
    assert {"config.json", "telemetry.jsonl", "manifest.json"} <= {path.name for path in tmp_path.rglob("*")}
    for path in [*tmp_path.rglob("*"), *trained.rglob("*")]:
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in str(capsys.readouterr())
