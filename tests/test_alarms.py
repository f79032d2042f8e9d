"""Alarms: which numbers raise one, and what a run does then."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import config as configs
from gen.config import Alarm, Alarms, Config, Log, Parallel, Save
from gen.core import Dataset, Key, State
from gen.data.arrays import from_arrays
from gen.data.images import Images
from gen.errors import UserError
from gen.evaluation import alarms
from gen.evaluation.alarms import Watch, build_alarms, check_limits
from gen.evaluation.progress import Progress
from gen.families.gan import GAN
from gen.families.labels import GIVEN
from gen.metrics import images as metrics_images
from gen.metrics.classifier import Recipe, classifier_features
from gen.metrics.images import to_float
from gen.networks import discriminator, generator
from gen.runs import checkpoint
from gen.runs.log import read_split
from gen.runtime import backend
from gen.train import train

TINY = GAN(latent=3, generator=generator.Perceptron((4,)), discriminator=discriminator.Perceptron((4,)))
SOUND = {
    "classes_real": 10.0,
    "classes_fake": 6.0,
    "class_entropy_real": 2.0,
    "class_entropy_fake": 1.2,
    "duplicates": 0.25,
    "spread": 0.6,
    "saturation": 0.95,
    "gradient/generator": 1e-7,
    "gradient/discriminator": 1e4,
    "loss/generator": 1e9,
}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, None),
        (
            {"classes_fake": 5.0},
            "collapse: the generated images cover 5 classes, and the same number of real images 10",
        ),
        ({"classes_real": 5.0, "classes_fake": 3.0}, None),
        (
            {"class_entropy_fake": 1.1},
            "collapse: the generated classes have an entropy of 1.10 nats, the real ones 2.00",
        ),
        ({"duplicates": 0.4}, "collapse: 40% of the generated images have a near duplicate"),
        (
            {"spread": 0.5},
            "collapse: the mean distance between generated images is 0.50 times as large as between real images",
        ),
        (
            {"saturation": 0.96},
            "the discriminator has won: it has nothing left to learn on 96% of the held-out examples",
        ),
        ({"gradient/generator": 1e-8}, "the gradient of the generator has a norm of 1e-08, outside [1e-07, 10000]"),
        (
            {"gradient/discriminator": 2e4},
            "the gradient of the discriminator has a norm of 2e+04, outside [1e-07, 10000]",
        ),
        (
            {"gradient/generator": float("nan")},
            "the gradient of the generator has a norm of nan, outside [1e-07, 10000]",
        ),
    ],
)
def test_an_alarm_is_a_message_for_a_number_past_its_limit(changed, text):
    found = check_limits(build_alarms(Alarms(), 256), {**SOUND, **changed})
    assert found == ([] if text is None else [text])


def test_a_few_duplicates_may_be_chance_and_raise_no_alarm():
    found = {**SOUND, "duplicates": 0.4}
    assert [len(check_limits(build_alarms(Alarms(), n), found)) for n in (10, 24, 26, 256)] == [0, 0, 1, 1]


def test_missing_numbers_raise_no_alarm_and_limits_come_from_the_config():
    assert check_limits(build_alarms(Alarms(), 256), {}) == []
    strict = Alarms(classes=0.7, entropy=0.7, duplicates=0.05, spread=0.7, saturation=0.9, gradient=(1e-6, 1e3))
    assert len(check_limits(build_alarms(strict, 256), SOUND)) == 7


def test_numbers_that_are_not_finite_raise_the_alarm_of_gradients_alone():
    found = check_limits(build_alarms(Alarms(), 256), dict.fromkeys(SOUND, float("nan")))
    assert [text.split(" has")[0] for text in found] == [
        "the gradient of the generator",
        "the gradient of the discriminator",
    ]


@pytest.mark.parametrize("samples", [1, 0])
def test_samples_without_a_pair_are_refused(samples):
    with pytest.raises(UserError, match=f"alarms.samples is {samples}; it must be at least 2"):
        Alarms(samples=samples)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives these tests a cache folder, keeps compiled programs out of it, and trains a small classifier."""
    quick = partial(classifier_features, recipe=Recipe((), (32,), 300, 64, 3e-3, 0.1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(backend, "start_backend", lambda config: None)
        patch.setattr(alarms, "classifier_features", quick)
        yield


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Images(name="digits").build()


def watched(data: Dataset, images: Any, samples: int = 100) -> tuple[dict[str, float], list[str]]:
    """Returns numbers and alarms of a model that generates the first of these images in [-1, 1]."""
    model = TINY.build(data.spec, 1)

    def generate(state: State, key: Key, given: Any, request: Any) -> dict[str, jax.Array]:
        return {"samples": jnp.asarray(images)[: request.n]}

    watch: Watch = alarms.watch(Alarms("warn", samples=samples), data, model._replace(generate=generate))
    return watch(model.init(jax.random.key(0)), 1, {"gradient/generator": 1.0}, {})


def test_a_model_of_real_digits_raises_no_alarm(digits):
    numbers, texts = watched(digits, to_float(metrics_images.read_training(digits, 1000).image))
    assert texts == []
    assert numbers["classes_fake"] == numbers["classes_real"] == 10
    assert numbers["class_entropy_fake"] == pytest.approx(np.log(10), abs=0.1)
    assert numbers["spread"] == pytest.approx(1, abs=0.05)
    assert numbers["duplicates"] < 0.05
    assert "gradient/generator" not in numbers


def test_a_model_that_makes_one_image_raises_every_alarm_of_collapse(digits):
    numbers, texts = watched(digits, to_float(metrics_images.read_training(digits, 1).image).repeat(100, axis=0))
    assert len(texts) == 4
    assert all(text.startswith("collapse") for text in texts)
    assert numbers["classes_fake"] == 1
    assert numbers["class_entropy_fake"] < 0.5
    assert numbers["duplicates"] == 1
    assert numbers["spread"] == 0


def test_a_model_that_makes_the_means_of_ten_classes_raises_the_alarm_of_duplicates(digits):
    examples = metrics_images.read_training(digits, 1000)
    means = np.stack([to_float(examples.image[examples.label == i]).mean(0) for i in range(10)])
    numbers, texts = watched(digits, np.tile(means, (10, 1, 1, 1)))
    assert numbers["classes_fake"] > 8
    assert numbers["duplicates"] == 1
    assert numbers["support"] == pytest.approx(100 * 99 / 2 / (10 * 45))
    assert "100% of the generated images have a near duplicate" in " ".join(texts)


def test_a_model_that_makes_one_class_raises_the_alarms_of_classes(digits):
    examples = metrics_images.read_training(digits, 1000)
    numbers, texts = watched(digits, to_float(examples.image[examples.label == 0]), samples=64)
    assert numbers["classes_fake"] <= 2
    assert numbers["class_entropy_fake"] < 0.5
    assert ["classes" in text for text in texts[:2]] == [True, True]


def test_without_labels_only_pixels_are_compared(digits):
    unlabelled = digits._replace(spec={"image": digits.spec["image"]})
    numbers, texts = watched(unlabelled, to_float(metrics_images.read_training(digits, 1).image).repeat(100, axis=0))
    assert numbers.keys() == {"duplicates", "spread", "support"}
    assert len(texts) == 2


def data_of(image: np.ndarray, label: np.ndarray, held_out: np.ndarray | None = None) -> Dataset:
    """Returns data with the same images in all splits. held_out: other labels of validation and test."""
    other = {"image": image, "label": label if held_out is None else held_out}
    return from_arrays({"train": {"image": image, "label": label}, "validation": other, "test": other}, 16)


def test_a_conditional_model_generates_the_classes_of_the_real_images(monkeypatch):
    """All classes in turn would be a more even mixture than the real one, and hide a collapse."""
    monkeypatch.setattr(
        alarms, "classifier_features", partial(classifier_features, recipe=Recipe((), (4,), 1, 8, 0, 0))
    )
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2, 3], (70, 20, 9, 1))
    order = rng.permutation(100)
    image, label = (60 * label[:, None, None, None] + rng.integers(0, 50, (100, 8, 8, 1))).astype(np.uint8), label
    data, given_labels = data_of(image[order], label[order]), []

    def generate(state: State, key: Key, given: Any, request: Any) -> dict[str, jax.Array]:
        given_labels.append(np.asarray(given[GIVEN]))
        return {"samples": to_float(image[order][: request.n])}

    model = TINY.build(data.spec, 1)._replace(generate=generate)
    alarms.watch(Alarms("warn", samples=80), data, model)(model.init(jax.random.key(0)), 1, {}, {})
    np.testing.assert_array_equal(given_labels[0], label[order][:80])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((20, 4, 4, 1), np.uint8), "all 20 real images are equal"),
        (np.ones((1, 4, 4, 1), np.uint8), "only one"),
    ],
)
def test_real_images_that_can_not_be_compared_end_no_run_that_only_warns(image, reason, caplog):
    data = data_of(image, np.arange(len(image)) % 2)
    model = TINY.build(data.spec, 1)
    watch = alarms.watch(Alarms("warn"), data, model)
    assert reason in caplog.text and "alarms check the metrics alone" in caplog.text
    numbers, texts = watch(model.init(jax.random.key(0)), 1, {"gradient/generator": float("nan")}, {})
    assert numbers == {} and len(texts) == 1
    with pytest.raises(UserError, match=rf"{reason}.*; the fix: --alarms\.action warn"):
        alarms.watch(Alarms("stop"), data, model)


