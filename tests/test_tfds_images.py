"""Prepared TFDS sets with other features than MNIST: which image and label are read."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen.core import Feature
from gen.data.images import Images
from gen.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def prepare_custom(data_dir: Path, features: dict, examples: list[dict]) -> None:
    """Prepares a TFDS set "custom" with one split "all_of_it"."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import skip_registration

    with skip_registration():

        class Custom(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.3")

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"all_of_it": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(examples)

    tfds.disable_progress_bar()
    Custom(data_dir=data_dir, file_format="array_record").download_and_prepare(download_dir=data_dir / "none")


def test_the_image_and_the_label_are_found_among_other_features(tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "caption": tfds.features.Text(),
        "coarse": tfds.features.ClassLabel(names=["a", "b"]),
        "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
        "photo": tfds.features.Image(),
    }

    def photo(i: int) -> io.BytesIO:
        buffer = io.BytesIO()
        Image.fromarray(np.full((4 + i, 5, 3), 50 * i, np.uint8)).save(buffer, "png")
        buffer.seek(0)
        return buffer

    prepare_custom(tmp_path, features, [{"caption": "", "coarse": 0, "label": i, "photo": photo(i)} for i in range(3)])
    config = Images(name="custom", data_dir=str(tmp_path), train="all_of_it", validation="all_of_it", test="all_of_it")
    with pytest.raises(UserError, match=r"--data\.size"):
        config.build()
    data = replace(config, size=4, batch_size=3).build()
    assert data.spec == {"image": Feature((4, 4, 3), levels=256), "label": Feature((), "int32", classes=3)}
    batch = data.batch(0, 0, range(3))
    np.testing.assert_array_equal(batch["image"], np.full((3, 4, 4, 3), 50) * batch["label"][:, None, None, None])
    np.testing.assert_array_equal(np.sort(batch["label"]), range(3))


def test_a_set_without_images_is_an_error(tmp_path):
    import tensorflow_datasets as tfds

    prepare_custom(tmp_path, {"sentence": tfds.features.Text()}, [{"sentence": "none"}])
    with pytest.raises(UserError, match="no images: its features are sentence"):
        Images(name="custom", data_dir=str(tmp_path)).build()
