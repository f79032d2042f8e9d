"""Data sets of arrays: inferred features, batches, evaluation, the digest, preprocessing, and wrong arrays."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from gen.core import Batch, Data, Dataset, Feature, Metrics, State
from gen.data import from_arrays
from gen.errors import UserError
from gen.families.language import LM
from gen.networks.transformer import Architecture
from tests.datasets import check_contract, check_padding, read_split

SIZES = {"train": 23, "validation": 7, "test": 9}
Splits = dict[str, dict[str, np.ndarray]]


def draw(seed: int = 0) -> Splits:
    """Returns splits with one array of each kind."""
    rng = np.random.default_rng(seed)
    return {
        split: {
            "image": rng.integers(0, 256, (n, 4, 5, 3), np.uint8),
            "label": np.arange(n) % 7,
            "tokens": rng.integers(0, 11, (n, 6)),
            "latent": rng.normal(size=(n, 2, 2, 8)),
        }
        for split, n in SIZES.items()
    }


def with_array(name: str, values: npt.ArrayLike, split: str | None = None) -> Splits:
    """Returns the splits with one array replaced, in one split or in all. The first axis is repeated to the size of a split."""
    splits = draw()
    for each in [split] if split else SIZES:
        splits[each][name] = np.resize(values, (SIZES[each], *np.shape(values)[1:]))
    return splits


def without(split: str) -> Splits:
    return {name: arrays for name, arrays in draw().items() if name != split}


def test_features_are_inferred():
    spec = from_arrays(draw()).spec
    assert spec == {
        "image": Feature((4, 5, 3), levels=256),
        "label": Feature((), "int32", classes=7),
        "tokens": Feature((6,), "int32", vocab=11),
        "latent": Feature((2, 2, 8)),
    }
    points = from_arrays({split: {"points": np.ones((n, 2))} for split, n in SIZES.items()})
    assert points.spec == {"points": Feature((2,))}


def test_classes_are_those_of_all_splits():
    assert from_arrays(with_array("label", [0, 12], "test")).spec["label"].classes == 13


def test_given_features_replace_inferred_ones():
    features = {"tokens": Feature((6,), "int32", vocab=50, end=0), "label": Feature((), "int32", classes=10)}
    spec = from_arrays(draw(), features=features).spec
    assert {name: spec[name] for name in features} == features
    assert spec["image"].levels == 256


def test_tokens_of_bytes_are_tokens():
    splits: Splits = {split: {"tokens": np.full((n, 6), 200, np.uint8)} for split, n in SIZES.items()}
    data = from_arrays(splits)
    assert data.spec["tokens"] == Feature((6,), "int32", vocab=201)
    assert data.batch(0, 0, range(2))["tokens"].dtype == np.int32


def test_arrays_keep_the_contract():
    check_contract(lambda: from_arrays(draw(), batch_size=8), 8)


def test_evaluation_is_in_order_and_padded():
    data = from_arrays(draw())
    assert data.sizes == SIZES
    for split in SIZES:
        check_padding(data, split, 4)
        found = read_split(data, split)
        for name, values in draw()[split].items():
            np.testing.assert_array_equal(found[name], values.astype(found[name].dtype))


def test_a_batch_has_host_dtypes():
    batch = from_arrays(draw(), batch_size=6).batch(0, 0, range(2, 5))
    assert {name: (value.dtype.name, value.shape) for name, value in batch.items()} == {
        "image": ("uint8", (3, 4, 5, 3)),
        "label": ("int32", (3,)),
        "tokens": ("int32", (3, 6)),
        "latent": ("float32", (3, 2, 2, 8)),
        "counted": ("uint8", (3, 6)),
        "bytes": ("int32", (3,)),
        "row": ("int32", (3,)),
        "index": ("int32", (3,)),
        "weight": ("float32", (3,)),
    }


@pytest.mark.parametrize("split", SIZES)
@pytest.mark.parametrize("name", ["image", "label", "tokens", "latent"])
def test_the_digest_changes_with_every_number(split, name):
    digest = from_arrays(draw()).digest
    assert from_arrays(draw(), batch_size=3).digest == digest
    changed = draw()
    array = changed[split][name]
    # A single number of the last example.
    array.flat[-1] = array.flat[-1] + 1 if array.flat[-1] == 0 else 0
    assert from_arrays(changed).digest != digest


def test_the_digest_does_not_depend_on_the_order_of_names_or_the_width_of_integers():
    splits = draw()
    other = {split: dict(reversed(arrays.items())) for split, arrays in splits.items()}
    for arrays in other.values():
        arrays["label"] = arrays["label"].astype(np.uint8)
    assert from_arrays(other).digest == from_arrays(splits).digest


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("levels", [None, 17])
def test_bytes_are_scaled_to_minus_one_to_one_inside_a_compiled_step(levels, training):
    top = (levels or 256) - 1
    # One image of one pixel for each level.
    image = np.arange(top + 1).repeat(3).reshape(-1, 1, 1, 3).astype(np.uint8)
    features = levels and {"image": Feature((1, 1, 3), levels=levels)}
    data = from_arrays({split: {"image": image} for split in SIZES}, batch_size=len(image), features=features)
    batch = {name: jnp.asarray(x) for name, x in data.batch(0, 0, range(len(image))).items()}
    seen = jax.jit(data.preprocess, static_argnums=2)(batch, jax.random.key(0), training)
    assert seen["image"].dtype == jnp.float32
    expected = np.linspace(-1, 1, top + 1)[np.asarray(batch["index"])]
    np.testing.assert_allclose(np.asarray(seen["image"])[:, 0, 0, 0], expected, atol=1e-6)
    assert seen.keys() == batch.keys()


def test_floats_and_integers_are_not_preprocessed():
    data = from_arrays(draw())
    batch = {name: jnp.asarray(x) for name, x in data.batch(0, 0, range(4)).items()}
    seen = data.preprocess(batch, jax.random.key(0), True)
    assert all(seen[name] is batch[name] for name in batch if name != "image")


def test_all_tokens_but_the_first_count_as_one_byte_unless_given():
    batch = from_arrays(draw()).batch(0, 0, range(3))
    np.testing.assert_array_equal(batch["counted"], np.tile([0, 1, 1, 1, 1, 1], (3, 1)))
    np.testing.assert_array_equal(batch["bytes"], [5, 5, 5])
    given = with_array("counted", [[0, 0, 0, 1, 1, 0]])
    data = from_arrays(given)
    assert "counted" not in data.spec
    batch = data.batch(0, 0, range(3))
    np.testing.assert_array_equal(batch["counted"], np.tile([0, 0, 0, 1, 1, 0], (3, 1)))
    np.testing.assert_array_equal(batch["bytes"], [2, 2, 2])


def test_a_language_model_takes_tokens():
    """The update is only traced: its shapes say that the batch has everything that the model reads."""
    data = from_arrays({split: {"tokens": arrays["tokens"]} for split, arrays in draw().items()}, batch_size=4)
    model = LM(network=Architecture(layers=1, width=8, heads=2)).build(data.spec, 3)
    key = jax.random.key(0)

    def update(batch: Batch) -> tuple[State, Metrics]:
        return model.update(model.init(key), batch, key)

    # The update runs under a mapped axis "data", here of size one.
    batch = {name: jnp.asarray(x)[None] for name, x in data.batch(0, 0, range(4)).items()}
    _, metrics = jax.eval_shape(jax.vmap(update, axis_name="data"), batch)
    assert "loss" in metrics


@dataclass(frozen=True)
class Noise(Data):
    """The example of from_arrays: a kind of data whose build is one line."""

    n: int = 1000

    def build(self) -> Dataset:
        image = np.random.default_rng(0).integers(0, 256, (self.n, 8, 8, 1), np.uint8)
        split = {"train": image[200:], "validation": image[:100], "test": image[100:200]}
        return from_arrays({name: {"image": x} for name, x in split.items()}, self.batch_size)


def test_a_kind_of_data_of_a_fork_is_one_call():
    check_contract(Noise(batch_size=64, n=300).build, 64)
    assert Noise().build().sizes == {"train": 800, "validation": 100, "test": 100}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (without("validation"), "no split 'validation'; hold examples out"),
        (without("test"), "no split 'test'"),
        (draw() | {"holdout": {}}, "no split 'holdout'"),
        ({split: {} for split in SIZES}, "has the arrays none"),
        (with_array("extra", [1], "test"), "'test' has the arrays .*extra, and 'train' has"),
        (with_array("row", [1]), "an array is named 'row'"),
        (draw() | {"test": draw()["test"] | {"label": np.arange(3)}}, r"'test': 'label' has the shape \(3,\)"),
        (draw() | {"test": {name: x[:0] for name, x in draw()["test"].items()}}, "at least 1"),
        (with_array("latent", np.zeros((1, 3)), "test"), r"an example of 'latent' has the shape \(3,\)"),
        (with_array("label", [True]), "'label' is bool; convert"),
        (with_array("label", [-1, 2]), "'label' has values from -1 to 2"),
        (with_array("label", [2**40]), "'label' has values from"),
        (with_array("latent", np.full((1, 2), np.nan)), "'latent' has values that are not finite"),
        (with_array("latent", np.zeros((1, 2, 2, 8), np.int64), "test"), "'latent' has different dtypes"),
        (with_array("image", np.full((1, 4, 5, 3), 255.0)), r"scale them to \[-1, 1\]"),
        (with_array("image", np.zeros((1, 4, 5), np.uint8)), "height, width, channels"),
    ],
)
def test_wrong_arrays_are_an_error_with_the_fix(splits, message):
    with pytest.raises(UserError, match=message):
        from_arrays(splits)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": Feature((), "int32", classes=3)}, "'label' has values up to 6, and its feature has 3"),
        ({"label": Feature((), "int32")}, "'label' has values up to 6, and its feature has None"),
        ({"tokens": Feature((9,), "int32", vocab=11)}, r"its feature has \(9,\)"),
        ({"image": Feature((4, 5, 3), levels=17)}, "'image' has values up to 255"),
        ({"labels": Feature((), "int32", classes=3)}, "features has 'labels', and the arrays are image"),
    ],
)
def test_a_feature_that_does_not_fit_is_an_error(features, message):
    with pytest.raises(UserError, match=message):
        from_arrays(draw(), features=features)


def test_a_wrong_batch_size_is_an_error():
    with pytest.raises(UserError, match="batch_size is 0"):
        from_arrays(draw(), batch_size=0)
