"""Metrics agree with the packages that published numbers come from. A test is skipped where its package is missing."""

import contextlib
import warnings

import numpy as np
import pytest

from gen.metrics import frechet as fr
from gen.metrics import inception_score as score
from gen.metrics.kid import kid
from gen.metrics.prdc import prdc

torch = pytest.importorskip("torch")


def features(n: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Returns float32 features that are positive, skewed and correlated, as Inception's are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    return np.abs(rng.gamma(0.5, size=(n, dimensions)) @ mix + shift).astype(np.float32)


REAL, FAKE = features(700, 256, 0), features(600, 256, 1, 0.05)
FEW = {"enough": (REAL, FAKE), "fewer than dimensions": (REAL[:90], FAKE[:120])}


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    return fr.frechet(*(fr.moments(x, np.ones(len(x))) for x in (real, fake)))


@pytest.mark.parametrize(("case", "rounding"), [("enough", 1e-9), ("fewer than dimensions", 1e-6)])
def test_frechet_agrees_with_torch_fidelity(case, rounding):
    """torch-fidelity takes roots of the eigenvalues of a product. For singular covariances these include rounding errors."""
    peer = pytest.importorskip("torch_fidelity.metric_fid")
    real, fake = FEW[case]
    statistics = [peer.fid_features_to_statistics(torch.tensor(x, dtype=torch.float64)) for x in (fake, real)]
    expected = peer.fid_statistics_to_metric(*statistics, verbose=False)[peer.KEY_METRIC_FID]
    assert frechet(real, fake) == pytest.approx(expected, rel=rounding)


@pytest.mark.parametrize(("case", "rounding"), [("enough", 1e-9), ("fewer than dimensions", 1e-6)])
def test_frechet_agrees_with_pytorch_fid(case, rounding):
    peer = pytest.importorskip("pytorch_fid.fid_score")
    real, fake = (x.astype(np.float64) for x in FEW[case])
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")  # scipy warns about an argument of sqrtm and about singular matrices
        expected = peer.calculate_frechet_distance(
            *(s for x in (fake, real) for s in (x.mean(axis=0), np.cov(x, rowvar=False)))
        )
    assert frechet(real, fake) == pytest.approx(expected, rel=rounding)


def test_kid_agrees_with_torch_fidelity():
    """The subsets are the same here; by itself torch-fidelity draws others."""
    peer = pytest.importorskip("torch_fidelity.metric_kid")
    found, rng = kid(REAL, FAKE, subsets=5, size=100, seed=3), np.random.default_rng(3)

    def draw(x: np.ndarray) -> np.ndarray:
        return x[rng.choice(len(x), 100, replace=False)].astype(np.float64)

    each = [peer.kernel_mmd(draw(REAL), draw(FAKE)) for _ in range(5)]
    assert found == pytest.approx((np.mean(each), np.std(each)), rel=1e-9)


def test_kid_of_one_subset_with_all_samples_agrees_with_torch_fidelity():
    peer = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = REAL[:600], FAKE
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (fake, real)]
    expected = peer.kid_features_to_metric(*tensors, kid_subsets=1, kid_subset_size=600, verbose=False)
    assert kid(real, fake, subsets=1, size=600).mean == pytest.approx(expected[peer.KEY_METRIC_KID_MEAN], rel=1e-9)


def test_the_inception_score_agrees_with_torch_fidelity():
    peer = pytest.importorskip("torch_fidelity.metric_isc")
    logits = torch.tensor(4 * FAKE[:593, :40])
    expected = peer.isc_features_to_metric(logits, splits=10, shuffle=False)
    found = score.inception_score_by_split(logits.double().softmax(dim=1).numpy())
    assert found == pytest.approx((expected[peer.KEY_METRIC_ISC_MEAN], expected[peer.KEY_METRIC_ISC_STD]), rel=1e-9)


def test_precision_and_recall_agree_with_torch_fidelity():
    peer = pytest.importorskip("torch_fidelity.metric_prc")
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (FAKE, REAL)]
    expected = peer.prc_features_to_metric(*tensors, prc_neighborhood=3, verbose=False)
    found = prdc(REAL, FAKE, k=3)
    assert 0.05 < found.recall < 0.95
    assert found.precision == pytest.approx(
        expected[peer.KEY_METRIC_PRECISION], abs=1e-6
    )  # torch-fidelity uses float32
    assert found.recall == pytest.approx(expected[peer.KEY_METRIC_RECALL], abs=1e-6)


def test_prdc_agrees_with_the_package_prdc(capsys):
    peer = pytest.importorskip("prdc")
    expected = peer.compute_prdc(REAL.astype(np.float64), FAKE.astype(np.float64), nearest_k=5)
    capsys.readouterr()
    assert prdc(REAL, FAKE)._asdict() == pytest.approx(expected, rel=1e-12)
