"""Every failure of a command prints one short message and has the right exit status. Only a bug prints a traceback."""

import asyncio
import errno
import io
import logging
import os
import resource
import signal
import sys
import types

import pytest

from gen import errors, files
from gen.errors import INTERRUPTED, REQUEUE, Requeue, UserError
from gen.runs import checkpoint, directory, lock, log
from gen.runtime import early, failures, signals
from gen.system import FIXES, explain, name_file


def ends(error: BaseException, capsys) -> tuple[int, str]:
    """The exit status, and what is printed, if a command raises this error."""

    def fails() -> None:
        raise error

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end:
            errors.run_command(fails)
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("number", FIXES)
def test_an_error_of_the_system_names_the_file_and_the_fix(number, capsys):
    status, said = ends(OSError(number, os.strerror(number), "/a/file"), capsys)
    assert (status, said) == (2, f"error: /a/file: {os.strerror(number)}; the fix: {FIXES[number]}\n")


TEXTS = [
    'Error writing "/a/b/0.0": Failed to open: "/a/b/0.0.__lock": Too many open files [os_error_code=\'24\']',
    "NOT_FOUND: Error opening '/a/b/0.0': [OS error 28: ENOSPC No space left on device]",
    "Writing /a/b failed: No space left on device",
    "can't start new thread",
]


@pytest.mark.parametrize("text", TEXTS)
def test_an_error_of_the_system_in_the_text_of_another_library_is_found(text, capsys):
    status, said = ends(ValueError(f"RESOURCE_EXHAUSTED: {text}\n\nmore"), capsys)
    assert status == 2
    assert said.startswith("error: ") and "; the fix: " in said and len(said.splitlines()) == 1
    wrapped = RuntimeError("a save has failed")
    wrapped.__cause__ = ExceptionGroup("several", [ValueError(text)])
    assert explain(wrapped) == explain(ValueError(text)) is not None


def test_out_of_memory_on_a_device_is_one_line(capsys):
    status, said = ends(
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nbuffer 1\nbuffer 2"), capsys
    )
    assert (status, len(said.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    "error",
    [TypeError("no space left"), FileNotFoundError(errno.ENOENT, "no such", "x"), ValueError("a bug"), KeyError("x")],
)
def test_a_bug_keeps_its_traceback(error, capsys):
    status, said = ends(error, capsys)
    assert status == 1
    assert said.startswith("Traceback")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Requeue("stopped"), REQUEUE, "stopped\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; the same command continues from the last checkpoint, if there is one\n",
        ),
        (UserError("no"), 2, "error: no\n"),
    ],
)
def test_an_end_has_the_conventional_status(error, status, said, capsys):
    assert ends(error, capsys) == (status, said)


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    flush = write  # pyright: ignore

    def fileno(self) -> int:
        raise io.UnsupportedOperation


def test_nobody_reads_the_output(monkeypatch):
    """The console of the log would end the process by status 1."""
    console = log._Console(file=Broken())
    with pytest.raises(BrokenPipeError):
        console.print("a line")
    monkeypatch.setattr(sys, "stderr", Broken())
    with pytest.raises(SystemExit) as end:
        errors.run_command(lambda: console.print("a line"))
    assert end.value.code == 141


def test_closed_streams_are_opened(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as end:
        errors.run_command(lambda: sys.exit(print("nobody hears this") or 3))
    assert end.value.code == 3
    assert sys.stdout is not None
    for name in ("stdin", "stdout", "stderr"):
        getattr(sys, name).close()


def test_a_write_without_a_name_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full") as found:
        files.write_bytes(tmp_path / "a", b"x")
    assert found.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="full") as found, name_file("b"):
        raise OSError(errno.ENOSPC, "full", "a")
    assert found.value.filename == "a"


