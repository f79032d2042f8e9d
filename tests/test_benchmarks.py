"""benchmarks: how modes are counted, how runs are kept, and the intervals of the tables."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from benchmarks import growth, improved_gan, modes, study, sweep, transformer
from gen.config import load
from gen.errors import UserError
from gen.optim import Piecewise, WarmupCosine


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
    difference, other, n, _ = transformer.compare(arch, 2, 9)
    assert difference < 1e-5
    assert (other, n) == (0, 18)
    write = transformer.empty_cache
    monkeypatch.setattr(transformer, "empty_cache", lambda *args: write(*args)._replace(length=jax.numpy.int32(3)))
    assert transformer.compare(arch, 2, 9)[0] > 1e-3, "what is written elsewhere is not found"


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
    assert config.model.optim.lr == WarmupCosine(3 * 3e-3, warmup=500)
    assert sweep.shorten(config.model, 100).optim.lr.warmup == 50
    assert sweep.shorten(config.model, 100).test_samples == 1
    both: Any = sweep.with_rate(load("gan_digits"), 10).model
    assert both.generator_optim.lr == both.discriminator_optim.lr == 5e-3
    assert sweep.multiply(Piecewise((5,), (1.0, 2.0)), 3) == Piecewise((5,), (3.0, 6.0))
