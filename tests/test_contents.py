"""Data that changed: checksums of files, a sample of files checked at each start, all on request, and runs with an older digest."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen.config import Config
from gen.core import Dataset
from gen.data import chunks, contents
from gen.data.chunks import FileFacts, facts_of
from gen.data.contents import content_sums
from gen.data.images import Images
from gen.errors import UserError
from gen.runs import directory
from tests.datasets import images_of, text_of, write_image, write_lines, write_text


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return tmp_path_factory.mktemp("home")


def write_ppm(folder: Path, seed: int) -> Path:
    """Writes pictures without compression: others have the same sizes."""
    for i, pixel in enumerate(np.random.default_rng(seed).integers(0, 256, (12, 6, 6, 3), np.uint8)):
        write_image(folder / f"{i}.ppm", pixel)
    return folder


def swap(path: Path) -> None:
    """Changes a byte and keeps size and time."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def listed(folder: Path) -> tuple[list[str], list[FileFacts]]:
    paths = sorted(path.name for path in folder.iterdir())
    return paths, [facts_of((folder / path).stat()) for path in paths]


def write_files(folder: Path, count: int = 5) -> Path:
    for i in range(count):
        write_text(folder / str(i), f"text {i}")
    return folder


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = contents.chunk_sums
    monkeypatch.setattr(contents, "chunk_sums", lambda path: (read.append(path.name), original(path))[1])
    return read


def test_each_file_is_read_once_and_again_when_a_fact_of_it_changes(tmp_path, monkeypatch):
    folder, read = write_files(tmp_path / "files"), count_reads(monkeypatch)
    first = content_sums(folder, *listed(folder))
    assert content_sums(folder, *listed(folder)) == first
    assert sorted(read) == list("01234")
    swap(folder / "2")
    (folder / "3").unlink()
    write_text(folder / "7", "new")
    found = content_sums(folder, *listed(folder))
    assert sorted(read[5:]) == ["2", "7"]
    assert [found[i] == first[j] for i, j in ((0, 0), (1, 1), (2, 2), (3, 4))] == [True, True, False, True]


def test_files_that_are_not_wanted_are_not_read_and_others_keep_their_sums(tmp_path, monkeypatch):
    folder, read = write_files(tmp_path / "files"), count_reads(monkeypatch)
    odd = np.array([False, True, False, True, False])
    assert len(content_sums(folder, *listed(folder), odd)) == 2
    content_sums(folder, *listed(folder), ~odd)
    content_sums(folder, *listed(folder), odd)
    assert sorted(read) == list("01234")


def test_a_changed_file_that_no_fact_tells_is_found_by_the_sample(tmp_path, monkeypatch, capsys):
    folder = write_files(tmp_path / "files")
    first = content_sums(folder, *listed(folder))
    before = listed(folder)
    swap(folder / "2")
    # The facts of the old file: as on a disk that lost a bit, or a file system without such times.
    found = content_sums(folder, *before)
    assert [a == b for a, b in zip(first, found, strict=True)] == [True, True, False, True, True]
    assert "2 has changed without a change of size or time" in capsys.readouterr().err


def test_all_bytes_are_compared_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "SAMPLE_CHUNKS", 0)
    folder = write_files(tmp_path / "files")
    first, before = content_sums(folder, *listed(folder)), listed(folder)
    swap(folder / "2")
    assert content_sums(folder, *before) == first
    assert content_sums(folder, *before, whole=True) != first


def test_a_sample_has_the_stated_number_of_chunks_and_differs_each_time():
    counts = np.array([0, 1, 1000, 0, 3, 500])
    draws = [chunks.draw_chunks(counts) for _ in range(2)]
    for draw in draws:
        assert sum(map(len, draw.values())) == chunks.SAMPLE_CHUNKS
        assert all(0 <= chunk < counts[file] for file, found in draw.items() for chunk in found)
    assert draws[0] != draws[1]
    assert chunks.draw_chunks(np.array([2, 0, 1])) == {0: [0, 1], 2: [0]}
    assert chunks.draw_chunks(np.array([], np.int64)) == {}


def test_an_unreadable_file_is_left_to_the_reader_of_the_data(tmp_path):
    folder = write_files(tmp_path / "files")
    paths, facts = listed(folder)
    (folder / "2").unlink()
    os.mkfifo(folder / "2")
    assert content_sums(folder, paths, facts)[2] == contents.UNREADABLE


def kinds(folder: Path) -> dict[str, tuple[Callable[[], Dataset], Path]]:
    """Returns {kind of data: (its builder, a file of it)}."""
    pictures = write_ppm(folder / "pictures", 0)
    book = write_text(folder / "texts" / "a.txt", "".join(f"CHAPTER {i}\nsome text of {i}\n" for i in range(60)))
    lines = write_lines(folder / "lines.jsonl", *({"text": f"text {i}", "label": "ab"[i % 2]} for i in range(60)))
    options: Any = {"document_break": None}
    return {
        "held": (images_of(pictures).build, pictures / "3.ppm"),
        "large": (images_of(pictures, in_memory=0).build, pictures / "3.ppm"),
        "texts": (text_of(book.parent).build, book),
        "text": (text_of(book).build, book),
        "jsonl": (text_of(lines, name=f"jsonl:{lines}", **options).build, lines),
    }


