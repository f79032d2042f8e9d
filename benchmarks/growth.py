"""Measures how costs grow: python -m benchmarks.growth --out docs/growth.png

It draws three curves: the time of a step against the batch size, the time of a token against its position in the text, and the
memory against the number of steps. The first should be a straight line through the origin, and the others should be flat. Times
during which other programs used the machine are measured again, and the command ends if the machine stays busy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from benchmarks import machine, ours
from benchmarks.machine import Watch
from benchmarks.turns import time_call
from gen import core
from gen.config import Parallel
from gen.errors import run_command
from gen.families.language import LM, lm
from gen.runtime import backend

BATCHES = (16, 32, 64, 128, 256)
PLACES = (64, 128, 192, 256)
STEPS, READINGS = 40, 10
SIZE, LEFT, RIGHT, TOP, BOTTOM = (480, 360), 70, 20, 50, 60  # pixels of one diagram
COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (127, 127, 127))

Lines = Mapping[str, Sequence[tuple[float, float]]]


def main(out: Path | None = None, repeats: int = 9) -> None:
    """Prints the three curves as tables, and draws them to a picture.

    out: the picture's file. repeats: measurements of each point; the median counts.
    """
    print(machine.begin(), flush=True)
    backend.start_backend(Parallel(cpu_devices=1))
    panels = {
        ("ms a step", "examples a step"): {job: by_batch(job, repeats) for job in ("vae_conv", "dcgan_64")},
        ("ms a token", "position in the text"): {f"{n} samples": by_place(n, repeats) for n in (1, 16)},
        ("MiB of the process", "steps done"): {"vae_conv": by_step()},
    }
    for (unit, of), lines in panels.items():
        for name, points in lines.items():
            print(f"{name}, {unit} by {of}: " + ", ".join(f"{x:g}: {y:.2f}" for x, y in points), flush=True)
    if out is not None:
        image = Image.new("RGB", (SIZE[0] * len(panels), SIZE[1]), "white")
        for i, ((unit, of), lines) in enumerate(panels.items()):
            image.paste(panel(unit, of, lines), (i * SIZE[0], 0))
        image.save(out)


def by_batch(job: str, repeats: int) -> list[tuple[float, float]]:
    """Returns (batch size, milliseconds per step)."""
    config = ours.TRAINED[job]()
    of = lambda batch: ours.training(replace(config, data=replace(config.data, batch_size=batch)), "float32")
    sides = [of(batch) for batch in BATCHES]
    seconds = medians([side.run for side in sides], 5, repeats)
    return [(batch, 1e3 * s) for batch, s in zip(BATCHES, seconds, strict=True)]


def by_place(samples: int, repeats: int) -> list[tuple[float, float]]:
    """Returns (position, milliseconds per token) for each 64 tokens of a text of 256 tokens, written by the medium GPT."""
    arch = replace(ours.MEDIUM, context=2 * ours.DECODED)
    built = LM(network=arch).build({"tokens": core.Feature((257,), "int32", vocab=65)}, 1)
    state = jax.jit(built.init)(jax.random.key(0))
    prompt = np.ones((samples, 1), np.int32)
    key = jax.random.key(0)

    def generating(tokens: int) -> Callable[[int], None]:
        request = lm.Request(n=1, tokens=tokens, temperature=0.0)
        generate = jax.jit(lambda state: built.generate(state, key, {"prompt": prompt}, request))
        return lambda n: jax.block_until_ready([generate(state) for _ in range(n)]) and None

    seconds = medians([generating(tokens) for tokens in PLACES], 1, repeats)
    added = np.diff([0.0, *seconds]) / np.diff([0, *PLACES])
    return [(place, 1e3 * float(s)) for place, s in zip(PLACES, added, strict=True)]


def medians(runs: Sequence[Callable[[int], None]], n: int, repeats: int) -> list[float]:
    """Returns the median seconds per step of each run, from calls of n steps.

    The runs take turns, because the speed of a shared machine changes from minute to minute.

    Raises: Busy if the machine stays busy.
    """
    for run in runs:
        run(1)

    def time_each() -> list[float]:
        return [time_call(run, n) for run in runs]

    watch = Watch()
    times = [watch.measure(time_each) for _ in range(repeats)]
    return [statistics.median(each) for each in zip(*times, strict=True)]


def by_step() -> list[tuple[float, float]]:
    """Returns (steps, MiB of memory of this process) while it trains."""
    side = ours.training(ours.TRAINED["vae_conv"](), "float32")
    points = []
    for i in range(READINGS):
        side.run(STEPS)
        status = Path("/proc/self/status").read_text()
        points.append(((i + 1) * STEPS, int(status.split("VmRSS:")[1].split()[0]) / 1024))
    return points


def panel(unit: str, of: str, lines: Lines, logarithmic: bool = False) -> Image.Image:
    """Returns a diagram of the lines, with both axes from 0, or with both axes logarithmic."""
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    points = [point for line in lines.values() for point in line]
    right, high = (1.1 * max(values) for values in zip(*points, strict=True))
    left, low = (min(values) / 1.1 if logarithmic else 0.0 for values in zip(*points, strict=True))
    scale = math.log if logarithmic else float
    place = lambda v, low, high: (scale(v) - scale(low)) / (scale(high) - scale(low))
    x = lambda v: LEFT + (SIZE[0] - LEFT - RIGHT) * place(v, left, right)
    y = lambda v: SIZE[1] - BOTTOM - (SIZE[1] - TOP - BOTTOM) * place(v, low, high)
    for i in range(6):
        value = low * (high / low) ** (i / 5) if logarithmic else high * i / 5
        draw.line([(LEFT, y(value)), (SIZE[0] - RIGHT, y(value))], (225, 225, 225))
        draw.text((LEFT - 8, y(value)), f"{value:.3g}", "black", font, anchor="rm")
    for value, _ in next(iter(lines.values())):
        draw.text((x(value), SIZE[1] - BOTTOM + 6), f"{value:g}", "black", font, anchor="ma")
    draw.text((LEFT, 12), unit, "black", ImageFont.load_default(16))
    draw.text((SIZE[0] / 2, SIZE[1] - 30), of, "black", font, anchor="ma")
    for i, ((name, line), color) in enumerate(zip(lines.items(), COLORS, strict=False)):
        draw.line([(x(a), y(b)) for a, b in line], color, 3)
        for a, b in line:
            draw.ellipse([x(a) - 4, y(b) - 4, x(a) + 4, y(b) + 4], color)
        draw.text((SIZE[0] - RIGHT - 120, 12 + 18 * i), name, color, font)
    return image


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