@pytest.mark.parametrize("held_out", [np.zeros(40, int), np.arange(40) % 2])
def test_one_class_teaches_a_classifier_nothing_and_pixels_are_compared(held_out):
    image = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    data = data_of(image, np.zeros(40, int), held_out)
    numbers, texts = watched(data, to_float(image), samples=40)
    assert numbers.keys() == {"duplicates", "spread"} and texts == []


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class HighLoss(Alarm):
    """A user's alarm: the loss of the generator is above a limit."""

    most: float = 0.0

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        loss = numbers.get("loss/generator", self.most)
        return [f"the generator's loss is {loss:.3g}"] if loss > self.most else []


BRIEF = Config(
    model=TINY,
    data=Images(name="digits", batch_size=16),
    steps=5,
    evaluate_every=10,
    parallel=Parallel(devices=1),
    save=Save(every=5),
    log=Log(every=1),
)


@pytest.mark.slow
def test_an_alarm_stops_a_run_before_it_saves_or_warns_and_the_run_continues(tmp_path, capsys):
    """After a few steps the generator makes the same image for all latents."""
    config = replace(BRIEF, alarms=Alarms("off", samples=32))
    train(config, tmp_path)

    def saved() -> list[int]:
        return checkpoint.steps(tmp_path / "checkpoints")

    assert saved() == [5]
    assert not any("duplicates" in line for line in read_lines(tmp_path / "telemetry.jsonl"))

    longer = replace(config, steps=20)
    with pytest.raises(
        UserError, match=r"alarm\(s\) at step 10; the last checkpoint before is 5.*--alarms.action warn"
    ):
        train(replace(longer, alarms=Alarms("stop", samples=32)), tmp_path)
    assert saved() == [5]
    assert checkpoint.newest(tmp_path / "checkpoints", warn=pytest.fail) == 5
    stopped = read_lines(tmp_path / "telemetry.jsonl")
    assert [line["step"] for line in stopped if "duplicates" in line] == [10]
    assert any("alarm" in line for line in stopped)
    assert not (tmp_path / "evaluation.json").exists()

    capsys.readouterr()
    train(replace(longer, alarms=Alarms("warn", samples=32)), tmp_path)
    assert saved()[-1] == 20
    later = read_lines(tmp_path / "telemetry.jsonl")[len(stopped) :]
    assert [line["step"] for line in later if "duplicates" in line] == [10, 15, 20]
    assert {line["step"] for line in later if "alarm" in line} == {10, 15, 20}
    assert "collapse: " in capsys.readouterr().out
    assert not any("duplicates" in line for line in read_lines(tmp_path / "metrics.jsonl"))