def test_tracebacks_of_a_closed_event_loop_are_left_out_and_others_are_not():
    shown = []
    hook = checkpoint._leave_out_closed_loops(lambda found: shown.append(found.exc_value))
    loop = asyncio.new_event_loop()
    loop.close()

    def trace_of(call) -> tuple[BaseException, types.TracebackType | None]:
        try:
            call()
        except RuntimeError as error:
            return error, error.__traceback__
        raise AssertionError

    error, trace = trace_of(lambda: loop.call_soon_threadsafe(print))
    hook(
        types.SimpleNamespace(exc_type=RuntimeError, exc_value=error, exc_traceback=trace)
    )  # code of gen has called it
    assert shown == [error]
    # Called by C++, the first frame is that of asyncio.
    while trace and trace.tb_frame.f_code.co_name != "call_soon_threadsafe":
        trace = trace.tb_next
    hook(types.SimpleNamespace(exc_type=RuntimeError, exc_value=error, exc_traceback=trace))
    assert shown == [error]


def test_asyncio_does_not_report_what_the_save_reports():
    filters = logging.getLogger("asyncio").filters
    full, bug = OSError(errno.ENOSPC, "full"), ValueError("a bug")
    records = [logging.LogRecord("asyncio", 40, "", 0, "x", (), (type(e), e, None)) for e in (full, bug)]
    assert [all(keep(record) for keep in filters) for record in records] == [False, True]  # pyright: ignore


@pytest.mark.parametrize("lost", [".lock", None])
def test_a_run_is_locked_even_if_its_files_are_removed(lost, tmp_path):
    with directory.lock_run(tmp_path / "run"):
        if lost:
            (tmp_path / "run" / lost).unlink()
        with pytest.raises(UserError, match="in use by another process"), directory.lock_run(tmp_path / "run"):
            pass
    with directory.lock_run(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_can_be_used(tmp_path, monkeypatch):
    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with directory.lock_run(tmp_path):
        pass


@pytest.mark.parametrize("name", [*lock.FILES, ".config.json.tmp"])
def test_a_folder_in_the_place_of_a_file_is_named(name, tmp_path):
    (tmp_path / name).mkdir()
    reason = f"{name} is a folder, but a run has a file there; remove it"
    with pytest.raises(UserError, match=reason), directory.lock_run(tmp_path):
        pass


@pytest.mark.parametrize("name", lock.FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_named(name, tmp_path):
    (tmp_path / name).touch()
    reason = f"{name} is a file, but a run has a folder there; remove it"
    with pytest.raises(UserError, match=reason), directory.lock_run(tmp_path):
        pass


def test_low_limits_are_raised_or_named(monkeypatch):
    limits = {resource.RLIMIT_NOFILE: (64, 1000), resource.RLIMIT_AS: (resource.RLIM_INFINITY,) * 2}
    given = []
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: given.append(limit))
    early.check_limits()
    assert given == [(1000, 1000)]
    limits[resource.RLIMIT_NOFILE] = 64, 64
    with pytest.raises(UserError, match="the limit of open files is 64; the fix: ulimit -n 1024"):
        early.check_limits()
    limits[resource.RLIMIT_NOFILE], limits[resource.RLIMIT_AS] = (1000, 1000), (2**30, 2**30)
    with pytest.raises(UserError, match=r"the limit of memory is 1.0 GiB; the fix: .*ulimit -v"):
        early.check_limits()


def test_the_failure_of_another_host_ends_this_one_by_the_same_status():
    for status, message in ((2, "error: host 1: why"), (REQUEUE, "host 1: why"), (INTERRUPTED, "host 1: why")):
        assert errors.end_of(failures.Failure(1, status, "why").error()) == (status, message)


def test_a_failure_is_told_once(monkeypatch):
    class Client:
        def __init__(self):
            self.told: list[str] = []

        def key_value_set(self, key: str, text: str) -> None:
            self.told.append(text)

    client = Client()
    monkeypatch.setattr(failures, "_client", lambda: client)
    monkeypatch.setattr(failures, "_shared", failures._Shared())
    for error, told in (
        (UserError("no"), '[0, 2, "no"]'),
        (Requeue("go"), '[0, 75, "go"]'),
        (
            KeyboardInterrupt(),
            '[0, 130, "interrupted; the same command continues from the last checkpoint, if there is one"]',
        ),
        (TypeError("x"), '[0, 2, "TypeError: x"]'),
    ):
        failures._shared.__init__()
        with pytest.raises(type(error)), failures.tell_failure():
            raise error
        assert client.told.pop() == told


def test_a_signal_is_awaited_for_the_grace_only_where_the_state_is_saved():
    assert not signals._saves
    with signals.notice_signals():
        assert signals._saves
    assert not signals._saves
