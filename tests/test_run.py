"""train.py and sample.py as people run them: as processes, with signals, full disks and wrong input."""

import gzip
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import processes
import pytest

from gen import sample
from gen.errors import UserError
from gen.runs import checkpoint, directory
from gen.runs import trained as runs_trained

ROOT = Path(__file__).parent.parent
SMALL = [
    *("--model.network.hidden", "24", "--model.latents", "3", "--model.test-samples", "4"),
    *("--model.validation-samples", "2", "--data.batch-size", "16", "--log.every", "1"),
    *("--evaluate-every", "50", "--save.every", "25", "--steps", "200"),
]


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    return processes.environment(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def gen(environment):
    """Returns a function gen(script, *arguments) -> the finished process."""

    def call(script: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)

    return call


@pytest.fixture(scope="session")
def trained(gen, tmp_path_factory) -> Path:
    """Returns a finished run of the small config that was not interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = gen("train.py", "vae_digits", "--workdir", workdir, *SMALL)
    assert done.returncode == 0, done.stderr
    assert f"next: python sample.py {workdir}" in done.stdout
    return workdir


def copy_of(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.mark.slow
def test_every_engine_runs_to_its_end(gen, tmp_path):
    brief = [*SMALL, "--steps", "8", "--parallel.engine", "jit"]
    for name, more in {"jit": [], "fsdp": ["--parallel.cpu-devices", "2", "--parallel.fsdp"]}.items():
        done = gen("train.py", "vae_digits", "--workdir", tmp_path / name, *brief, *more)
        assert done.returncode == 0, done.stderr
    on_one, on_two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("jit", "fsdp"))
    assert on_one["metrics"] == pytest.approx(on_two["metrics"], rel=1e-5)


def test_the_pages_name_every_config_and_their_links_exist():
    assert "@" not in (ROOT / "README.md").read_text()
    results = (ROOT / "docs" / "results.md").read_text()
    assert [path.stem for path in (ROOT / "configs").glob("*.py") if f"`{path.stem}`" not in results] == []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md")]:
        text = page.read_text()
        targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
        assert [link for link in targets if link and not (page.parent / link).exists()] == [], page.name


def test_training_starts_without_importing_pytorch(environment, tmp_path):
    (tmp_path / "torch.py").write_text("there = True")
    code = "import sys, gen.train; assert 'torch' not in sys.modules; import torch; assert torch.there"
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, **path})


def test_a_run_directory_has_its_files_and_their_content(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["split"] == "train"] == list(range(1, 201))
    validation = [x for x in lines if x["split"] == "validation"]
    assert [x["step"] for x in validation] == list(range(50, 201, 50))
    assert {"neg_elbo", "reconstruction", "kl", "active_units", "nll_bound", "bits_per_dim"} <= validation[0].keys()
    assert validation[-1]["neg_elbo"] < validation[0]["neg_elbo"]
    assert not {"time", "steps_per_second"} & lines[0].keys()

    compiled, *telemetry = [json.loads(line) for line in (trained / "telemetry.jsonl").read_text().splitlines()]
    assert compiled["event"] == "compiled"
    assert {"steps_per_second", "examples_per_second", "waiting_for_data", "host_peak_bytes"} <= telemetry[0].keys()

    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["metrics"].keys() == evaluation["protocol"].keys()
    assert evaluation["protocol"]["nll_bound"]["samples"] == 4
    assert evaluation["protocol"]["nll_bound"]["n"] == 360
    assert evaluation["metrics"]["nll_bound"] <= evaluation["metrics"]["neg_elbo"]

    reference = directory.read_reference(trained)
    assert reference["image"].shape == (64, 8, 8, 1)
    assert reference["kl_per_latent"].shape == (3,)
    assert (trained / "samples" / "step_0000200.png").exists()
    assert list(trained.glob("events*"))
    assert json.loads((trained / "spec.json").read_text())["image"]["levels"] == 17


@pytest.mark.slow
def test_a_finished_run_says_so_and_trains_on_with_more_steps(trained, gen, tmp_path):
    workdir = copy_of(trained, tmp_path)
    again = gen("train.py", "vae_digits", "--workdir", workdir, *SMALL)
    assert again.returncode == 0
    assert "is finished: 200 steps" in again.stdout
    more = gen("train.py", "vae_digits", "--workdir", workdir, *SMALL, "--steps", "260")
    assert more.returncode == 0, more.stderr
    assert "resuming" in more.stdout
    assert checkpoint.steps(workdir / "checkpoints")[-1] == 260


def inside_a_save(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def before_the_manifest(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.unsealed"))


def between_saves(workdir: Path) -> bool:
    metrics = workdir / "metrics.jsonl"
    return metrics.exists() and metrics.read_bytes().count(b"\n") > 160


def killed(workdir: Path, environment: dict[str, str], moment: Callable[[Path], bool]) -> bool:
    """Trains, and kills the process at that moment. Returns whether it was killed before it finished."""
    command = [sys.executable, str(ROOT / "train.py"), "vae_digits", "--workdir", str(workdir), *SMALL]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not moment(workdir):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_bit_identical(trained, gen, environment, tmp_path):
    workdir = tmp_path / "killed"
    moments = inside_a_save, between_saves, before_the_manifest
    kills = [killed(workdir, environment, moment) for moment in moments]
    assert any(kills)
    finished = gen("train.py", "vae_digits", "--workdir", workdir, *SMALL)
    assert finished.returncode == 0, finished.stderr

    assert (workdir / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    assert (workdir / "evaluation.json").read_bytes() == (trained / "evaluation.json").read_bytes()
    run = runs_trained.open_run(trained)
    steps, abstract = run.config.steps, run.abstract
    whole, resumed = (checkpoint.restore(path / "checkpoints", steps, abstract) for path in (trained, workdir))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


@pytest.mark.parametrize(
    "mode",
    ["generate", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("reconstruct", "interpolate", "traverse"))],
)
def test_a_copy_of_a_run_is_sampled_and_its_samples_are_verified(mode, trained, gen, tmp_path):
    workdir = copy_of(trained, tmp_path)
    made = gen("sample.py", workdir, "--mode", mode, "--n", 16, "--out", workdir / "out")
    assert made.returncode == 0, made.stderr
    assert (workdir / "out" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert np.load(workdir / "out" / "samples.npz")["samples"].shape[-3:] == (8, 8, 1)
    moved = tmp_path / "moved"
    workdir.rename(moved)
    verified = gen("sample.py", "--verify", moved / "out" / "manifest.json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "byte for byte" in verified.stdout


@pytest.mark.slow
def test_verification_names_the_differences(trained, gen, tmp_path):
    workdir = copy_of(trained, tmp_path)
    gen("sample.py", workdir, "--n", 4, "--out", workdir / "out")
    manifest = json.loads((workdir / "out" / "manifest.json").read_text())
    manifest["seed"] += 1
    manifest["conditions"]["visible_cores"] = 4096
    (workdir / "out" / "manifest.json").write_text(json.dumps(manifest))
    (workdir / "out" / "samples.png").write_bytes(b"other")
    verified = gen("sample.py", "--verify", workdir / "out" / "manifest.json")
    assert verified.returncode == 1
    assert "samples.npz comes out differently" in verified.stdout
    assert "samples.png is not the file that the manifest names" in verified.stdout
    assert "visible_cores: 4096 then" in verified.stdout


@pytest.mark.slow
def test_a_damaged_manifest_is_a_short_error(trained, gen, tmp_path):
    good = gen("sample.py", trained, "--n", 4, "--out", tmp_path / "out")
    assert good.returncode == 0, good.stderr
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    for change, message in (
        ({"outputs": {}}, "names no outputs"),
        ({"checkpoint": {"step": 200}}, "checkpoint"),
        ({"seed": 10**30}, "below 2**32"),
        ({"outputs": {"../../x": "0"}}, "leaves the manifest's folder"),
    ):
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=re.escape(message)):
            sample.main(["--verify", str(path)])


WRONG = {
    "an unknown config": (["vae_digit"], "did you mean vae_digits"),
    "an unknown field": (["vae_digits", "--model.latent", "4"], "--model.latents"),
    "a wrong type": (["vae_digits", "--steps", "many"], "--steps"),
    "a wrong range": (["vae_digits", "--steps", "-3"], "must be above 0"),
    "devices that are not there": (["vae_digits", "--parallel.devices", "3"], "--parallel.cpu-devices 3"),
    "a batch that devices can't share": (
        ["vae_digits", "--parallel.cpu-devices", "3", "--data.batch-size", "16"],
        "--data.batch-size 15",
    ),
    "a negative seed": (["vae_digits", "--seed", "-1"], "at least 0"),
    "a schedule out of range": (["vae_digits", "--model.optim.lr", "WarmupCosine(1e-3, warmup=-5)"], "counts steps"),
    "a negative learning rate": (["vae_digits", "--model.optim.lr", "-1e-3"], "lr is -0.001; it must be at least 0"),
    "a warm-up that is too long": (
        ["vae_digits", "--steps", "20", "--model.optim.lr", "WarmupCosine(1e-3, warmup=500)"],
        '--model.optim.lr "WarmupCosine(peak=0.001, warmup=2, end=0.0)"',
    ),
    "a folder without a path": (["vae_folder", "--data.name", "folder:"], "folder:PATH"),
    "fsdp under pmap": (["vae_digits", "--parallel.fsdp"], "--parallel.engine jit"),
    "a folder as a class": (["vae_folder", "--data", "folder:PICTURES"], "--data.name folder:PICTURES"),
    "an unknown best metric": (["vae_digits", "--save.best", "loss", "min"], "--save.best neg_elbo min"),
    "a missing folder": (["vae_folder", "--data.name", "folder:/nowhere"], "/nowhere"),
    "a set that isn't prepared": (["vae_mnist", "--data.data-dir", "/nowhere"], "python -m gen.data.prepare mnist"),
}
QUICK = ("an unknown config", "an unknown field")


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in QUICK else pytest.mark.slow) for what in WRONG]
)
def test_wrong_input_to_train_gives_one_short_error(what, gen, tmp_path):
    arguments, message = WRONG[what]
    done = gen("train.py", *arguments, "--workdir", tmp_path / "run")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
@pytest.mark.slow
def test_a_platform_that_is_not_there_gives_one_line_with_the_fix(platform, environment, tmp_path):
    if platform == "cuda" and importlib.util.find_spec("jax_plugins"):
        pytest.skip("JAX's plugin for CUDA is installed")
    command = [sys.executable, ROOT / "train.py", "vae_digits", "--workdir", tmp_path / "run"]
    env = {**environment, "JAX_PLATFORMS": platform}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert f"JAX cannot start on '{platform}' (JAX_PLATFORMS)" in line
    assert "the fix: JAX_PLATFORMS=cpu" in line
    assert not (tmp_path / "run").exists()


def test_a_directory_of_another_run_is_refused_with_the_difference(trained, gen):
    before = (trained / "config.json").read_bytes()
    done = gen("train.py", "vae_digits", "--workdir", trained, *SMALL, "--model.latents", "5", "--seed", "3")
    assert done.returncode == 2
    assert "model.latents: [3] -> [5]" in done.stderr
    assert "seed: 0 -> 3" in done.stderr
    assert (trained / "config.json").read_bytes() == before


@pytest.mark.slow
def test_missing_files_are_made_again(trained, gen, tmp_path):
    workdir = copy_of(trained, tmp_path)
    (workdir / "reference.npz").unlink()
    (workdir / "evaluation.json").write_text("{")
    again = gen("train.py", "vae_digits", "--workdir", workdir, *SMALL)
    assert again.returncode == 0, again.stderr
    assert "image" in directory.read_reference(workdir)
    assert (workdir / "evaluation.json").read_bytes() == (trained / "evaluation.json").read_bytes()


def test_a_second_process_on_a_run_is_refused(trained, gen):
    with directory.lock_run(trained):
        done = gen("train.py", "vae_digits", "--workdir", trained, *SMALL)
    assert done.returncode == 2
    assert "in use by another process" in done.stderr


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(gen, tmp_path):
    boom = ["--model.optim.lr", "Piecewise(boundaries=(60,), values=(1e-3, 1e30))"]
    done = gen("train.py", "vae_digits", "--workdir", tmp_path / "run", *SMALL, *boom)
    assert done.returncode == 2
    assert "not finite at step 6" in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoint.newest(tmp_path / "run" / "checkpoints", pytest.fail) == 50


@pytest.fixture
def disk(tmp_path):
    """Returns disk(option), which mounts a tmpfs with that option. File modes would not do: root ignores them."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(option: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"can't mount a tmpfs: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", folder], check=False, capture_output=True)


@pytest.mark.slow
def test_a_full_disk_gives_one_short_error(disk, gen):
    done = gen("train.py", "vae_digits", "--workdir", disk("size=600k") / "run", *SMALL)
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stderr.lower()
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_read_only_directory_gives_one_short_error(disk, trained, gen):
    workdir = disk("size=50m") / "run"
    shutil.copytree(trained, workdir)
    subprocess.run(["mount", "-o", "remount,ro", workdir.parent], check=True)
    for script, arguments in (("train.py", ["vae_digits", "--workdir", workdir, *SMALL]), ("sample.py", [workdir])):
        done = gen(script, *arguments)
        assert done.returncode == 2, done.stderr
        assert "read-only file system" in done.stderr.lower()
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_whose_disk_turns_read_only_ends_and_keeps_its_sound_checkpoints(disk, trained, gen, environment):
    workdir = disk("size=50m") / "run"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "vae_digits",
        "--workdir",
        str(workdir),
        *SMALL,
        "--steps",
        "100000",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoints = workdir / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("*[0-9]/manifest.json")):
        time.sleep(0.005)
    # A second mount in the same place: in the first, files stay open for writing.
    subprocess.run(["mount", "--bind", workdir.parent, workdir.parent], check=True)
    while subprocess.run(["mount", "-o", "remount,bind,ro", workdir.parent], capture_output=True).returncode:
        assert process.poll() is None
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "read-only file system" in said.lower()
    assert "Traceback" not in said
    subprocess.run(["umount", workdir.parent], check=True)
    kept = checkpoint.newest(checkpoints, warn=lambda text: None)
    assert kept
    again = gen("train.py", "vae_digits", "--workdir", workdir, *SMALL, "--steps", kept + 25)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stdout


