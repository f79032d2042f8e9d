"""Draws TSTR and coverage against the weight of guidance: python -m benchmarks.guidance RUN [--out guidance.png]

RUN is a class-conditional flow, or a class-conditional model of codes (GridLM or GridMLM). Guidance makes samples more typical of
their class, which raises TSTR and precision, and less varied, which lowers coverage and recall.

The numbers are computed as by gen.evaluate, on the validation split, so that the test split does not choose the guidance. They are
also written to a .json file next to the picture, so that a stopped command continues where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from benchmarks.growth import panel
from benchmarks.requests import score_request
from benchmarks.study import Numbers, run_missing, table
from gen.errors import UserError, run_command
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.plan import open_subject
from gen.evaluation.score import Options

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)
METRICS = ("tstr", "prdc")
COLUMNS = {name: (name, "{:.3f}") for name in ("tstr", "trtr", "precision", "recall", "coverage")}


def main(
    run: tyro.conf.Positional[Path],
    weights: tuple[float, ...] = WEIGHTS,
    n: int = 5000,
    seed: int = 0,
    split: Literal["test", "validation"] = "validation",
    out: Path = Path("guidance.png"),
    trust: tuple[str, ...] = (),
) -> None:
    """Prints a table with a row for each guidance, and draws TSTR and coverage.

    weights: weights of guidance; 1 is no guidance, and 0 ignores the label. n: images for each weight. seed: seed of the images. split:
    held-out images to compare with. out: the picture. trust: modules outside gen that the run's config names and that may be imported.
    """
    options = Options((run,), METRICS, n=n, seed=seed, split=split, trust=trust)
    subject = open_subject(run, options)
    if not isinstance(subject, ImageSubject) or subject.label_rule is None:
        raise UserError(f"{run} does not generate images of classes, which guidance needs; choose a conditional run")
    named = {f"{weight:g}": weight for weight in weights}

    def measure(name: str, _: int) -> Numbers:
        return score_request(subject, [f"guidance={name}"])

    protocol = {"benchmark": "guidance", "run": subject.run.digest(subject.step), "n": n, "seed": seed, "split": split}
    results = run_missing(out.with_suffix(".json"), protocol, list(named), 1, measure)
    print(table(COLUMNS, {}, results))
    lines = {
        title: [(weight, results[name]["0"][column]) for name, weight in named.items()]
        for title, column in {"TSTR": "tstr", "coverage": "coverage", "TSTR, real": "trtr"}.items()
        if all(column in results[name]["0"] for name in named)
    }
    panel(f"{n:,} images, {split} split", "guidance", lines).save(out)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.guidance"))
