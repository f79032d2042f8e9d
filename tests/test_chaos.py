"""A short chaos test. `python -m tests.chaos --family vae --kills 50` is the long one, and test_run.py kills a VAE."""

import pytest

from tests.chaos import chaos

pytestmark = pytest.mark.slow  # whole runs that are killed again and again


@pytest.mark.parametrize("family", ["gan", "lm"])
def test_a_killed_run_ends_bit_identical(family, tmp_path):
    inside = chaos(family, kills=3, seed=0, folder=tmp_path, say=lambda text: None)
    assert inside >= 1
