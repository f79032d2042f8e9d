"""The nearest training images, shown beside samples."""

from dataclasses import replace

import numpy as np
import pytest

from gen import files, sample
from gen.data.images import Images
from gen.errors import UserError
from gen.media import image, medium
from gen.metrics.images import CHUNK
from gen.metrics.neighbours import COUNT, neighbours
from gen.runs import directory, trained
from gen.train import train


@pytest.fixture(scope="module")
def data():
    return Images(name="digits").build()


def test_neighbours_are_those_of_a_full_search_across_chunks(data):
    assert data.sizes["train"] > CHUNK
    batches = list(data.evaluation("train", CHUNK))
    train = np.concatenate([b["image"][b["weight"] > 0] for b in batches]) / 8.0 - 1
    rng = np.random.default_rng(0)
    # padding repeats the first image: were it not masked, that would be its own neighbour many times
    queries = np.concatenate([train[[0, CHUNK + 7]], rng.uniform(-1, 1, (4, 8, 8, 1))]).astype(np.float32)

    found = neighbours(data, queries)

    distance = np.sqrt(np.square(train[None] - queries[:, None]).sum((2, 3, 4)))
    expected = np.sort(distance, axis=1)[:, :COUNT]
    np.testing.assert_allclose(found.distance, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(distance, found.index, axis=1), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.image, train[found.index], atol=1e-6)
    assert found.index[:2, 0].tolist() == [0, CHUNK + 7]
    assert found.distance[:2, 0].tolist() == [0, 0]


def test_a_run_shows_them_and_refuses_other_data(tiny, tmp_path, monkeypatch):
    config = tiny("vae_digits")
    config = replace(config, steps=2, evaluate_every=0, log=replace(config.log, tensorboard=False))
    train(config, tmp_path)
    model = trained.load_model(tmp_path, ())[1]
    options = sample.Options(tmp_path, model.request(n=4), image.ImageOptions(neighbours=True), out=tmp_path / "out")

    sample.sample(options, model, medium.PICTURES)

    arrays = np.load(tmp_path / "out" / "samples.npz")
    assert arrays["neighbour_index"].shape == arrays["neighbour_distance"].shape == (4, COUNT)
    assert (tmp_path / "out" / "neighbours.png").stat().st_size > 0
    assert sample.verify(sample.Verify(tmp_path / "out" / "manifest.json")) == 0

    facts = directory._read_required(tmp_path / "config.json", "")
    files.write_json(tmp_path / "config.json", facts | {"data": "0" * 64})
    with pytest.raises(UserError, match=r"not those that .* was trained on"):
        sample.sample(options, model, medium.PICTURES)
