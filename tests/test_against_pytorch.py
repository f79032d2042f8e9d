"""The benchmarks run, and what they compare is equal. How fast either side is, no test says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the extra [benchmark] is not installed")


@pytest.fixture(autouse=True)
def programs_as_people_have_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def benchmark(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "benchmarks", *args], cwd=ROOT, capture_output=True, text=True)


@TORCH
@pytest.mark.parametrize("job", ["dcgan_64", "vae_mlp", "vae_conv", "gpt_small", "decode_1", "fid_statistics"])
def test_both_sides_compute_the_same(job: str):
    from benchmarks.__main__ import check

    check(job)


@TORCH
def test_a_check_can_fail(monkeypatch: pytest.MonkeyPatch):
    import benchmarks.__main__ as main

    monkeypatch.setattr(main, "process", lambda module, job, *args, **kwargs: other(module, job, *args, **kwargs))
    same = importlib.import_module("benchmarks.turns").process
    other = lambda module, job, *args, **kwargs: same(
        module, "vae_conv" if module.endswith("ours") else job, *args, **kwargs
    )
    with pytest.raises(RuntimeError, match="peers vae_mlp"):
        main.check("vae_mlp")


@TORCH
def test_a_job_is_measured_and_written(tmp_path: Path):
    done = benchmark(
        "vae_mlp", "--turns", "2", "--seconds", "0.02", "--tried", "0.1", "--json", str(tmp_path / "out.json")
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["vae_mlp"]
    assert found["ratio"] == pytest.approx(found["ours"]["median"] / found["peer"]["median"])
    assert len(found["ours"]["times"]) == len(found["peer"]["times"]) == 2
    assert found["operations"] == pytest.approx(6 * 128 * (784 * 400 + 400 * 40 + 20 * 400 + 400 * 784), rel=0.3)
    assert "vae_mlp" in done.stdout.splitlines()[-1]


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="the extra [benchmark] is installed")
def test_without_pytorch_the_fix_is_named():
    done = benchmark("vae_mlp")
    assert done.returncode == 2
    assert "pip install -e '.[benchmark]'" in done.stderr
