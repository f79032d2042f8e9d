"""Ours beside PyTorch, on this machine: python -m benchmarks [JOB ...] [--json FILE]

Each job first shows that both sides compute the same: from the same weights and batches, three training steps in float64 end
at the same losses and weights (decoding: the same text, equally likely). Then two processes take turns, each on all cores (or
the GPU), and each with what is fastest for it: the other side tries eager and compiled, with and without channels_last, fused
Adam and a static cache. The peer needs the extra: pip install -e '.[benchmark]'
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import program
from benchmarks.turns import in_turn, process
from gen.errors import UserError, run_command
from gen.files import write_json

CONVOLUTIONS = ("eager", "fused", "channels_last+fused", "compile+fused", "compile+channels_last+fused")
DENSE = ("eager", "fused", "compile+fused")
CACHES = ("eager", "static", "compile+static")
JOBS: Mapping[str, tuple[str, Sequence[str]]] = {
    "dcgan_64": ("DCGAN 28x28, a step of 64 images", CONVOLUTIONS),
    "dcgan_128": ("DCGAN 28x28, a step of 128 images", CONVOLUTIONS),
    "vae_mlp": ("VAE 784-400-20, a step of 128 images", DENSE),
    "vae_conv": ("convolutional VAE, a step of 128 images", CONVOLUTIONS),
    "gpt_small": ("GPT, 4 layers, 128 wide, a step of 12 x 64 tokens", DENSE),
    "gpt_medium": ("GPT, 6 layers, 384 wide, a step of 4 x 256 tokens", DENSE),
    "decode_1": ("256 tokens of 1 sample, the same 6 layers", CACHES),
    "decode_16": ("256 tokens of 16 samples", CACHES),
    "fid_statistics": ("Inception's moments of 32 images", ("eager", "channels_last", "compile+channels_last")),
}
"""{job: (what a step is, settings of the peer that are tried)}"""
Job = Literal[
    "dcgan_64", "dcgan_128", "vae_mlp", "vae_conv", "gpt_small", "gpt_medium", "decode_1", "decode_16", "fid_statistics",
    "end_to_end", "start_up",
]  # fmt: skip
COLUMNS = (
    "job", "ours, ms", "PyTorch, ms", "ratio", "of the peak", "first step, s", "peak memory, MiB", "the peer's setting",
)  # fmt: skip


def main(
    jobs: Annotated[tuple[Job, ...], tyro.conf.Positional] = (),
    dtype: Literal["float32", "bfloat16"] = "float32",
    turns: int = 15,
    seconds: float = 0.5,
    tried: float = 2.0,
    json: Path | None = None,
) -> None:
    """A line for each job (by default, all of them).

    jobs: what to run. dtype: of activations and matrix products; float32 is as fast as the device has it (on a GPU, with TF32).
    turns: of each side. seconds: of a turn. tried: seconds for which each setting of the peer is tried. json: where {job: {"ratio": ..., ...}} is written.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("the other side is PyTorch, which is not installed; the fix: pip install -e '.[benchmark]'")
    found: dict[str, Any] = {}
    print("| " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * (len(COLUMNS) - 2) + "---|", flush=True)
    for job in jobs or (*JOBS, *program.JOBS):
        if job in program.JOBS:
            found[job] = program.JOBS[job](turns)
        else:
            found[job] = compared(job, dtype, turns, seconds, tried)
        print(line(job, found[job]), flush=True)
        if json is not None:
            write_json(json, found)


def compared(job: str, dtype: str, turns: int, seconds: float, tried: float) -> dict[str, Any]:
    """What both sides take for a step, and its ratio of medians."""
    check(job)
    _, settings = JOBS[job]
    setting = fastest(job, dtype, settings, tried)
    with ExitStack() as held:
        ours = held.enter_context(process("benchmarks.ours", job, dtype, env=OURS))
        peer = held.enter_context(process("benchmarks.peers", job, dtype, setting))
        sides = {"ours": ours, "peer": peer}
        first = {name: ask("first") for name, ask in sides.items()}
        measured = in_turn(sides, turns, seconds)
        facts = {name: ask("facts") for name, ask in sides.items()}
    rate = max(side["rate"].get(dtype, 0.0) for side in facts.values())
    operations = facts["peer"]["operations"]
    result: dict[str, Any] = {}
    for name, times in measured.items():
        median = statistics.median(times)
        share = operations / median / rate if operations else None
        numbers = {"median": median, "minimum": min(times), "first": first[name], "share_of_peak": share}
        result[name] = numbers | {"times": times} | {k: v for k, v in facts[name].items() if k != "operations"}
    result["peer"]["setting"] = setting
    ratio = result["ours"]["median"] / result["peer"]["median"]
    return {"ratio": ratio, **result, "dtype": dtype, "operations": operations}


OURS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the GPU is shared


def check(job: str) -> None:
    """Raises: RuntimeError if the sides don't compute the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "check.npz")
        with process("benchmarks.ours", job, "float64", env={**OURS, "JAX_ENABLE_X64": "1"}) as ask:
            ask("check", path)
        with process("benchmarks.peers", job, "float64", JOBS[job][1][0]) as ask:
            ask("check", path)


def fastest(job: str, dtype: str, settings: Sequence[str], seconds: float) -> str:
    """The setting in which the peer is fastest, of those that work here."""
    times = {}
    for setting in settings:
        with process("benchmarks.peers", job, dtype, setting) as ask:
            try:
                times[setting] = min(in_turn({"": ask}, 3, seconds / 3)[""])
            except RuntimeError:  # a compiler may be missing, say
                continue
    return min(times, key=lambda setting: times[setting])


def line(job: str, result: dict[str, Any]) -> str:
    if "peer" not in result:
        return f"| {job}: {result['what']} | {result['ours']} | {result['against']} | {result['ratio']:.3f} | | | | |"
    both = lambda form, key, scale=1.0: " / ".join(
        form.format(scale * result[side][key]) if result[side][key] is not None else "" for side in ("ours", "peer")
    )
    times = [f"{1e3 * result[s]['median']:.1f} (least {1e3 * result[s]['minimum']:.1f})" for s in ("ours", "peer")]
    cells = [f"{job}: {JOBS[job][0]}", *times, f"**{result['ratio']:.3f}**", both("{:.0%}", "share_of_peak")]
    cells += [both("{:.1f}", "first"), both("{:.0f}", "memory", 2**-20), result["peer"]["setting"]]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
