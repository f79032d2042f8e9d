"""Score the images of trained runs side by side: python -m gen.evaluate RUN [RUN ...] [--metrics tstr frechet ...]

Every number goes into evaluation.json of its run with its protocol, and what is there under the same protocol isn't
computed again. Runs are compared under one protocol only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import tyro

from gen import checkpoint, core, run, sample
from gen.core import Array, Dataset, GenerativeModel, Key, State, UserError, checked_seed, command, positive
from gen.metrics import split
from gen.metrics.classifier import trained
from gen.metrics.features import Features, pixels
from gen.metrics.frechet import frechet, moments
from gen.metrics.inception import inception
from gen.metrics.inception_score import inception_score_by_split
from gen.metrics.kernel import kid
from gen.metrics.manifold import prdc
from gen.metrics.split import CHUNK, Images
from gen.metrics.tstr import PERCEPTRON, SEEDS, baselines, tstr
from gen.pictures import to_bytes

Metric = Literal["tstr", "frechet", "kid", "inception", "prdc"]
SAMPLES = 10_000
SUBSETS, SUBSET = 100, 1000  # of KID; a subset is smaller where there are fewer images
SPLITS = 10  # of the inception score
NEIGHBOURS = 5
OWN = ("checkpoint", "run")  # entries of a protocol in which runs that are compared may differ


@dataclass(frozen=True)
class Options:
    """Scores of the images of trained runs, beside what real images and trivial models score."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    metrics: tuple[Metric, ...] | None = None
    """What to compute; None: all that apply (tstr: to conditional models)."""
    n: int | None = None
    """Number of images to generate; None: 10,000, or as many as there are to train on."""
    seed: int = 0
    """Seed of the images."""
    split: Literal["test", "validation"] = "test"
    """Held-out images to compare with."""
    features: str = "classifier"
    """What images are compared by: a classifier of the data's own labels, pixels, or a file of Inception's weights."""
    step: int | None = None
    """Checkpoint; None: the best."""
    data_dir: str | None = None
    """Where TFDS sets are prepared now, if elsewhere than when the run was trained."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that a run's config names and that may be imported."""

    def __post_init__(self):
        checked_seed(self.seed)
        if self.n is not None:
            positive(n=self.n)


class Subject(NamedTuple):
    """A checkpoint of a run, and what its images are compared with, and by."""

    workdir: Path
    step: int
    model: GenerativeModel
    data: Dataset
    features: Features
    n: int
    metrics: tuple[Metric, ...]


class Score(NamedTuple):
    """Numbers that are computed together."""

    metric: Metric
    names: tuple[str, ...]
    protocol: Mapping[str, Any]
    compute: Callable[[], Iterable[float]]
    """In the order of names."""


def main() -> None:
    print(table(scores(tyro.cli(Options, prog="python -m gen.evaluate"))))


def scores(options: Options) -> dict[str, dict[str, float]]:
    """{run: {name: number}}; each number is in evaluation.json of its run too, with its protocol.

    Raises: UserError for what can't be computed or compared, before anything is generated.
    """
    if not options.runs:
        raise UserError("no run is named: python -m gen.evaluate RUN [RUN ...]")
    features = extractor(options.features)
    subjects = [opened(workdir, options, features) for workdir in options.runs]
    check_comparable({str(subject.workdir): planned(subject, options) for subject in subjects})
    return {str(subject.workdir): completed(subject.workdir, planned(subject, options)) for subject in subjects}


def planned(subject: Subject, options: Options) -> list[Score]:
    """How each number is computed, and what must be equal for two of them to compare."""
    data, n, features = subject.data, subject.n, subject.features
    samples = cache(lambda: generated(subject, options.seed))
    held_out = cache(lambda: split.whole(data, options.split))
    real = cache(lambda: split.extracted(features, held_out().image)[0])
    fake = cache(lambda: split.extracted(features, samples().image))
    train = lambda: split.extracted(features, split.training(data, n).image)[0]

    by_tstr = lambda: tstr(samples(), held_out(), core.classes(data.spec), PERCEPTRON)
    by_others = lambda: baselines(data, n, options.split, PERCEPTRON)
    by_frechet = lambda x: frechet(*(moments(v, np.ones(len(v))) for v in (real(), x)))
    shuffled = np.random.default_rng(0).permutation  # so that no split of the inception score has some classes only
    by_classes = lambda: inception_score_by_split(shuffled(fake()[1]), SPLITS)
    by_neighbours = lambda: prdc(real(), fake()[0], NEIGHBOURS).values()
    by_kernel = lambda: kid(real(), fake()[0], SUBSETS, subset)

    size = data.sizes[options.split]
    subset = min(SUBSET, n, size)
    weights = checkpoint.digest(subject.workdir / "checkpoints", subject.step)
    known = {"data": data.digest, "resize": "none"}  # unless features say otherwise
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
    return [score for score in every if score.metric in subject.metrics]


