"""Metrics against their definitions, written as plain loops."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gen.core import UserError
from gen.evaluate import evaluate
from gen.metrics.manifold import prdc


def prdc_by_loops(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    def radius(points, i):
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    reals, fakes = range(len(real)), range(len(fake))
    within_real = [[math.dist(real[i], fake[j]) < radius(real, i) for i in reals] for j in fakes]
    within_fake = [[math.dist(real[i], fake[j]) < radius(fake, j) for j in fakes] for i in reals]
    return {
        "precision": float(np.mean([any(row) for row in within_real])),
        "recall": float(np.mean([any(row) for row in within_fake])),
        "density": sum(map(sum, within_real)) / k / len(fake),
        "coverage": float(np.mean([any(row[i] for row in within_real) for i in reals])),
    }


@pytest.mark.parametrize("k", [1, 3])
def test_prdc_is_what_loops_give(k):
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(20, 3)), rng.normal(1.5, 0.7, (13, 3))
    found = prdc(real.astype(np.float32), fake.astype(np.float32), k)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(prdc_by_loops(real, fake, k))
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


def test_a_copy_of_the_data_is_precise_and_covers_it():
    real = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    found = prdc(real, real)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert float(found["density"]) >= 1 / 5


def test_a_collapsed_model_is_precise_and_recalls_nothing():
    real = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    found = prdc(real, np.broadcast_to(real.mean(0), (30, 2)))
    assert found["precision"] == 1
    assert found["recall"] == 0
    assert found["coverage"] < 0.7


def test_fakes_far_away_score_zero():
    real = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    assert all(value == 0 for value in prdc(real, real + 100).values())


def test_distances_do_not_cancel_far_from_the_origin():
    """By |a|^2 - 2ab + |b|^2 these float32 distances would be noise."""
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, 64, (20, 2)).astype(np.float32) / 64 for _ in range(2))
    assert prdc(real + 1000, fake + 1000, 2) == prdc(real, fake, 2)


@pytest.mark.parametrize(("n", "m"), [(5, 20), (20, 5)])
def test_too_few_samples_are_refused(n, m):
    with pytest.raises(UserError, match="5 samples have no 5 neighbours"):
        prdc(np.zeros((n, 2)), np.zeros((m, 2)), k=5)


def test_evaluation_adds_totals_and_counts_in_double_precision():
    """2^24 + 1 is no float32; a mean of the batches' means would be wrong too, since they differ in size."""
    model: Any = SimpleNamespace(summarize=lambda sums: {name: total / count for name, (total, count) in sums.items()})
    batches: Any = [(2.0**24, 1.0), *[(1.0, 3.0)] * 5]

    def compiled(state, batch) -> Any:
        total, count = batch
        return {
            "nats": (np.float32(total), np.float32(count)),
            "by_unit": (np.array([total, 1], np.float32), np.float32(count)),
        }

    calls = []
    found = evaluate(model, compiled, state=None, batches=batches, each=lambda: calls.append(1))  # pyright: ignore[reportArgumentType]
    assert found["nats"] == (2.0**24 + 5) / 16
    np.testing.assert_array_equal(found["by_unit"], [(2.0**24 + 5) / 16, 6 / 16])
    assert len(calls) == 6
