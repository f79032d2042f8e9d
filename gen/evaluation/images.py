"""Scores of images: by classifiers trained on them, and by their features beside those of real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np

from gen.core import Array, Dataset, Key, State
from gen.data.images.pixels import to_bytes
from gen.errors import UserError
from gen.evaluation.score import Metric, Options, Score, Subject
from gen.families import labels
from gen.metrics import images
from gen.metrics.classifier import trained
from gen.metrics.features import Features, pixels
from gen.metrics.frechet import frechet, moments
from gen.metrics.images import CHUNK, ImageSet
from gen.metrics.inception import inception
from gen.metrics.inception_score import inception_score_by_split
from gen.metrics.kid import kid
from gen.metrics.prdc import prdc
from gen.metrics.tstr import PERCEPTRON, SEEDS, baselines, tstr
from gen.runs import checkpoint, directory

METRICS: tuple[Metric, ...] = ("tstr", "frechet", "kid", "inception", "prdc")
SAMPLES = 10_000
SUBSETS, SUBSET = 100, 1000  # of KID; a subset is smaller where there are fewer images
SPLITS = 10  # of the inception score
NEIGHBOURS = 5


def planned(subject: Subject, options: Options) -> list[Score]:
    """How each number is computed. Raises: UserError for what can't be."""
    data = subject.data
    features = extractor(options.features or ("classifier" if "label" in data.spec else "pixels"))(data)
    n = options.n or min(SAMPLES, data.sizes["train"])
    metrics = applicable(subject, features, n, options)
    samples = cache(lambda: generated(subject, n, options.seed))
    held_out = cache(lambda: images.read_split(data, options.split))
    real = cache(lambda: images.extract_features(features, held_out().image)[0])
    fake = cache(lambda: images.extract_features(features, samples().image))
    train = lambda: images.extract_features(features, images.read_training(data, n).image)[0]

    by_tstr = lambda: tstr(samples(), held_out(), labels.num_classes(data.spec), PERCEPTRON)
    by_others = lambda: baselines(data, n, options.split, PERCEPTRON)
    by_frechet = lambda x: frechet(*(moments(v, np.ones(len(v))) for v in (real(), x)))
    shuffled = np.random.default_rng(0).permutation  # so that no split of the inception score has some classes only
    by_classes = lambda: inception_score_by_split(shuffled(fake()[1]), SPLITS)
    by_neighbours = lambda: prdc(real(), fake()[0], NEIGHBOURS).values()
    by_kernel = lambda: kid(real(), fake()[0], SUBSETS, subset)

    size, image = data.sizes[options.split], data.spec["image"]
    subset = min(SUBSET, n, size)
    weights = checkpoint.digest(subject.workdir / "checkpoints", subject.step)
    seen_as = {"shape": image.shape, "levels": image.levels, "dequantized": image.dequantized}
    known = {"data": data.digest, "images": seen_as, "resize": "none"}  # unless features say otherwise
    origin = known | {"n_fake": n, "seed": options.seed, "checkpoint": subject.step, "run": weights}
    fakes = origin | {"split": options.split, "n": size}
    trains = known | {"n_train": n, "split": options.split, "n": size}
    rule = {"classifier": asdict(PERCEPTRON), "seeds": SEEDS}
    seen = dict(features.protocol)
    manifold = ("precision", "recall", "density", "coverage")
    every = [
        Score("tstr", ("tstr", "tstr_std"), fakes | rule, by_tstr),
        Score("tstr", ("trtr", "tstr_gaussian"), trains | rule, by_others),
        Score("frechet", ("frechet",), fakes | seen, lambda: [by_frechet(fake()[0])]),
        Score("frechet", ("frechet_real",), trains | seen, lambda: [by_frechet(train())]),
        Score("kid", ("kid", "kid_std"), fakes | seen | {"subsets": SUBSETS, "subset": subset}, by_kernel),
        Score("inception", ("inception_score", "inception_score_std"), origin | seen | {"splits": SPLITS}, by_classes),
        Score("prdc", manifold, fakes | seen | {"k": NEIGHBOURS}, by_neighbours),
    ]
    return [score for score in every if score.metric in metrics]


def extractor(name: str) -> Callable[[Dataset], Features]:
    """What --features names. Raises: UserError if it is a file that isn't Inception's weights."""
    if name == "classifier":
        return trained
    features = pixels() if name == "pixels" else inception(Path(name))
    return lambda data: features


def applicable(subject: Subject, by: Features, n: int, options: Options) -> tuple[Metric, ...]:
    """The metrics asked for, or all that apply. Raises: UserError for one that doesn't, or for too few or many images."""
    model, real = subject.model, subject.data.sizes[options.split]
    image = jax.ShapeDtypeStruct((1, *subject.data.spec["image"].shape), np.float32)
    features, probabilities = jax.eval_shape(by.extract, image)
    generate = partial(model.generate, request=model.request(n=1))
    key, given = jax.random.key(0), directory.read_reference(subject.workdir)
    flaws: dict[Metric, str] = {}
    if "labels" not in jax.eval_shape(generate, jax.eval_shape(model.init, key), key, given):
        flaws["tstr"] = f"tstr trains on labelled images, and {subject.workdir} is not conditional; leave tstr out"
    if probabilities is None:
        flaws["inception"] = f"{options.features or 'pixels'} give no class probabilities; leave inception out"
    if (least := min(n, real)) <= (d := features.shape[1]):
        flaws["frechet"] = f"frechet of {d} features takes more than {d} images, and there are {least}; kid takes fewer"
    metrics: tuple[Metric, ...] = options.metrics or tuple(m for m in METRICS if m not in flaws)
    if texts := set(metrics) - set(METRICS):
        raise UserError(f"{min(texts)} is a score of texts, and {subject.workdir} makes images; leave it out")
    for metric in flaws.keys() & set(metrics):
        raise UserError(flaws[metric])
    if {"tstr", "frechet"} & set(metrics) and n > (most := subject.data.sizes["train"]):
        raise UserError(f"n is {n}, and only {most} real training images are there to score beside; --n {most}")
    return metrics


def generated(subject: Subject, n: int, seed: int) -> ImageSet:
    """n images, and labels if the model gives them, in chunks whose keys are folded from the seed."""
    workdir, model = subject.workdir, subject.model
    state, given, request = subject.state(), directory.read_reference(workdir), model.request(n=CHUNK)

    @jax.jit
    def generate(state: State, key: Key) -> dict[str, Array]:
        made = model.generate(state, key, given, request)
        return {name: made[name] for name in ("samples", "labels") if name in made}

    keys = (jax.random.fold_in(jax.random.key(seed), i) for i in range(-(-n // CHUNK)))
    chunks = [jax.device_get(generate(state, key)) for key in keys]
    made = {name: np.concatenate([chunk[name] for chunk in chunks])[:n] for name in chunks[0]}
    if not np.isfinite(made["samples"]).all():
        raise UserError(f"images of checkpoint {subject.step} of {workdir} are not finite; --step names another")
    return ImageSet(to_bytes(made["samples"]), made.get("labels"))
