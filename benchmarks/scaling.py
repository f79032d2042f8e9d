"""Plans memory and communication for growing numbers of devices: python -m benchmarks.scaling lm_1b --out docs/scaling.png

Each number of devices is planned (gen.plan) in a separate process, because JAX must know the number of simulated devices before
it starts. The global batch is always the config's, so with more devices each holds fewer examples.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from PIL import Image, ImageDraw, ImageFont

from gen import config as configs
from gen.errors import UserError, run_command
from gen.plan import devices as plan_devices
from gen.plan import plan, report

CONFIGS = Path(__file__).parent.parent / "configs"
LINES = {  # {name: (color, bytes of a plan)}
    "parameters, gradients, optimizer, averages": ((31, 119, 180), lambda p: sum(p["held"].values()) + gradients(p)),
    "activations for the backward pass": ((44, 160, 44), lambda p: p["stepped"]["activations"]),
    "peak memory": ((20, 20, 20), lambda p: p["peak"]),
    "sent in a step": ((214, 39, 40), lambda p: sum(bytes_ for _, bytes_, _ in p["sent"].values())),
}
gradients = lambda p: p["stepped"]["gradients"]
SIZE, LEFT, RIGHT, TOP, BOTTOM = (1000, 620), 110, 30, 60, 130  # pixels


def main(
    config: tyro.conf.Positional[str],
    devices: tuple[int, ...] = tuple(2**i for i in range(11)),
    out: Path | None = None,
    platform: plan_devices.Platform = "cpu",
    one: bool = False,
) -> None:
    """Prints a line for each number of devices, and draws them to a picture. one: print the first plan as JSON instead."""
    if one:
        made, _ = plan.plan(configs.load(config, CONFIGS), devices[0], platform=platform)
        print(json.dumps(asdict(made)))
        return
    plans = []
    print(f"{'devices':>8s}" + "".join(f"{name.split(',')[0]:>36s}" for name in LINES), flush=True)
    for n in devices:
        plans.append(plan_for(config, n, platform))
        print(f"{n:>8d}" + "".join(f"{report.binary(of(plans[-1])):>36s}" for _, of in LINES.values()), flush=True)
    if out is not None:
        picture(plans, f"{config}: bytes of one device, for a global batch of {plans[0]['examples']:,}").save(out)


def plan_for(config: str, n: int, platform: str) -> dict[str, Any]:
    """Returns the plan for n devices, made by another process. Raises: UserError with its message if it fails."""
    asked = ["--devices", str(n), "--platform", platform, "--one"]
    done = subprocess.run([sys.executable, "-m", __spec__.name, config, *asked], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{n} devices: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def picture(plans: Sequence[dict[str, Any]], title: str) -> Image.Image:
    """Returns a diagram of bytes against devices, both on logarithmic scales."""
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    values = [of(p) for _, of in LINES.values() for p in plans if of(p)]
    low, high = math.floor(math.log2(min(values)) / 2) * 2, math.ceil(math.log2(max(values)) / 2) * 2
    left, right = math.log2(plans[0]["devices"]), math.log2(plans[-1]["devices"])
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    x = lambda n: LEFT + width * (math.log2(n) - left) / max(1.0, right - left)
    y = lambda value: TOP + height * (high - math.log2(value)) / max(1, high - low)
    draw.text((LEFT, 20), title, "black", ImageFont.load_default(20))
    for power in range(low, high + 1, 2):
        draw.line([(LEFT, y(2**power)), (SIZE[0] - RIGHT, y(2**power))], (225, 225, 225))
        draw.text((LEFT - 10, y(2**power)), label(power), "black", font, anchor="rm")
    for p in plans:
        draw.text((x(p["devices"]), SIZE[1] - BOTTOM + 10), str(p["devices"]), "black", font, anchor="ma")
    draw.text((LEFT + width / 2, SIZE[1] - BOTTOM + 34), "devices", "black", font, anchor="ma")
    for i, (name, (color, of)) in enumerate(LINES.items()):
        points = [(x(p["devices"]), y(of(p))) for p in plans if of(p)]
        draw.line(points, color, 3)
        for a, b in points:
            draw.ellipse([a - 4, b - 4, a + 4, b + 4], color)
        at = LEFT + (i % 2) * width / 2, SIZE[1] - 60 + 26 * (i // 2)
        draw.line([at, (at[0] + 24, at[1])], color, 3)
        draw.text((at[0] + 34, at[1]), name, "black", font, anchor="lm")
    return image


def label(power: int) -> str:
    """Returns 2**power bytes as text with a unit."""
    unit = min(power // 10, 4)
    return f"{2 ** (power - 10 * unit)} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
