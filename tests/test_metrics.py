"""Metrics agree with their definitions, written as plain loops."""

import math
from functools import reduce
from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from gen.errors import UserError
from gen.evaluation.measure import measure
from gen.metrics import frechet as fr
from gen.metrics import inception_score as score
from gen.metrics import prdc as metrics_prdc
from gen.metrics.collapse import Duplicates, class_cover, collapse, find_duplicates, relative_spread
from gen.metrics.frechet import frechet, moments
from gen.metrics.kid import kid, mmd2
from gen.metrics.prdc import Prdc, prdc


def prdc_by_loops(real: np.ndarray, fake: np.ndarray, k: int) -> Prdc:
    def radius(points, i):
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    reals, fakes = range(len(real)), range(len(fake))
    within_real = [[math.dist(real[i], fake[j]) < radius(real, i) for i in reals] for j in fakes]
    within_fake = [[math.dist(real[i], fake[j]) < radius(fake, j) for j in fakes] for i in reals]
    return Prdc(
        precision=float(np.mean([any(row) for row in within_real])),
        recall=float(np.mean([any(row) for row in within_fake])),
        density=sum(map(sum, within_real)) / k / len(fake),
        coverage=float(np.mean([any(row[i] for row in within_real) for i in reals])),
    )


@pytest.fixture
def small_blocks(monkeypatch):
    """Splits the pairs into blocks of a few rows."""
    monkeypatch.setattr(metrics_prdc, "MAX_BLOCK", 64)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 3])
def test_prdc_agrees_with_loops(k):
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(20, 3)), rng.normal(1.5, 0.7, (13, 3))
    found = prdc(real.astype(np.float32), fake.astype(np.float32), k)
    assert found == pytest.approx(prdc_by_loops(real, fake, k))
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_a_copy_of_the_data_is_precise_and_covers_it():
    real = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    found = prdc(real, real)
    assert found.precision == found.recall == found.coverage == 1
    assert found.density >= 1 / 5


@pytest.mark.usefixtures("small_blocks")
def test_neighbours_on_the_edge_of_a_ball_are_outside_it():
    """The points of a lattice have many equal distances. After a rotation, their rounded squares are no longer equal."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(300, 300)))[0]
    real, fake = (rng.integers(0, 4, (n, 3)).astype(float) for n in (40, 30))
    found = prdc(real @ rotation[:3] + 1, fake @ rotation[:3] + 1, 4)
    assert found == pytest.approx(prdc_by_loops(real, fake, 4), abs=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_each_ball_of_a_shuffled_copy_contains_k_points():
    """These are the centre and k - 1 neighbours, since the k-th neighbour is on the edge."""
    rng = np.random.default_rng(0)
    real = rng.normal(3, 1, size=(50, 700)).astype(np.float32)
    assert prdc(real, rng.permutation(real), 5).density == 1


def test_a_collapsed_model_is_precise_and_recalls_nothing():
    real = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    found = prdc(real, np.broadcast_to(real.mean(0), (30, 2)))
    assert found.precision == 1
    assert found.recall == 0
    assert found.coverage < 0.7


def test_fakes_far_away_score_zero():
    real = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    assert prdc(real, real + 100) == (0, 0, 0, 0)


def test_distances_do_not_cancel_far_from_the_origin():
    """Without centring, |a|^2 - 2ab + |b|^2 would be noise here, even in float64."""
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, 64, (20, 2)) / 64 for _ in range(2))
    assert prdc(real + 1e7, fake + 1e7, 2) == prdc(real, fake, 2)


@pytest.mark.parametrize(("n", "m"), [(5, 20), (20, 5)])
def test_too_few_samples_are_refused(n, m):
    with pytest.raises(UserError, match="a sample among 5 samples has no 5 neighbours"):
        prdc(np.zeros((n, 2)), np.zeros((m, 2)), k=5)


def test_features_of_two_extractors_are_refused():
    with pytest.raises(UserError, match="2 and 3 dimensions can't be compared"):
        prdc(np.zeros((9, 2)), np.zeros((9, 3)))


def moments_of(features: np.ndarray) -> fr.Moments:
    return moments(features, np.ones(len(features)))


def test_frechet_of_diagonal_gaussians_is_the_distance_between_means_and_deviations():
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=(2, 5)), rng.uniform(0, 2, (2, 5))
    real, fake = (fr.Moments(n, m, (n - 1) * np.diag(d**2)) for n, m, d in zip((10, 20), mean, deviation, strict=True))
    expected = np.sum(np.square(mean[0] - mean[1])) + np.sum(np.square(deviation[0] - deviation[1]))
    assert frechet(real, fake) == pytest.approx(expected, rel=1e-12)


def test_frechet_agrees_with_a_matrix_square_root():
    rng = np.random.default_rng(0)
    real, fake = rng.gamma(2.0, size=(400, 60)) + 10, rng.gamma(2.2, size=(300, 60)) @ rng.normal(0, 0.2, (60, 60)) + 10
    a, b = (np.cov(x, rowvar=False) for x in (real, fake))
    root = scipy.linalg.sqrtm(a)
    expected = np.sum(np.square(real.mean(0) - fake.mean(0))) + np.trace(
        a + b - 2 * scipy.linalg.sqrtm(root @ b @ root)
    )
    assert frechet(moments_of(real), moments_of(fake)) == pytest.approx(expected.real, rel=1e-9)
    assert frechet(moments_of(fake), moments_of(real)) == pytest.approx(expected.real, rel=1e-9)


def frechet_by_samples(real: np.ndarray, fake: np.ndarray) -> float:
    """Needs no covariance: if S_r = X'X and S_f = Y'Y, the trace of the root is the sum of the singular values of X Y'."""
    x, y = ((a - a.mean(0)) / math.sqrt(len(a) - 1) for a in (real, fake))
    cross = np.sum(scipy.linalg.svdvals(x @ y.T))
    return np.sum(np.square(real.mean(0) - fake.mean(0))) + np.sum(x**2) + np.sum(y**2) - 2 * cross


