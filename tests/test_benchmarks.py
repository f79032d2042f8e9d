"""benchmarks: how modes are counted, how runs are kept, the intervals of the tables, and times on a busy machine."""

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

import benchmarks.__main__ as comparison
from benchmarks import growth, guard, improved_gan, machine, modes, program, study, sweep, transformer, turns, versions
from benchmarks.machine import Busy, Load, Processor, Reading, Watch
from gen.config import load
from gen.errors import UserError
from gen.optim import Piecewise, WarmupCosine
from gen.runtime import faults


def uncounted() -> Reading:
    """The counters of a system that counts nothing."""
    return Reading(time.monotonic(), 2)


def stacks(labels: np.ndarray, split: str = "test") -> np.ndarray:
    """Images [N, 8, 8, 3] whose channels are real digits of the labels 100 r + 10 g + b."""
    pixels, truth = modes.digits(split)
    right = modes.judge().classify(pixels)[0] == truth
    example = np.stack([pixels[right & (truth == c)][0] for c in range(10)])
    channels = np.stack([labels // 100, labels // 10 % 10, labels % 10], axis=1)
    return example[channels].reshape(-1, 3, 8, 8).transpose(0, 2, 3, 1)


def test_every_mode_once_is_uniform():
    assert modes.coverage(np.arange(1000), 1000) == {"modes": 1000, "reverse_kl": pytest.approx(0, abs=1e-12)}


def test_one_mode_is_log_1000_from_uniform():
    found = modes.coverage(np.full(50, 123), 1000)
    assert found == {"modes": 1, "reverse_kl": pytest.approx(math.log(1000))}


def test_reverse_kl_is_scipys_entropy():
    some = np.random.default_rng(0).zipf(1.5, 5000) % 1000
    p = np.bincount(some, minlength=1000) / 5000
    found = modes.coverage(some, 1000)
    assert found["modes"] == np.count_nonzero(p)
    assert found["reverse_kl"] == pytest.approx(stats.entropy(p, np.full(1000, 1e-3)))


def test_no_images_have_no_modes():
    assert modes.coverage(np.array([], int), 1000) == {"modes": 0, "reverse_kl": 0}


def test_images_of_every_mode_are_told_apart():
    found = modes.score(stacks(np.arange(1000), "train"))
    assert found == {"modes": 1000, "reverse_kl": pytest.approx(0, abs=1e-12), "near": 1.0, "near_modes": 1000}


def test_half_the_modes_are_log_2_from_uniform():
    found = modes.score(stacks(np.arange(1000)[500:].repeat(3), "train"))
    assert found["modes"] == found["near_modes"] == 500
    assert found["reverse_kl"] == pytest.approx(math.log(2))


def test_images_far_from_digits_are_not_near():
    noisy = stacks(np.arange(1000), "train")
    noisy[:400, :, :, 1] = np.random.default_rng(0).choice([-1, 1], (400, 8, 8))  # one bad digit spoils an image
    found = modes.score(noisy)
    assert found["near"] == pytest.approx(1 - 400 / 3000)
    assert found["near_modes"] == 600


def test_as_many_held_out_digits_are_near_as_it_is_defined():
    pixels, truth = modes.digits("test")
    found, near = modes.judge().classify(pixels)
    assert near.mean() == pytest.approx(modes.NEAR, abs=1 / len(pixels))
    assert (found == truth).mean() == modes.judge().accuracy > 0.95


@pytest.mark.parametrize("n", [2, 5, 30])
def test_intervals_are_students(n):
    values = np.random.default_rng(n).normal(3, 2, n)
    mean, half = study.interval(list(values))
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_a_single_value_has_no_interval():
    mean, half = study.interval([7.0])
    assert mean == 7
    assert math.isnan(half)


def test_the_table_is_markdown():
    results = {"ours": {"0": {"modes": 10, "alarms": []}, "1": {"modes": 12, "alarms": ["collapse: a", "collapse: b"]}}}
    found = study.table({"modes": ("modes", "{:.1f}")}, {"real": {"modes": 1000}}, results)
    half = 12.706 * math.sqrt(2) / math.sqrt(2)  # t for one degree of freedom, times s / sqrt(n)
    assert found.splitlines() == [
        "|  | modes | alarms |",
        "| --- | ---: | ---: |",
        "| real | 1000.0 |  |",
        f"| ours | 11.0 ± {half:.1f} | 1 of 2 |",
    ]


def test_a_stopped_benchmark_goes_on(tmp_path):
    out, done = tmp_path / "out.json", []

    def run(method: str, seed: int) -> dict:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((method, seed))
        return {"modes": 10 * len(done)}

    with pytest.raises(KeyboardInterrupt):
        study.run_missing(out, {"steps": 1}, ["a", "b"], 2, run)
    assert done == [("a", 0), ("b", 0), ("a", 1)]
    left = []
    found = study.run_missing(out, {"steps": 1}, ["a", "b"], 2, lambda *run: left.append(run) or {"modes": 0})
    assert left == [("b", 1)]
    assert {name: [run["modes"] for run in runs.values()] for name, runs in found.items()} == {
        "a": [10, 30],
        "b": [20, 0],
    }


def test_results_of_another_protocol_are_not_mixed(tmp_path):
    out = tmp_path / "out.json"
    study.run_missing(out, {"steps": 1}, ["a"], 1, lambda *_: {"modes": 0})
    with pytest.raises(UserError, match="choose another --out"):
        study.run_missing(out, {"steps": 2}, ["a"], 1, lambda *_: {"modes": 0})
    assert json.loads(out.read_text())["protocol"] == {"steps": 1}


def test_alarms_of_a_collapse_are_read_from_the_telemetry(tmp_path):
    records = [
        {"step": 1, "spread": 0.1},
        {"alarm": "collapse: few classes"},
        {"alarm": "gradient of the generator ..."},
    ]
    (tmp_path / "telemetry.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert modes.collapses(tmp_path) == ["collapse: few classes"]


def test_each_switch_of_the_ablation_changes_only_itself_and_all_have_every_one():
    for name, switch in improved_gan.SWITCHES.items():
        assert replace(improved_gan.BASELINE, **switch) == improved_gan.METHODS[name] != improved_gan.BASELINE
        for field, value in switch.items():
            assert getattr(improved_gan.METHODS["all five"], field) == value


@pytest.mark.slow
@pytest.mark.parametrize("name", transformer.KINDS)
def test_decoding_is_compared_with_whole_passes(name, monkeypatch):
    arch = replace(transformer.KINDS[name], layers=1, width=32)
    difference, other, n, _ = transformer.compare(arch, 2, 9, Watch(uncounted))
    assert difference < 1e-5
    assert (other, n) == (0, 18)
    write = transformer.empty_cache
    monkeypatch.setattr(transformer, "empty_cache", lambda *args: write(*args)._replace(length=jax.numpy.int32(3)))
    assert transformer.compare(arch, 2, 9, Watch(uncounted))[0] > 1e-3, "what is written elsewhere is not found"


def test_a_panels_axes_begin_at_zero():
    image = np.asarray(growth.panel("ms a step", "examples a step", {"job": [(10.0, 1.0), (20.0, 2.0)]}))
    drawn = (image == growth.COLORS[0]).all(-1)
    drawn[: growth.TOP] = False  # names of lines
    rows, columns = np.nonzero(drawn)
    radius, bottom = 4, growth.SIZE[1] - growth.BOTTOM
    right, left = columns.max() - radius - growth.LEFT, columns.min() + radius - growth.LEFT
    high, low = bottom - rows.min() - radius, bottom - rows.max() + radius
    assert right == pytest.approx(2 * left, abs=3)
    assert high == pytest.approx(2 * low, abs=3)


def curve(loss: np.ndarray, gradient: float = 1.0, players: int = 1, warned: Sequence[int] = (), error: str = ""):
    return sweep.Curve(loss, np.full(len(loss), gradient), players, list(warned), error)


def test_a_sweep_tells_runs_that_train_from_runs_that_explode_with_and_without_a_word():
    falls = 90 + 400 * np.exp(-np.arange(500) / 60)
    explodes = np.where(np.arange(500) < 300, falls, 5000.0)
    assert sweep.judge(curve(falls))["verdict"] == "trained"
    assert sweep.judge(curve(explodes))["verdict"] == "silent"
    told = sweep.judge(curve(explodes, warned=[310], error="stopped at step 500"))
    assert told["verdict"] == "told"
    assert told["told"] == 310
    assert told["exploded"] == pytest.approx(300, abs=11)
    assert sweep.judge(curve(np.full(500, 1e4) + 1e3 * np.arange(500)))["verdict"] == "silent", "from the first step on"
    assert sweep.judge(curve(falls, error="loss of train not finite"))["verdict"] == "told"
    assert sweep.judge(curve(explodes, players=2))["verdict"] == "trained", "losses of players say nothing"
    climbs = curve(falls, players=2)._replace(gradient=np.where(np.arange(500) < 300, 1.0, 1e4))
    assert sweep.judge(climbs) | {"loss": 0} == {"verdict": "silent", "loss": 0, "exploded": 301, "told": None}


def test_a_sweep_multiplies_learning_rates_and_shortens_warm_ups():
    config: Any = sweep.with_rate(load("vae_mnist_best"), 3)
    assert config.model.optim.lr == WarmupCosine(3 * 5e-3, warmup=500)
    assert sweep.shorten(config.model, 100).optim.lr.warmup == 50
    assert sweep.shorten(config.model, 100).test_samples == 1
    both: Any = sweep.with_rate(load("gan_digits"), 10).model
    assert both.generator_optim.lr == both.discriminator_optim.lr == 5e-3
    assert sweep.multiply(Piecewise((5,), (1.0, 2.0)), 3) == Piecewise((5,), (3.0, 6.0))


def test_a_sweep_takes_options_of_train_py_for_each_config():
    names, options = ("vae_digits", "fsq_digits"), ("vae_digits --data.batch-size 7", "vae_digits --steps 50")
    runs = sweep.plan(names, (1, 3), None, options)
    assert list(runs) == ["vae_digits x1", "vae_digits x3", "fsq_digits x1", "fsq_digits x3"]
    changed: Any = runs["vae_digits x3"]
    default: Any = load("vae_digits")
    assert changed.data.batch_size == 7
    assert changed.steps == 5, "a tenth"
    assert changed.model.optim.lr == pytest.approx(3 * default.model.optim.lr)
    assert sweep.plan(names, (1,), 20, ())["fsq_digits x1"].steps == 20
    with pytest.raises(UserError, match="names 'vae_mnist', which is not in this sweep"):
        sweep.plan(names, (1,), None, ("vae_mnist --steps 5",))


def reading(seconds: float, idle: float = 0.0, own: float = 0.0, stolen: float = 0.0, **others: float) -> Reading:
    """The counters of two cores after some seconds. others: CPU seconds of other programs."""
    seen = {i: (name, used) for i, (name, used) in enumerate(others.items())}
    return Reading(seconds, 2, 2 * seconds, idle, stolen, own, seen)


def readings(*loads: float) -> Callable[[], Reading]:
    """Two readings for each measurement, a second apart, between which another program used this number of cores."""
    pairs = [(reading(0), reading(1, idle=0.5 - used, own=1.5, yes=used)) for used in loads]
    return itertools.chain.from_iterable(pairs).__next__


def test_time_that_is_neither_idle_nor_used_by_the_benchmark_is_used_by_others():
    before = reading(10, idle=5, own=3, stolen=1, python=4, idler=2)
    found = machine.load_between(before, reading(14, idle=6, own=6, stolen=1.5, python=7, idler=2, new=0.3))
    assert found is not None
    # 8 s of both cores: 1 s idle, 0.5 s stolen, 3 s of the benchmark.
    assert found[:3] == (2, pytest.approx(3.5 / 4), pytest.approx(0.5 / 4))
    assert found.programs == (("python", 0.75), ("new", pytest.approx(0.075)))
    assert str(found) == (
        "the machine is busy: other processes (python 0.8, new 0.1) used 0.9 of 2 cores, and "
        "other virtual machines used 0.1 of 2 cores"
    )


def test_an_idle_machine_and_one_that_the_benchmark_uses_alone_are_not_busy():
    idle = machine.load_between(reading(0), reading(10, idle=19.9))
    full = machine.load_between(reading(0), reading(10, idle=0.1, own=19.8))
    rounded = machine.load_between(reading(0), reading(1, idle=0, own=2.02))
    for found in (idle, full, rounded):
        assert found is not None
        assert not found.is_busy
        assert found.others >= 0


@pytest.mark.parametrize("used", [Load(2, 0.9, 0), Load(2, 0.11, 0), Load(2, 0, 0.2), Load(64, 2, 1.3)])
def test_other_processes_and_other_virtual_machines_make_it_busy(used):
    assert used.is_busy


def test_a_container_whose_counters_stand_still_has_no_known_load():
    still = Reading(0, 2, counted=7), Reading(1, 2, counted=7)
    assert machine.load_between(*still) is None
    assert machine.load_between(uncounted(), uncounted()) is None


def test_a_busy_measurement_is_repeated_and_only_the_quiet_one_counts():
    watch, made = Watch(readings(0, 0.9, 0.5, 0.01), wait=0), itertools.count()
    assert watch.measure(made.__next__) == 0
    assert watch.measure(made.__next__) == 3
    assert watch.facts() == {"others": pytest.approx(0.01), "stolen": 0, "repeated": 2}


def test_a_machine_that_stays_busy_is_refused_with_what_ran():
    watch, made = Watch(readings(*[0.4] * 9), wait=0, repeats=3), itertools.count()
    with pytest.raises(Busy, match=r"other processes \(yes 0\.4\) used 0\.4 of 2 cores; the fix: .* nothing else runs"):
        watch.measure(made.__next__)
    assert next(made) == 4


def test_a_round_of_turns_is_repeated_as_a_whole(monkeypatch):
    monkeypatch.setattr(turns, "PAUSE", 0)
    numbers = itertools.count()
    ask = lambda name: lambda do, n: (name, n, next(numbers)) if n == 5 else 0.1
    found: Any = turns.take_turns({"a": ask("a"), "b": ask("b")}, 2, 0.5, Watch(readings(0, 0.9, 0), wait=0))
    # The second round, with the numbers 2 and 3, was busy.
    assert found == {"a": [("a", 5, 0), ("a", 5, 4)], "b": [("b", 5, 1), ("b", 5, 5)]}


def test_only_the_load_average_is_known_without_proc(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: {0, 1})
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4, 9.0, 9.0))
    assert "only known before the start: an average of 0.4" in machine.begin(uncounted)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.2, 0.0, 0.0))
    with pytest.raises(Busy, match=r"its load average is 1\.2 with 2 cores; the fix"):
        machine.begin(uncounted)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="not Linux")
