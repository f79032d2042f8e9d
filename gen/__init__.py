"""Generative models in JAX: pure functions, explicit state.

The Python interface opens a trained run, as sample.py and gen.evaluate do on the command line:

    import gen

    run = gen.open("runs/vae_digits")
    arrays = run.generate(n=64, seed=0)         # {"samples": [64, 8, 8, 1], ...}
    files = run.show(arrays)                    # {"samples.png": ...}
    numbers = run.score("frechet", n=1000)      # {"frechet": ..., "frechet_real": ...}
    curve = run.metrics("validation")           # {"step": [...], "neg_elbo": [...], ...}

`import gen` is fast: JAX is imported when a run is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Everything is imported where it is used: JAX takes seconds, and a script may only want the version.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    import numpy as np

    from gen.config import Config
    from gen.core import Medium
    from gen.runs.trained import TrainedRun

    Dataclass = Any
    """An instance or a class of a frozen dataclass."""

__version__ = "0.2.0"
__all__ = ["Run", "open"]


def open(path: str | PathLike[str], trust: Sequence[str] = ()) -> Run:
    """Opens the trained run in the directory `path`.

    trust: names of modules outside gen that may be imported. A run needs them if its config names classes of other
    packages, such as a model that is not part of gen.

    Raises: UserError (gen.errors) if the directory holds no run, or if the run is damaged.
    """
    from gen.files import expand_user
    from gen.runs.trained import open_run

    return Run(open_run(expand_user(path), trust), tuple(trust))


class Run:
    """A trained run. `gen.open` makes it.

    The attribute `trained`, a TrainedRun, gives everything else: the model, the checkpoints, the data.
    """

    def __init__(self, trained: TrainedRun, trust: tuple[str, ...] = ()):
        self.trained, self.trust = trained, trust

    def __repr__(self) -> str:
        return f"gen.open({str(self.trained.workdir)!r})"

    @property
    def config(self) -> Config:
        """The config that the run was trained with."""
        return self.trained.config

    @property
    def medium(self) -> Medium:
        """The object that shows the run's samples as files, such as images. Its options: `medium.options`."""
        return self.trained.medium

    def generate(
        self, *, seed: int = 0, step: int | None = None, base: str | None = None, **settings: object
    ) -> dict[str, np.ndarray]:
        """Returns the arrays that the model generates: {"samples": [n, ...], ...}. Equal arguments give equal arrays.

            run.generate(n=10, label=3)                          # a conditional GAN or VAE
            run.generate(n=2, prompt=["Once upon"], tokens=40)   # a language model
            run.generate(mode="inpaint", image="photo.png", mask="hole.png")    # a flow that was trained with masks
            run.generate(image="drawing.png")                    # a flow that was trained on pairs

        seed: in [0, 2**32). step: step of the checkpoint; None: the best checkpoint. base: run directory of the base
        that an adapter was trained on, if that directory was moved. settings: the options of this run's model and
        medium that `sample.py RUN --help` lists, such as n. A list is converted to a tuple.

        Raises: UserError for a wrong setting. If no setting has the name, the message gives the nearest name.
        """
        from gen.errors import check_seed

        request, options = self._split(settings)
        chosen, read = self.trained.choose_step(step), self.medium.read_options(options)
        return self.trained.draw(chosen, check_seed(seed), request, read, base).arrays

    def show(self, samples: Mapping[str, np.ndarray], **settings: object) -> dict[str, bytes]:
        """Returns samples as files {file name: content}, such as {"samples.png": ...} or {"samples.txt": ...}.

        samples: arrays from `generate`. settings: fields of `self.medium.options`, such as the `prompt` given to `generate`.

            Path("digits.png").write_bytes(run.show(run.generate(n=9))["samples.png"])
        """
        options = self.medium.read_options(_make(self.medium.options, settings))
        return dict(self.medium.show(samples, self.trained.view(), options).files)

    def score(self, *metrics: str, **options: object) -> dict[str, float]:
        """Returns {metric: value}, as `python -m gen.evaluate` computes them, and writes them to evaluation.json.

        metrics: names of metrics; none: all that apply. options: other options of gen.evaluate, such as n=1000 or
        split="validation".

        Raises: UserError if a metric does not exist, or can't be computed.
        """
        from gen.evaluate import scores
        from gen.evaluation.score import Options

        workdir = self.trained.workdir
        fields = {"runs": (workdir,), "metrics": metrics or None, "trust": self.trust, **options}
        return scores(_make(Options, fields))[str(workdir)]

    def metrics(self, split: str = "train") -> dict[str, list[float]]:
        """Returns the curves of metrics.jsonl as columns of equal length: {"step": [...], metric: [...]}.

        split: "train" or "validation". A metric is nan at a step at which it was not logged.

        Raises: UserError if the file is missing, or has changed since the newest checkpoint was saved.
        """
        from gen.runs.curve import read_curve

        rows = read_curve(self.trained.workdir, split)
        # Keys of a dict keep the order of the file. A set would not.
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name, float("nan")) for row in rows] for name in names}

    def _split(self, settings: Mapping[str, object]) -> tuple[Dataclass, Dataclass]:
        """Divides settings by name. Returns (request for the model's `generate`, options of the medium)."""
        from dataclasses import fields

        request: Dataclass = self.trained.model.request
        options: Dataclass = self.medium.options
        # A setting that both have belongs to the request, as on the command line.
        of_request = {f.name for f in fields(request)}
        of_medium = {f.name for f in fields(options)}
        _check_names(settings, sorted(of_request | of_medium))
        return (
            _make(request, {name: value for name, value in settings.items() if name in of_request}),
            _make(options, {name: value for name, value in settings.items() if name in of_medium - of_request}),
        )


def _make(kind: type[Dataclass], settings: Mapping[str, object]) -> Dataclass:
    """Returns `kind(**settings)`, after lists were converted to tuples, and strings to paths if the field is a path.

    Raises: UserError if `kind` has no field of a name. The message gives the nearest name.
    """
    from dataclasses import fields
    from pathlib import Path
    from re import search

    from gen.files import expand_paths

    _check_names(settings, [f.name for f in fields(kind)])
    # The type of a field is a text if its module has `from __future__ import annotations`.
    paths = {f.name for f in fields(kind) if search(r"\bPath\b", str(f.type))}

    def convert(name: str, value: object) -> object:
        # People write lists, but the fields of configs are tuples, which can be hashed.
        if isinstance(value, list):
            return tuple(value)
        return Path(value) if name in paths and isinstance(value, str) else value

    return expand_paths(kind(**{name: convert(name, value) for name, value in settings.items()}))


def _check_names(settings: Mapping[str, object], known: Sequence[str]) -> None:
    from difflib import get_close_matches

    from gen.errors import UserError

    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
            raise UserError(f"there is no setting {name!r}; {hint}")
