"""Limits of memory, which containers and schedulers set for groups of processes."""

import os
from pathlib import Path

import pytest

from gen import memory
from gen.errors import UserError
from gen.memory import check_memory, read_limits

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def group(folder: Path, limit: str, name: str = "memory.max") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(limit + "\n")


@pytest.fixture
def groups(tmp_path, monkeypatch) -> Path:
    """The folder of groups. This process is in the group job/step."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "own")
    (tmp_path / "own").write_text("0::/job/step\n")
    return tmp_path / "groups"


def test_the_group_and_the_groups_around_it_have_limits(groups, tmp_path):
    group(groups / "job" / "step", "max")
    group(groups / "job", "3000")
    group(groups, "4000")
    group(groups / "other", "1")
    assert list(read_limits(groups, tmp_path / "own")) == [3000, 4000]


def test_version_1_has_a_folder_for_memory(groups, tmp_path):
    (tmp_path / "own").write_text("9:name=systemd:/other\n4:cpu,memory:/job\n3:cpu:/other\n")
    group(groups / "memory" / "job", "5000", "memory.limit_in_bytes")
    group(groups / "memory" / "other", "1", "memory.limit_in_bytes")
    group(groups, "1")
    assert list(read_limits(groups, tmp_path / "own")) == [5000]


def test_without_groups_the_machine_is_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "none")
    check_memory(MACHINE, "x")
    with pytest.raises(UserError, match=r"^x needs .* GiB of memory, but this machine has"):
        check_memory(MACHINE + 1, "x")


def test_the_smallest_limit_counts(groups):
    group(groups / "job" / "step", str(2**31))
    group(groups / "job", str(2**30))
    check_memory(2**30, "x")
    with pytest.raises(
        UserError, match="x needs 1 GiB of memory, but the container or job has 1; the fix: ask for more"
    ):
        check_memory(2**30 + 1, "x")