@pytest.mark.slow
def test_an_alarm_from_outside_is_kept_in_the_config_and_raised(tmp_path):
    config = replace(BRIEF, evaluate_every=0, alarms=Alarms("warn", samples=32, extra=(HighLoss(), HighLoss(1e9))))
    assert configs.decode(Config, configs.encode(config)) == config
    assert configs.digest(config) == configs.digest(replace(config, alarms=Alarms())), (
        "alarms are not part of the identity"
    )
    train(config, tmp_path)
    messages = [line["alarm"] for line in read_lines(tmp_path / "telemetry.jsonl") if "alarm" in line]
    assert sum(message.startswith("the generator's loss is") for message in messages) == 1


def test_data_without_images_have_alarms_of_metrics_alone(tiny):
    config = tiny("lm_pydoc")
    data = config.data.build()
    model = config.model.build(data.spec, 1)
    watch = alarms.watch(Alarms(extra=(HighLoss(),)), data, model)
    found = watch(model.init(jax.random.key(0)), 1, {"gradient": float("nan"), "loss/generator": 1.0}, {})
    assert found == ({}, ["the gradient has a norm of nan, outside [1e-07, 10000]", "the generator's loss is 1"])
    with pytest.raises(UserError, match="the data have no images"):
        alarms.watch(Alarms(request=("temperature=2",)), data, model)


