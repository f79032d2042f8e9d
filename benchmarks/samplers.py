"""Draws the quality of samples against the evaluations of the network: python -m benchmarks.samplers RUN [--out samplers.png]

Each sampler is a curve. RUN is a flow of images or of their latents. The quality is the Fréchet distance, or TSTR (--metrics tstr),
computed as by gen.evaluate on the validation split. The numbers are also written to a .json file next to the picture, so that a
stopped command continues where it stopped.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Literal

import tyro
from PIL import Image

from benchmarks.growth import panel
from benchmarks.requests import score_request
from benchmarks.study import Columns, Numbers, Results, run_missing, table
from gen.errors import UserError, check_positive, run_command
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.plan import open_subject
from gen.evaluation.score import Options

EVALUATIONS = (1, 2, 4, 8, 16, 32)
COSTS = {"euler": 1, "heun": 2, "multistep": 1}
"""{sampler: evaluations of the network per step}."""
SHOWN = {"frechet": ("Fréchet", "{:.3f}", "frechet_real"), "tstr": ("TSTR", "{:.3f}", "trtr")}
"""{metric: (title, format, its number for real images)}."""


def main(
    run: tyro.conf.Positional[Path],
    evaluations: tuple[int, ...] = EVALUATIONS,
    metrics: tuple[Literal["frechet", "tstr"], ...] = ("frechet",),
    n: int = 5000,
    guidance: float = 1.0,
    seed: int = 0,
    split: Literal["test", "validation"] = "validation",
    out: Path = Path("samplers.png"),
    trust: tuple[str, ...] = (),
) -> None:
    """Prints a table for each metric, with a row for each sampler, and draws them.

    evaluations: numbers of evaluations of the network per image. A step of heun has two evaluations, and guidance doubles the
    evaluations of a step; numbers that are no multiple of these are left out. metrics: frechet, tstr. n: images for each number.
    guidance: weight of guidance, for a conditional run. seed: seed of the images. split: held-out images to compare with. out: the
    picture of the first metric. trust: modules outside gen that the run's config names and that may be imported.
    """
    check_positive(**{"the smallest of evaluations": min(evaluations, default=0)})
    subject = open_subject(run, Options((run,), metrics, n=n, seed=seed, split=split, trust=trust))
    known = {f.name for f in fields(subject.run.model.request)}
    if not isinstance(subject, ImageSubject) or not {"steps", "sampler"} <= known:
        raise UserError(f"{run} has no samplers to compare; choose a flow of images, or of their latents")
    each = {sampler: cost * (1 if guidance == 1 else 2) for sampler, cost in COSTS.items()}
    steps = {f"{name} {e}": e // cost for name, cost in each.items() for e in evaluations if e % cost == 0}

    def measure(method: str, _: int) -> Numbers:
        sampler = method.split()[0]
        changes = [f"sampler={sampler}", f"steps={steps[method]}"]
        return score_request(subject, changes + ([] if guidance == 1 else [f"guidance={guidance:g}"]))

    facts = {"n": n, "guidance": guidance, "seed": seed, "split": split, "metrics": list(metrics)}
    protocol = {"benchmark": "samplers", "run": subject.run.digest(subject.step), **facts}
    results = run_missing(out.with_suffix(".json"), protocol, list(steps), 1, measure)
    for metric in metrics:
        print(f"\n{SHOWN[metric][0]} by evaluations", tabulate(results, metric), sep="\n")
    draw(results, metrics[0], f"{n:,} images, {split} split").save(out)


def curves(results: Results, metric: str) -> dict[str, dict[int, float]]:
    """Returns {sampler: {evaluations: number}}."""
    found: dict[str, dict[int, float]] = {}
    for method, runs in results.items():
        sampler, evaluations = method.split()
        found.setdefault(sampler, {})[int(evaluations)] = runs["0"][metric]
    return found


def tabulate(results: Results, metric: str) -> str:
    """Returns the table of a metric in Markdown: a row for each sampler, and one for real images."""
    _, form, real = SHOWN[metric]
    lines = curves(results, metric)
    columns: Columns = {str(e): (str(e), form) for e in sorted({e for line in lines.values() for e in line})}
    rows: Results = {name: {"0": {str(e): y for e, y in line.items()}} for name, line in lines.items()}
    # The number of real images does not depend on the request.
    reference = next(iter(results.values()))["0"].get(real)
    return table(columns, {} if reference is None else {"real": dict.fromkeys(columns, reference)}, rows)


def draw(results: Results, metric: str, title: str) -> Image.Image:
    """Returns the diagram of a metric: a line for each sampler, and one for real images. Both axes are logarithmic."""
    _, _, real = SHOWN[metric]
    lines = {name: sorted(line.items()) for name, line in curves(results, metric).items()}
    reference = next(iter(results.values()))["0"].get(real)
    if reference is not None:
        lines["real"] = [(e, reference) for e in sorted({e for line in lines.values() for e, _ in line})]
    return panel(f"{SHOWN[metric][0]}, {title}", "evaluations", lines, logarithmic=True)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.samplers"))
