"""The cache: damaged entries are made again, entries in use and files of others are kept, and a command shows and clears it."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from gen import cache as command
from gen.data import cache, chunks, limit
from gen.data.cache import load_or_make
from gen.errors import UserError
from gen.files import create_folder, write_bytes
from gen.runtime.programs import Programs
from tests.damages import KINDS, Bench, Damage, build_tfds, prepared_mnist

LARGE = np.arange(2**19, dtype=np.int64)  # 4 MiB, so it is mapped
FAST = ("images", "large images", "programs", "file")
SAMPLE, LARGE_SAMPLE = 67, 13  # one of so many damages is tried in the fast tests, and in the slow ones


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "gen"


def make_large() -> cache.Arrays:
    return {"x": LARGE}


def not_made() -> cache.Arrays:
    raise AssertionError("the entry should be in the cache")


def try_damages(bench: Bench, damages: list[Damage]) -> list[str]:
    return [f"{damage}: {reason}" for damage in damages if (reason := bench.failure(damage))]


def test_a_sample_of_all_damages_is_healed(tmp_path):
    bench = Bench(tmp_path, {kind: KINDS[kind] for kind in FAST})
    found = list(bench.damages())
    assert len(found) > 400
    assert not try_damages(bench, found[::SAMPLE])


@pytest.mark.slow
def test_damages_to_every_kind_of_cache_are_healed(tmp_path):
    """All of them: python -m tests.damages."""
    data_dir = prepared_mnist(tmp_path)
    bench = Bench(tmp_path, KINDS | {"tfds": lambda folder: build_tfds(folder, data_dir)})
    assert not try_damages(bench, list(bench.damages())[::LARGE_SAMPLE])


def test_a_large_entry_is_sampled_until_a_fact_of_its_file_changes(home, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**12)
    load_or_make("large", make_large)
    read: list[int] = []

    def count(path, sums, chosen):
        read.append(len(chosen))
        return None

    monkeypatch.setattr(cache, "find_wrong", count)
    load_or_make("large", not_made)
    load_or_make("large", not_made, whole=True)
    os.utime(home / "large" / "x.npy")
    load_or_make("large", not_made)
    load_or_make("large", not_made)
    total = chunks.count_chunks((home / "large" / "x.npy").stat().st_size)
    assert read == [chunks.SAMPLE_CHUNKS, total, total, chunks.SAMPLE_CHUNKS]


def test_a_flip_in_a_large_entry_is_found_on_request_though_no_fact_tells_it(home, monkeypatch, capsys):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**10)
    monkeypatch.setattr(chunks, "SAMPLE_CHUNKS", 1)
    load_or_make("large", make_large, "numbers")
    path = home / "large" / "x.npy"
    content = bytearray(path.read_bytes())
    content[2**21] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(cache, "read_seen", lambda folder: {"x": chunks.facts_of(path.stat())})
    found = load_or_make("large", make_large, "numbers", whole=True)
    np.testing.assert_array_equal(found["x"], LARGE)
    assert "numbers: the cache is damaged" in capsys.readouterr().err


def test_arrays_of_the_cache_are_read_only():
    found = load_or_make("two", lambda: {"large": LARGE, "small": np.arange(3), "empty": np.zeros((0, 3))})
    assert not any(x.flags.writeable for x in found.values())
    assert found["empty"].shape == (0, 3)


def test_an_entry_of_an_older_version_is_made_again(home, capsys):
    (home / "key").mkdir(parents=True)
    np.save(home / "key" / "x.npy", np.arange(4))
    found = load_or_make("key", lambda: {"x": np.arange(3)}, "numbers")
    np.testing.assert_array_equal(found["x"], np.arange(3))
    assert "or an older version has made the entry" in capsys.readouterr().err


def test_the_least_recently_used_entries_make_room(home, monkeypatch):
    keys = [letter * 64 for letter in "abc"]
    for age, key in zip((50, 10, 90), keys, strict=True):
        load_or_make(key, lambda: {"x": np.zeros(2**15)})
        os.utime(home / key / limit.SUMS, (time.time() - age, time.time() - age))
    load_or_make(keys[2], not_made)  # it is the last used one now
    command.run(command.Options(limit="900kB"))
    load_or_make("d" * 64, lambda: {"x": np.zeros(2**15)})
    assert sorted(path.name[0] for path in home.iterdir() if path.is_dir()) == ["b", "c", "d"]
    # What has just been made stays, though it alone is larger than the bound.
    command.run(command.Options(limit="0"))
    load_or_make("e" * 64, lambda: {"x": np.zeros(2**15)})
    assert [path.name[0] for path in home.iterdir() if path.is_dir()] == ["e"]


def test_an_entry_in_use_stays_until_its_arrays_are_gone(home, capsys):
    found = load_or_make("a" * 64, make_large, "numbers")
    command.run(command.Options(clear=True))
    assert "kept, because they are in use" in capsys.readouterr().out
    np.testing.assert_array_equal(found["x"], LARGE)
    del found
    command.run(command.Options(clear=True))
    assert not (home / ("a" * 64)).exists()


def test_clearing_removes_nothing_that_gen_did_not_write(home):
    load_or_make("a" * 64, lambda: {"x": np.arange(3)})
    Programs(home / "programs-x").put("key", b"program")
    mine = [home / "notes.txt", home / "mine" / "x.npy", home / ("a" * 64) / "notes.txt", home / "programs-x" / "notes"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    command.run(command.Options(clear=True))
    assert sorted(path.name for path in home.rglob("*") if path.is_file()) == [
        "notes",
        "notes.txt",
        "notes.txt",
        "x.npy",
    ]
    assert limit.list_items(home) == []


def test_the_command_shows_what_lies_in_the_cache(home, capsys):
    command.run(command.Options())
    load_or_make("a" * 64, make_large, "decoded images of folder:pets")
    command.run(command.Options(limit="50GB"))
    shown = capsys.readouterr().out
    assert "of at most 50.0 GB" in shown
    assert "4.2 MB   0 hours ago  decoded images of folder:pets" in shown
    with pytest.raises(UserError, match="give one such as 50GB"):
        command.run(command.Options(limit="much"))


def test_what_a_killed_process_left_is_removed_after_a_day(home):
    for name, age in (("old", 2 * limit.LEFT_SECONDS), ("new", 0)):
        folder = home / f"{limit.WRITING}{name}"
        folder.mkdir(parents=True)
        np.save(folder / "x.npy", np.arange(3))
        os.utime(folder, (time.time() - age, time.time() - age))
    load_or_make("key", lambda: {"x": np.arange(3)})
    assert [path.name for path in home.glob(f"{limit.WRITING}*")] == [f"{limit.WRITING}new"]


def test_a_link_to_nothing_in_the_place_of_the_cache_stays(home, capsys):
    home.parent.mkdir(parents=True)
    home.symlink_to("unmounted")
    np.testing.assert_array_equal(load_or_make("key", make_large)["x"], LARGE)
    assert home.is_symlink()
    assert "can't be written" in capsys.readouterr().err


def test_everything_is_on_the_disk_before_it_is_renamed(home, tmp_path, monkeypatch):
    """After a power cut a renamed file must not be empty."""
    calls: list[tuple[str, str]] = []
    sync, rename, replace = os.fsync, Path.rename, os.replace

    def name_of(number: int) -> str:
        return os.readlink(f"/proc/self/fd/{number}")

    monkeypatch.setattr(os, "fsync", lambda number: (calls.append(("sync", name_of(number))), sync(number)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (calls.append(("rename", str(a))), rename(a, b))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("rename", str(a))), replace(a, b)))
    load_or_make("key", lambda: {"x": np.arange(3)})
    write_bytes(tmp_path / "file", b"content")
    with create_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
    renamed = [i for i, (what, _) in enumerate(calls) if what == "rename"]
    assert len(renamed) >= 4
    for i in renamed:
        moved = Path(calls[i][1])
        assert ("sync", str(moved)) in calls[:i], moved
        assert ("sync", str(moved.parent)) in calls[i:], moved
    synced = {Path(path).name for what, path in calls if what == "sync"}
    assert {"x.npy", "inner", "file"} <= synced


@pytest.mark.slow
def test_jax_compiles_a_damaged_program_again(tmp_path):
    """In a process that compiles as users do."""
    import subprocess
    import sys

    code = (
        "import jax, jax.numpy as jnp\n"
        "from gen.config import Parallel\n"
        "from gen.runtime.backend import start_backend\n"
        "start_backend(Parallel())\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "print(float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.arange(64.0)).sum()))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") and k != "XLA_FLAGS"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}

    def run() -> tuple[str, str]:
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return done.stdout, done.stderr

    expected, _ = run()
    programs = sorted((tmp_path / "cache").rglob("*-cache"))
    assert programs
    for damage in (lambda path: path.write_bytes(b""), lambda path: (path.unlink(), os.mkfifo(path))):
        for path in programs:
            damage(path)
        found, said = run()
        assert found == expected
        assert said.count("the cache of compiled programs is damaged") == len(programs), said
    # A damaged program is removed, and not kept under another name.
    assert not list((tmp_path / "cache").rglob("*not-of-gen*"))
    assert run() == (expected, "")