RNG = np.random.default_rng(7)
BASE, DECAY = RNG.normal(size=(500, 120)), np.exp(-np.arange(120) / 4)
SINGULAR = {
    "ten fakes repeated": (BASE, np.repeat(np.abs(BASE[:10]), 50, axis=0)),
    "one fake repeated": (BASE, np.repeat(BASE[:1], 50, axis=0)),
    "features that are always zero": (BASE[:200] * (np.arange(120) % 2), BASE[:180] * (np.arange(120) % 3 > 0)),
    "a spectrum that decays": (BASE[:200] * DECAY, BASE[:180] * DECAY[::-1]),
    "a small change of few samples": (BASE[:50] + 10, BASE[:50] + 10 + 1e-3 * BASE[50:100]),
    "a small change of a decaying spectrum": (BASE * DECAY**0.5, (BASE + 1e-3 * BASE[::-1]) * DECAY**0.5),
}


@pytest.mark.parametrize("case", SINGULAR)
def test_frechet_is_exact_where_covariances_are_singular(case):
    real, fake = SINGULAR[case]
    assert frechet(moments_of(real), moments_of(fake)) == pytest.approx(frechet_by_samples(real, fake), rel=1e-6)


@pytest.mark.parametrize("fake", [BASE[30:90] + 0.1, BASE[:5] * 1.1, BASE[:2]])
def test_frechet_does_not_take_rounding_for_variance_with_fewer_samples_than_dimensions(fake):
    for real in (BASE, BASE[:30]):
        assert frechet(moments_of(real), moments_of(fake)) == pytest.approx(frechet_by_samples(real, fake), rel=1e-12)


@pytest.mark.parametrize("n", [20, 500])
def test_frechet_of_a_set_and_itself_is_zero_and_never_negative(n):
    found = frechet(moments_of(BASE[:n] + 5), moments_of(BASE[:n][::-1] + 5))
    assert 0 <= found < 1e-10 * np.trace(np.cov(BASE[:n], rowvar=False))


def test_moments_do_not_depend_on_batches_and_padding():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(100, 8)) + 1e4).astype(np.float32)  # E[xx] - E[x]E[x] has no correct digit in float32
    cuts = [0, 1, 1, 30, 64, 100]
    parts = []
    for start, end in pairwise(cuts):
        order = rng.permutation(end - start + 3)
        padded = np.concatenate([x[start:end], np.full((3, 8), np.nan, np.float32)])[order]
        parts.append(moments(padded, (order < end - start).astype(np.float32)))
    expected = (100, x.mean(0, dtype=np.float64), 99 * np.cov(x, rowvar=False, dtype=np.float64))
    for found in (moments_of(x), reduce(fr.merge, parts), reduce(fr.merge, parts[::-1])):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-8)


def test_frechet_of_features_that_are_not_finite_is_nan():
    broken = np.where(np.arange(100)[:, None] == 3, np.nan, BASE[:100, :5])
    assert math.isnan(frechet(moments_of(BASE[:, :5]), moments_of(broken)))


def test_frechet_refuses_single_samples_and_different_features():
    with pytest.raises(UserError, match="a set of 1 has no covariance"):
        frechet(moments_of(BASE), moments_of(BASE[:1]))
    with pytest.raises(UserError, match="120 and 3 dimensions"):
        frechet(moments_of(BASE), moments_of(BASE[:, :3]))


