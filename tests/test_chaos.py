"""The chaos test in short; `python -m tests.chaos --family vae --kills 50` at length. test_run.py kills a VAE."""

import pytest

from tests.chaos import chaos


@pytest.mark.parametrize("family", ["gan", "lm"])
def test_a_killed_run_ends_bit_identical(family, tmp_path):
    inside = chaos(family, kills=3, seed=0, folder=tmp_path, say=lambda text: None)
    assert inside >= 1