def tampered(workdir: Path, change: Callable[[dict], None]) -> None:
    config = json.loads((workdir / "config.json").read_text())
    change(config)
    (workdir / "config.json").write_text(json.dumps(config))


def foreign(config: dict) -> None:
    config["config"]["model"]["type"] = "evil.Model"


def test_a_tampered_config_runs_no_code(trained, gen, tmp_path, environment):
    workdir = copy_of(trained, tmp_path)
    (tmp_path / "evil.py").write_text("open('evil-was-here', 'w')")
    tampered(workdir, foreign)
    environment = {**environment, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "sample.py"), str(workdir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2
    assert "--trust evil" in done.stderr
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.slow
def test_wrong_input_to_sample_gives_one_short_error(trained, gen, tmp_path):
    workdir = copy_of(trained, tmp_path)
    shutil.rmtree(workdir / "checkpoints")
    cases = {
        "no config.json": [tmp_path],
        "no checkpoint yet": [workdir],
        "there is no such checkpoint": [trained, "--step", 3],
        "the classes are 0, 1, 2": [trained, "--label", 10],
        "n is 0": [trained, "--n", 0],
        "seed is -1": [trained, "--seed", -1],
        "reference.npz has 64": [trained, "--n", 65, "--mode", "reconstruct"],
        "use --label with mode generate": [trained, "--label", 1, "--mode", "traverse"],
        "can't be read as a manifest": ["--verify", tmp_path / "nothing.json"],
    }
    for message, arguments in cases.items():
        with pytest.raises(UserError, match=re.escape(message)):
            sample.main([str(argument) for argument in arguments])
    done = gen("sample.py", tmp_path)
    assert done.returncode == 2
    assert "no config.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_profile_traces_the_given_steps(gen, tmp_path):
    done = gen("train.py", "vae_digits", "--workdir", tmp_path / "run", *SMALL, "--steps", 8, "--profile", "4:3")
    assert done.returncode == 0, done.stderr
    found = list((tmp_path / "run" / "profile" / "host-000").rglob("perfetto_trace.json.gz"))
    assert len(found) == 1
    events = json.loads(gzip.decompress(found[0].read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum("PjitFunction" in name or "pmap" in name.lower() for name in names) >= 3
    # The profiler writes calls of Python functions as "$file.py:line name".
    assert not any(name.startswith("$") for name in names)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    wrong = gen("train.py", "vae_digits", "--workdir", tmp_path / "other", "--profile", "50")
    assert wrong.returncode == 2
    assert "STEP:COUNT" in wrong.stderr + wrong.stdout


@pytest.mark.slow
def test_a_dry_run_prints_sizes_and_writes_nothing(gen, tmp_path):
    done = gen("train.py", "vae_digits", "--dry-run", "--workdir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "params/encoder" in done.stdout
    assert "FLOPs" in done.stdout
    assert json.JSONDecoder().raw_decode(done.stdout)[0]["config"]["steps"] > 0
    assert not (tmp_path / "run").exists()


def test_help_lists_every_field(gen):
    done = gen("train.py", "vae_digits", "--help")
    assert done.returncode == 0
    for field in ("--steps", "--workdir", "--data.name", "--model.optim.lr", "--parallel.cpu-devices", "--save.keep"):
        assert field in done.stdout


FAULTS = """
import os, resource
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
import jax
import jax.numpy as jnp
from gen.config import Parallel
from gen.runtime import backend
backend.start_backend(Parallel())
step = jax.jit(lambda a, b: jnp.sin(a @ b) @ b.T).lower(jnp.ones((4096, 8)), jnp.ones((8, 4096))).compile()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(jnp.ones((4096, 8)), jnp.ones((8, 4096))).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(os.confstr_names.get("CS_GNU_LIBC_VERSION") is None, reason="of glibc")
def test_a_step_reuses_its_memory_without_page_faults(environment):
    """The step holds 64 MiB between its two products."""
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    first, *_, last = map(int, done.stdout.split())
    assert first > 10_000 and last < first / 10