def mmd2_by_loops(real: np.ndarray, fake: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(a * b) / len(a) + 1) ** 3

    def within(x: np.ndarray) -> float:
        return float(np.mean([k(a, b) for a, b in combinations(x, 2)]))

    return float(within(real) + within(fake) - 2 * np.mean([k(a, b) for a in real for b in fake]))


@pytest.mark.usefixtures("small_blocks")
def test_mmd2_agrees_with_loops():
    real, fake = BASE[:13, :4], BASE[13:30, :4] * 2 + 1
    assert mmd2(real, fake) == pytest.approx(mmd2_by_loops(real, fake), rel=1e-12)


def test_mmd2_is_unbiased():
    """For a cubic kernel in one dimension, MMD^2 is the squared distance between the vectors (3^1/2 m1, 3^1/2 m2, m3) of raw
    moments. The raw moments (m1, m2, m3) are (0, 1, 0) for N(0, 1), and (1, 2, 4) for N(1, 1)."""
    rng = np.random.default_rng(0)
    found = np.array([mmd2(rng.normal(size=(12, 1)), rng.normal(1, 1, (9, 1))) for _ in range(4000)])
    error = found.std() / math.sqrt(len(found))
    assert error < 1
    assert abs(found.mean() - (3 + 3 + 16)) < 4 * error


def test_kid_is_the_mean_over_subsets_that_numpy_draws():
    real, fake = BASE[:80, :6].astype(np.float32), BASE[100:160, :6].astype(np.float32) + 1
    rng, each = np.random.default_rng(5), []
    for _ in range(4):
        chosen = (rng.choice(80, 20, replace=False), rng.choice(60, 20, replace=False))
        each.append(mmd2_by_loops(real[chosen[0]].astype(float), fake[chosen[1]].astype(float)))
    found = kid(real, fake, subsets=4, size=20, seed=5)
    assert found == pytest.approx((np.mean(each), np.std(each)), rel=1e-9)
    assert found != kid(real, fake, subsets=4, size=20, seed=6)


def test_kid_refuses_small_sets_and_different_features():
    with pytest.raises(UserError, match="20 samples contain no subset of 1000; use more"):
        kid(BASE, BASE[:20])
    with pytest.raises(UserError, match="a set of 1 has no pair"):
        mmd2(BASE, BASE[:1])
    with pytest.raises(UserError, match="120 and 3 dimensions"):
        mmd2(BASE, BASE[:, :3])


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def inception_score_by_loops(p: np.ndarray) -> float:
    marginal = p.mean(axis=0)
    divergence = [sum(a * math.log(a / b) for a, b in zip(row, marginal, strict=True) if a > 0) for row in p]
    return math.exp(np.mean(divergence))


def test_the_inception_score_is_between_one_and_the_number_of_classes():
    def of(p: np.ndarray) -> float:
        return score.inception_score(score.predictions(p, np.ones(len(p))))

    assert of(np.full((12, 4), 0.25)) == pytest.approx(1)
    assert of(np.eye(4)[[2] * 12]) == pytest.approx(1)
    assert of(np.eye(4)[np.arange(12) % 4]) == pytest.approx(4)
    assert of(np.eye(4)[[0, 0, 0, 1]]) == pytest.approx(4 / 3**0.75)  # the entropy of (3/4, 1/4)


def test_the_inception_score_does_not_depend_on_batches_and_padding():
    p = softmax(3 * BASE[:50, :7]).astype(np.float32)
    p[0] = np.eye(7)[0]
    parts = []
    for start, end in ((0, 1), (1, 1), (1, 33), (33, 50)):
        padded = np.concatenate([np.full((2, 7), np.nan, np.float32), p[start:end]])
        parts.append(score.predictions(padded, np.arange(len(padded)) >= 2))
    found = score.inception_score(reduce(score.merge, parts))
    assert found == pytest.approx(inception_score_by_loops(p.astype(float)), rel=1e-12)