def test_a_request_changes_the_images_that_alarms_generate(digits):
    requests, images = [], to_float(metrics_images.read_training(digits, 32).image)

    def generate(state: State, key: Key, given: Any, request: Any) -> dict[str, jax.Array]:
        requests.append(request)
        return {"samples": jnp.asarray(images)}

    model = TINY.build(digits.spec, 1)._replace(generate=generate)
    config = Alarms("warn", samples=32, request=("truncation=0.5",))
    alarms.watch(config, digits, model)(model.init(jax.random.key(0)), 1, {}, {})
    assert requests == [model.request(n=32, truncation=0.5)]
    for wrong, message in {"truncatoin=1": "did you mean truncation", "n=4": "--alarms.samples 4"}.items():
        with pytest.raises(UserError, match=message):
            alarms.watch(replace(config, request=(wrong,)), digits, model)


def test_by_default_the_metrics_are_watched_and_no_image_is_generated(digits):
    model = TINY.build(digits.spec, 1)._replace(generate=lambda *_: pytest.fail("images are compared"))
    watch = alarms.watch(Alarms(extra=(HighLoss(),)), digits, model)
    metrics = {"gradient/generator": 1e5, "loss/generator": 2.0}
    numbers, texts = watch(model.init(jax.random.key(0)), 1, metrics, {"saturation": 0.99})
    assert numbers == {}
    assert [text.split(" ")[1] for text in texts] == ["discriminator", "gradient", "generator's"]
    assert alarms.watch(Alarms(), digits, model)(model.init(jax.random.key(0)), 1, {"gradient": 1.0}, {}) == ({}, [])


@pytest.mark.parametrize(
    ("values", "raised"),
    [
        ([105.0, 98.0, 90.0, 89.6, 89.7], False),
        ([105.0, 98.0, 90.0, 89.6, 500.0], True),
        ([105.0, 98.0, 90.0, 89.6, 120.0], False),
        ([2.4, 1.9, 2.2, 2.6], False),
        ([2.4, 1.9, 2.2, 3.5], True),
        ([-1000.0, -2000.0, -1990.0], False),
        ([-1500.0, -2000.0, 0.0], True),
        ([0.3, 0.001, 0.2], False),
        ([1.4, 2.2], True),
        ([math.inf], False),
        ([1.0], False),
    ],
)
def test_a_validation_far_worse_than_the_best_is_an_alarm(values, raised):
    for best, sign, name in ((None, 1, "neg_elbo"), (("accuracy", "max"), -1, "accuracy")):
        progress = Progress(best, [(0, {name: sign * values[0]})])
        found = [progress.check(step, {name: sign * value}) for step, value in enumerate(values[1:], start=1)]
        assert [bool(texts) for texts in found] == [False] * (len(values) - 2) + [raised] * (len(values) > 1)
        if raised:
            assert f"validation {name} is {sign * values[-1]:.4g} at step {len(values) - 1}, and was" in found[-1][0]
    assert Progress(None, []).check(1, {}) == []
    assert Progress(None, []).check(1, {"score_real": 1.0}) == []


def test_a_run_reads_its_earlier_evaluations(tmp_path):
    lines = [
        {"step": 1, "split": "train", "loss": 1.0},
        {"step": 1, "split": "validation", "loss": 2.0},
        {"step": 2, "split": "validation", "loss": 1.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_split(tmp_path, "validation") == [(1, {"loss": 2.0}), (2, {"loss": 1.5})]