def completed(workdir: Path, wanted: Iterable[Score]) -> dict[str, float]:
    """The numbers that are there under the same protocol, and the others, computed and written at once."""
    found: dict[str, float] = {}
    old = run.read_evaluation(workdir) or {"metrics": {}, "protocol": {}}
    for score in wanted:
        protocol = json.loads(json.dumps(score.protocol))  # where a tuple is a list
        if all(name in old["metrics"] and old["protocol"].get(name) == protocol for name in score.names):
            found |= {name: old["metrics"][name] for name in score.names}
            continue
        say(f"{workdir}: {', '.join(score.names)} ...")
        new = {name: float(value) for name, value in zip(score.names, score.compute(), strict=True)}
        run.write_evaluation(workdir, new, dict.fromkeys(new, protocol))
        found |= new
    return found


# --- before the first number ----------------------------------------------------------------------------------------


def extractor(name: str) -> Callable[[Dataset], Features]:
    """What --features names. Raises: UserError if it is a file that isn't Inception's weights."""
    if name == "classifier":
        return trained
    features = pixels() if name == "pixels" else inception(Path(name))
    return lambda data: features


def opened(workdir: Path, options: Options, features: Callable[[Dataset], Features]) -> Subject:
    """Raises: UserError if the run makes no images, its data are others now, or a metric doesn't apply."""
    config, model = sample.load(workdir, options.trust)
    step = sample.choose(workdir, config, options.step)
    data = sample.dataset(workdir, options.data_dir, options.trust)
    if "image" not in data.spec:
        raise UserError(f"{workdir} makes no images, and these metrics compare images")
    say(f"{workdir}: checkpoint {step}, features by {options.features}")
    n = options.n or min(SAMPLES, data.sizes["train"])
    subject = Subject(workdir, step, model, data, features(data), n, ())
    return subject._replace(metrics=applicable(subject, options))


def applicable(subject: Subject, options: Options) -> tuple[Metric, ...]:
    """The metrics asked for, or all that apply. Raises: UserError for one that doesn't, or for too few or many images."""
    model, n, real = subject.model, subject.n, subject.data.sizes[options.split]
    image = jax.ShapeDtypeStruct((1, *subject.data.spec["image"].shape), np.float32)
    features, probabilities = jax.eval_shape(subject.features.extract, image)
    generate = partial(model.generate, request=model.request(n=1))
    key, given = jax.random.key(0), run.read_reference(subject.workdir)
    flaws: dict[Metric, str] = {}
    if "labels" not in jax.eval_shape(generate, jax.eval_shape(model.init, key), key, given):
        flaws["tstr"] = f"tstr trains on labelled images, and {subject.workdir} is not conditional; leave tstr out"
    if probabilities is None:
        flaws["inception"] = f"{options.features} give no class probabilities; leave inception out"
    metrics: tuple[Metric, ...] = options.metrics or tuple(m for m in get_args(Metric) if m not in flaws)
    for metric in flaws.keys() & set(metrics):
        raise UserError(flaws[metric])
    if {"tstr", "frechet"} & set(metrics) and n > (most := subject.data.sizes["train"]):
        raise UserError(f"n is {n}, and only {most} real training images are there to score beside; --n {most}")
    if "frechet" in metrics and (least := min(n, real)) <= (d := features.shape[1]):
        raise UserError(f"frechet of {d} features takes more than {d} images, and there are {least}; kid takes fewer")
    return metrics


def check_comparable(plans: Mapping[str, Iterable[Score]]) -> None:
    """Raises: UserError for a number whose protocols, in two runs, differ in more than the run."""
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for workdir, plan in plans.items():
        for _, (name, *_), theirs, _ in plan:
            other, ours = first.setdefault(name, (workdir, theirs))
            differ = [k for k in {**ours, **theirs} if k not in OWN and ours.get(k) != theirs.get(k)]
            if differ:
                entries = "; ".join(f"{k}: {ours.get(k)} and {theirs.get(k)}" for k in differ)
                raise UserError(f"{name} of {other} and of {workdir} don't compare; score them apart\n  {entries}")


# --- from a run, to a person -----------------------------------------------------------------------------------------


def generated(subject: Subject, seed: int) -> Images:
    """n images, and labels if the model gives them, in chunks whose keys are folded from the seed."""
    workdir, step, model = subject[:3]
    state, given, request = sample.restored(workdir, model, step), run.read_reference(workdir), model.request(n=CHUNK)

    @jax.jit
    def generate(state: State, key: Key) -> dict[str, Array]:
        made = model.generate(state, key, given, request)
        return {name: made[name] for name in ("samples", "labels") if name in made}

    keys = (jax.random.fold_in(jax.random.key(seed), i) for i in range(-(-subject.n // CHUNK)))
    chunks = [jax.device_get(generate(state, key)) for key in keys]
    made = {name: np.concatenate([chunk[name] for chunk in chunks])[: subject.n] for name in chunks[0]}
    if not np.isfinite(made["samples"]).all():
        raise UserError(f"images of checkpoint {step} of {workdir} are not finite; --step names another")
    return Images(to_bytes(made["samples"]), made.get("labels"))


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """A column a run, a line a number."""
    names = dict.fromkeys(name for numbers in found.values() for name in numbers)
    shown = lambda numbers, name: f"{numbers[name]:.4g}" if name in numbers else "-"
    lines = [["", *found], *([name, *(shown(numbers, name) for numbers in found.values())] for name in names)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = lambda line: [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
    return "\n".join("  ".join(pad(line)) for line in lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command(main)