@pytest.mark.parametrize("kind", ["held", "large", "texts", "text", "jsonl"])
def test_data_that_changed_have_another_digest_though_size_and_time_were_kept(tmp_path, kind):
    build, path = kinds(tmp_path)[kind]
    before = build().digest
    assert build().digest == before
    content = path.read_bytes()
    swap(path) if kind in ("held", "large") else rewrite_text(path)
    assert build().digest != before
    path.write_bytes(content)
    # The content alone counts.
    assert build().digest == before


def rewrite_text(path: Path) -> None:
    """Changes a letter in the last document or pair, and keeps size and time."""
    before, content = path.stat(), path.read_bytes()
    at = content.rindex(b"text")
    path.write_bytes(content[:at] + b"test" + content[at + 4 :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_copy_of_a_folder_has_the_digest_and_the_decoded_images_of_the_original(tmp_path, monkeypatch):
    import shutil

    folder = write_ppm(tmp_path / "pictures", 0)
    before = {n: images_of(folder, in_memory=n).build().digest for n in (0, 2**31)}
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    monkeypatch.setattr("gen.data.images.pixels.decode", None)
    assert {n: images_of(copy, in_memory=n).build().digest for n in (0, 2**31)} == before


def begin(workdir: Path, data: Dataset, config: Config) -> None:
    workdir.mkdir(exist_ok=True)
    directory.begin_run(workdir, config, data)


def test_a_run_with_an_older_digest_goes_on_with_a_warning_and_has_the_new_digest_then(tmp_path, capsys):
    from gen.config import load

    config = load("vae_digits")
    folder = write_ppm(tmp_path / "pictures", 0)
    data = images_of(folder, in_memory=0).build()
    assert len(data.older) == 1
    assert data.older[0] != data.digest
    begin(tmp_path / "run", data._replace(digest=data.older[0], older=()), config)
    begin(tmp_path / "run", data, config)
    assert "can't be checked" in capsys.readouterr().err
    begin(tmp_path / "run", data, config)
    assert "can't be checked" not in capsys.readouterr().err
    # From here on a change of the content is noticed.
    write_ppm(folder, 1)
    with pytest.raises(UserError, match="the data have changed"):
        begin(tmp_path / "run", images_of(folder, in_memory=0).build(), config)


def test_the_older_digest_is_the_one_that_older_versions_wrote(tmp_path):
    """It holds names and sizes, the shape, and the positions of the splits."""
    from gen.data.digest import sha256

    folder = write_ppm(tmp_path / "pictures", 0)
    data = images_of(folder, in_memory=0).build()
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: sha256_of(name))
    content = sha256(*(f"{name} {(folder / name).stat().st_size}" for name in names))
    rows = np.arange(12)
    assert data.older == (sha256(content + sha256(str((6, 6, 3))), rows, rows, rows),)


def sha256_of(name: str) -> bytes:
    import hashlib

    return hashlib.sha256(name.encode()).digest()


def test_sets_in_memory_keep_the_digest_that_they_always_had(tmp_path):
    from gen.data.digest import sha256

    write_image(tmp_path / "a.ppm", np.full((4, 5, 3), 9, np.uint8))
    data = images_of(tmp_path).build()
    image, label, rows = np.full((1, 4, 5, 3), 9, np.uint8), np.zeros(1, np.int32), np.zeros(1, np.int64)
    assert data.digest == sha256(sha256(image, label), rows, rows, rows)
    assert data.older == ()


def test_check_is_no_part_of_the_identity():
    from dataclasses import replace

    from gen.config import identity, load

    config = load("vae_digits")
    assert isinstance(config.data, Images)
    assert identity(replace(config, data=replace(config.data, check="all"))) == identity(config)


@pytest.mark.slow
@pytest.mark.parametrize("folders", [10, pytest.param(100, marks=pytest.mark.long)])
def test_a_later_start_lists_a_hundred_thousand_files_in_five_seconds(folders, tmp_path):
    from gen.data.images.listing import list_images

    for folder in range(folders):
        (tmp_path / "pictures" / str(folder)).mkdir(parents=True)
        for i in range(1000):
            (tmp_path / "pictures" / str(folder) / f"{i}.ppm").write_bytes(b"%d %d" % (folder, i))

    def start() -> tuple[list[str], float]:
        # Of this process alone: other work on the machine doesn't count.
        begun = time.process_time()
        found = list_images(tmp_path / "pictures").files
        sums = content_sums(tmp_path / "pictures", [file.path for file in found], [file.facts for file in found])
        return sums, time.process_time() - begun

    first, _ = start()
    second, seconds = start()
    assert first == second
    assert len(set(first)) == 1000 * folders
    assert seconds < 0.05 * folders