def test_the_inception_score_by_split_scores_each_part_separately():
    p = softmax(3 * BASE[:47, :7])
    parts = [p[i * 47 // 10 : (i + 1) * 47 // 10] for i in range(10)]
    expected = [inception_score_by_loops(part) for part in parts]
    assert score.inception_score_by_split(p) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-12)


def test_the_inception_score_refuses_too_few_images():
    with pytest.raises(UserError, match="9 images can't be divided into 10"):
        score.inception_score_by_split(np.full((9, 2), 0.5))
    with pytest.raises(UserError, match="there are no images"):
        score.inception_score(score.predictions(np.full((9, 2), 0.5), np.zeros(9)))


def test_one_image_repeated_is_all_duplicates_without_spread():
    real, fake = BASE[:100], np.repeat(BASE[100:101], 100, axis=0)
    assert find_duplicates(real, fake) == Duplicates(duplicates=1, support=1)
    assert find_duplicates(fake, fake) == Duplicates(duplicates=1, support=1), "even if real images have copies"
    assert relative_spread(real, fake) == 0


def test_the_other_half_of_the_data_shows_no_sign_of_collapse():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[:512]
    (real, fake), (y_real, y_fake) = np.split(images[order], 2), np.split(np.eye(10)[labels[order]], 2)
    found = collapse(real, fake, y_real, y_fake)
    assert found["duplicates"] < 0.05
    assert found["support"] > 5000
    assert found["spread"] == pytest.approx(1, abs=0.03)
    assert found["classes_real"] == found["classes_fake"] == 10
    assert found["class_entropy_fake"] == pytest.approx(found["class_entropy_real"], abs=0.05)


def test_ten_class_means_repeated_cover_the_classes_with_duplicates():
    means, which = 3 * BASE[400:410], np.arange(250) % 10
    found = collapse(means[which] + BASE[:250], means[which], *[np.eye(10)[which]] * 2)
    assert found["duplicates"] == 1
    assert found["support"] == pytest.approx((250 * 249 / 2) / (10 * 25 * 24 / 2))
    assert found["classes_fake"] == found["classes_real"] == 10
    assert found["class_entropy_fake"] == pytest.approx(math.log(10))
    assert found["spread"] > 0.8, "neither the classes nor the spread show it"


def test_duplicates_are_nearer_than_the_closest_pair_of_reals():
    real, fake = np.array([[0.0], [1.0], [3.0], [6.0]]), np.array([[0.0], [0.5], [10.0], [11.0]])
    assert find_duplicates(real, fake) == Duplicates(duplicates=0.5, support=6)
    assert find_duplicates(real, fake * 2) == Duplicates(duplicates=0, support=math.inf)


def test_the_support_is_about_the_number_of_images_that_a_model_makes():
    rng = np.random.default_rng(0)
    known = rng.normal(size=(500, 20))
    fake = known[rng.integers(0, 500, 256)] + 1e-6 * rng.normal(size=(256, 20))
    assert 350 < find_duplicates(rng.normal(size=(256, 20)), fake).support < 700  # 65 pairs are expected


def test_class_cover_counts_predicted_classes_and_measures_the_entropy_of_the_mean():
    fake = np.array([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]])
    found = class_cover(np.eye(3), fake)
    assert found._asdict() == pytest.approx(
        {
            "classes_real": 3,
            "class_entropy_real": math.log(3),
            "classes_fake": 1,
            "class_entropy_fake": -0.6 * math.log(0.6) - 0.4 * math.log(0.4),
        }
    )


def test_signs_of_collapse_refuse_sets_without_an_answer():
    assert set(collapse(BASE[:9], BASE[9:18])) == {"duplicates", "support", "spread"}
    with pytest.raises(UserError, match="8 generated images are compared with 9 real ones"):
        find_duplicates(BASE[:9], BASE[:8])
    with pytest.raises(UserError, match="a set of 1 has no pair"):
        collapse(BASE[:1], BASE[:1])
    with pytest.raises(UserError, match="all equal"):
        relative_spread(np.ones((4, 2)), BASE[:4, :2])
    # All signs together are watched while a run trains, perhaps on copies of one image.
    assert set(collapse(np.ones((4, 2)), BASE[:4, :2])) == {"duplicates", "support"}


def test_evaluation_adds_totals_and_counts_in_double_precision():
    """2^24 + 1 can't be a float32. A mean of the batches' means would be wrong too, since their sizes differ."""
    model: Any = SimpleNamespace(summarize=lambda sums: {name: total / count for name, (total, count) in sums.items()})
    batches: Any = [(2.0**24, 1.0), *[(1.0, 3.0)] * 5]

    def compiled(state, batch) -> Any:
        total, count = batch
        return {
            "nats": (np.float32(total), np.float32(count)),
            "by_unit": (np.array([total, 1], np.float32), np.float32(count)),
        }

    calls = []
    found = measure(model, compiled, state=None, batches=batches, after_batch=lambda: calls.append(1))  # pyright: ignore[reportArgumentType]
    assert found["nats"] == (2.0**24 + 5) / 16
    np.testing.assert_array_equal(found["by_unit"], [(2.0**24 + 5) / 16, 6 / 16])
    assert len(calls) == 6
