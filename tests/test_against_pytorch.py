"""Checks that the benchmarks run, and that gen and PyTorch compute the same numbers in them. Speed is not tested."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the extra [benchmark] is not installed")

FAST = ("dcgan_64", "vae_mlp", "vae_conv", "gpt_small", "decode_1", "fid_statistics")
LONG = ("tokenizer", "grid", "grid_decode", "codec", "mel_flow", "unet", "dit", "flow_sample")


@pytest.fixture(autouse=True)
def default_xla_flags(monkeypatch: pytest.MonkeyPatch):
    """Programs are compiled with the flags that users have."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def benchmark(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "benchmarks", *args], cwd=ROOT, capture_output=True, text=True)


@TORCH
@pytest.mark.parametrize("job", [*FAST, *(pytest.param(job, marks=pytest.mark.long) for job in LONG)])
def test_both_sides_compute_the_same(job: str):
    from benchmarks.__main__ import check

    check(job)


@TORCH
def test_the_check_fails_if_the_sides_differ(monkeypatch: pytest.MonkeyPatch):
    import benchmarks.__main__ as main

    process = importlib.import_module("benchmarks.turns").process

    def wrong_job(module, job, *args, **kwargs):
        return process(module, "vae_conv" if module.endswith("ours") else job, *args, **kwargs)

    monkeypatch.setattr(main, "process", wrong_job)
    with pytest.raises(RuntimeError, match="peers vae_mlp"):
        main.check("vae_mlp")


@TORCH
def test_a_benchmark_prints_and_writes_its_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import benchmarks.__main__ as main
    from benchmarks.machine import Reading, Watch

    # Other tests may use the machine at the same time, so its load is not read.
    monkeypatch.setattr("benchmarks.machine.WATCHED", 0.0)
    monkeypatch.setattr(main, "Watch", lambda: Watch(lambda: Reading(time.monotonic(), 2)))
    monkeypatch.setattr(main.machine, "begin", lambda: "Processor: any.")
    main.main(("vae_mlp",), turns=2, seconds=0.02, tried=0.1, json=tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    found = written["vae_mlp"]
    assert found["ratio"] == pytest.approx(found["ours"]["median"] / found["peer"]["median"])
    assert len(found["ours"]["times"]) == len(found["peer"]["times"]) == 2
    assert found["operations"] == pytest.approx(6 * 128 * (784 * 400 + 400 * 40 + 20 * 400 + 400 * 784), rel=0.3)
    assert all(side["rate"] > 1e8 for side in written["machine"]["peaks"].values())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Processor: any."
    assert "vae_mlp" in lines[-1]


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="the extra [benchmark] is installed")
def test_without_pytorch_the_error_names_the_fix():
    done = benchmark("vae_mlp")
    assert done.returncode == 2
    assert "pip install -e '.[benchmark]'" in done.stderr