def test_the_counters_of_this_machine_move_and_know_its_own_work():
    before, used = machine.read_machine(), time.process_time()
    while time.process_time() < used + 0.3:
        pass
    after = machine.read_machine()
    assert after.time > before.time
    assert after.counted >= before.counted
    assert after.own - before.own == pytest.approx(0.3, abs=0.1)
    assert os.getpid() not in after.others


def test_processes_below_the_benchmark_are_its_own():
    process = machine._Process
    known = {1: process("init", 0, 5, 9), 7: process("python", 1, 100, 20), 8: process("python", 7, 40, 0)}
    known |= {9: process("worker (1)", 8, 30, 10), 10: process("yes", 1, 50, 0)}
    assert machine._split(known, 7, 100) == (2.0, {1: ("init", 0.05), 10: ("yes", 0.5)})


ZEN = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 avx2 fma avx512f avx512_bf16

processor\t: 1
model\t\t: 18
flags\t\t: amx_tile
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "version", "instructions"),
    [
        (ZEN, "family 25 model 17", ("AVX2", "AVX-512", "AVX-512 BF16")),
        (ARM, "implementer 0x41 part 0xd40", ("NEON", "SVE")),
        ("", "", ()),
    ],
)
def test_the_version_and_the_instruction_sets_of_a_processor_are_read(text, version, instructions):
    assert machine.parse_cpuinfo(text) == (version, instructions)


