"""The training images nearest to samples, and how sample.py shows them."""

from dataclasses import replace

import numpy as np
import pytest

from gen import sample
from gen.config import Parallel
from gen.data.images import Images
from gen.errors import UserError
from gen.media import image
from gen.metrics.images import READ_CHUNK
from gen.metrics.neighbours import NEIGHBOURS, neighbours
from gen.runs import trained
from gen.train import train
from tests.old_runs import edit, make_old


@pytest.fixture(scope="module")
def data():
    return Images(name="digits").build()


def test_neighbours_agree_with_a_full_search_across_chunks(data):
    assert data.sizes["train"] > READ_CHUNK
    batches = list(data.evaluation("train", READ_CHUNK))
    train = np.concatenate([b["image"][b["weight"] > 0] for b in batches]) / 8.0 - 1
    rng = np.random.default_rng(0)
    # Padding repeats the first image. Without the mask, that image would be its own neighbour many times.
    queries = np.concatenate([train[[0, READ_CHUNK + 7]], rng.uniform(-1, 1, (4, 8, 8, 1))]).astype(np.float32)

    found = neighbours(data, queries)

    distance = np.sqrt(np.square(train[None] - queries[:, None]).sum((2, 3, 4)))
    expected = np.sort(distance, axis=1)[:, :NEIGHBOURS]
    np.testing.assert_allclose(found.distance, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(distance, found.index, axis=1), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.image, train[found.index], atol=1e-6)
    assert found.index[:2, 0].tolist() == [0, READ_CHUNK + 7]
    assert found.distance[:2, 0].tolist() == [0, 0]


@pytest.mark.slow
def test_samples_of_a_run_come_with_neighbours_and_other_data_are_refused(tiny, tmp_path, monkeypatch):
    config = tiny("vae_digits")
    log = replace(config.log, tensorboard=False)
    config = replace(config, steps=2, evaluate_every=0, log=log, parallel=Parallel(devices=1))
    train(config, tmp_path)
    model = trained.open_run(tmp_path).model
    options = sample.Options(tmp_path, model.request(n=4), image.ImageOptions(neighbours=True), out=tmp_path / "out")

    sample.sample(options, trained.open_run(tmp_path))

    arrays = np.load(tmp_path / "out" / "samples.npz")
    assert arrays["neighbour_index"].shape == arrays["neighbour_distance"].shape == (4, NEIGHBOURS)
    assert (tmp_path / "out" / "neighbours.png").stat().st_size > 0
    assert sample.verify(sample.Verify(tmp_path / "out" / "manifest.json")) == 0

    make_old(tmp_path)
    edit(tmp_path / "config.json", lambda found: found.update(data="0" * 64))
    with pytest.raises(UserError, match=r"not those that .* was trained on"):
        sample.sample(options, trained.open_run(tmp_path))