def test_a_processor_is_named_with_all_that_is_known():
    found = Processor("AMD EPYC", "family 25 model 17", ("AVX2", "AVX-512"), 64, 2.5)
    assert str(found) == "AMD EPYC; family 25 model 17; AVX2, AVX-512; 64 cores; CPU time limited to 2.5 cores"
    assert str(Processor("arm64", "", (), 8, None)) == "arm64; 8 cores"
    assert machine.read_processor().cores == len(machine.usable_cores())


PEAKS = {
    "ours": {"platform": "cpu", "device": "AMD EPYC", "version": "jax 0.10.2", "rate": 61.2e9},
    "peer": {"device": "", "version": "PyTorch 2.13.0", "rate": 58.4e9},
}


def test_the_peaks_of_both_sides_are_named_and_a_gpu_too():
    products = "Matrix products in float32: jax 0.10.2: 61 GFLOP/s; PyTorch 2.13.0: 58 GFLOP/s."
    assert comparison.peaks_line("float32", PEAKS) == products
    gpu: Any = PEAKS | {"ours": PEAKS["ours"] | {"platform": "gpu", "device": "NVIDIA H100"}}
    assert comparison.peaks_line("float32", gpu) == f"GPU: NVIDIA H100.\n{products}"


@pytest.fixture
def measured(monkeypatch):
    """The command without PyTorch, processes and times. Its jobs vae_conv and start_up find the machine busy."""

    class Fake(Watch):
        def wait_until_quiet(self):
            pass

    def fail(job: str) -> None:
        if job in ("vae_conv", "start_up"):
            raise Busy(Load(2, 0.9, 0, (("yes", 0.9),)))

    def compare(job, *_):
        fail(job)
        side = {"median": 0.01, "minimum": 0.009, "share_of_peak": 0.5, "memory": 2**20, "setting": "eager"}
        return {"ratio": 0.5, "ours": side | {"first": 1.0}, "peer": side | {"median": 0.02, "first": None}}

    def measure(job, *_):
        fail(job)
        return [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]

    monkeypatch.setattr(comparison.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(comparison, "measure_peaks", lambda *_: PEAKS)
    monkeypatch.setattr(comparison, "compare", compare)
    monkeypatch.setattr(comparison, "Watch", Fake)
    monkeypatch.setattr(versions, "measure", measure)
    monkeypatch.setattr(machine, "begin", lambda: "Processor: AMD EPYC.")
    monkeypatch.setitem(program.JOBS, "start_up", lambda *_: fail("start_up"))


BUSY = "refused: the machine is busy: other processes (yes 0.9) used 0.9 of 2 cores"


def test_the_table_begins_with_the_processor_and_a_busy_machine_prints_no_ratio(measured, capsys, tmp_path):
    with pytest.raises(UserError, match="2 of 3 jobs have no times, because the machine was busy; the fix"):
        comparison.main(("vae_mlp", "vae_conv", "start_up"), json=tmp_path / "out.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Processor: AMD EPYC.", comparison.peaks_line("float32", PEAKS)]
    first, second, third = lines[-3:]
    assert "| 10.0 (minimum 9.0) | 20.0 (minimum 9.0) | **0.500** | 50% / 50% | 1.0 /  | 1 / 1 | eager |" in first
    assert second.startswith(f"| vae_conv | {BUSY} |")
    assert third.startswith(f"| start_up | {BUSY} |")
    assert all(line.count("|") == len(comparison.COLUMNS) + 1 for line in lines[-5:])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["machine"]["peaks"] == PEAKS
    assert found["machine"]["processor"].keys() == {"name", "version", "instructions", "cores", "quota"}
    assert found["vae_mlp"]["load"] == {"others": None, "stolen": None, "repeated": 0}
    assert f"refused: {found['vae_conv']['refused']}" == BUSY


def test_versions_are_not_compared_on_a_busy_machine(measured, capsys):
    with pytest.raises(UserError, match="1 of 2 jobs have no times"):
        versions.main(Path(__file__).parent.parent, ("vae_mlp", "vae_conv"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Processor: AMD EPYC."
    assert lines[-2] == "| vae_mlp | 2000.00 ms | 2000.00 ms | 1.000 | 0.500 to 1.500 |"
    assert lines[-1].startswith(f"| vae_conv | {BUSY} |")


def test_every_other_block_of_steps_is_guarded_and_its_history_goes_on():
    config = load("vae_digits")
    record = guard.AlternatingRecord(config, ("loss",), block=10)
    whole = faults.Record(config.faults, 0, (), ("loss",))
    values = [{"loss": 5.0 - 0.01 * i, "gradient": 1.0 + 0.1 * (i % 3)} for i in range(50)]
    late: list[int] = []  # the loop reads the metrics of a step after it has asked for the limits of the next one
    for step in [*range(1, 51), None]:
        if step is not None:
            record.limits(range(step, step + 1))
        if late:
            record.read(late[0], values[late[0] - 1])
        late = [] if step is None else [step]
    for step in [*range(1, 11), *range(21, 31), *range(41, 51)]:
        whole.read(step, values[step - 1])
    assert record.now == whole.now
    assert len(record.begun) == 5
    assert record.seen == values
    assert len(record.kept(True)) == 2
    cost = guard.Cost([0.00202, 0.0021], [0.002, 0.002], 2e-5)
    assert guard.line("vae_mlp", cost) == (
        "| vae_mlp | 20.0 µs | 1.00% | 2.060 ms | 2.000 ms | 1.030 | 1.010 to 1.050 |"
    )


def test_ratios_are_of_medians_and_their_quartiles_of_turns():
    assert turns.ratios([2, 20, 6, 8, 4], [2] * 5) == (3, 2, 4)
