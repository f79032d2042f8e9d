"""Compares the speed of `gen` with PyTorch on this machine: python -m benchmarks [JOB ...] [--json FILE]

Each job first checks that both sides, gen and PyTorch, compute the same: three training steps in float64 from the same weights
and batches must give the same losses and weights, and decoding must give the same text with the same probability. Then the sides
take turns, each in its process, with all cores or the GPU. Turns during which other programs used the machine are repeated. If
the machine stays busy, the job has no result. PyTorch runs with the setting that is fastest on this machine: eager or compiled,
with or without channels_last, fused Adam and a static cache. It needs an extra: pip install -e '.[benchmark]'
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import machine, program
from benchmarks.machine import Busy, Watch
from benchmarks.turns import Ask, process, take_turns
from gen.errors import UserError, run_command
from gen.files import write_json

CONVOLUTIONS = ("eager", "fused", "channels_last+fused", "compile+fused", "compile+channels_last+fused")
DENSE = ("eager", "fused", "compile+fused")
FORWARD = ("eager", "channels_last", "compile+channels_last")
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
    "tokenizer": ("FSQ tokenizer of 28x28 images, a step of 64 images", CONVOLUTIONS),
    "grid": ("transformer over 7x7 codes, 4 layers, 192 wide, a step of 64 grids by Muon", DENSE),
    "grid_decode": ("64 grids of 49 codes, the same 4 layers", ("eager",)),
    "codec": ("convolutional codec of sound, a step of 16 seconds at 8 kHz", DENSE),
    "mel_flow": ("flow of log-mels, a transformer of 4 layers, 192 wide, a step of 64 seconds of sound", DENSE),
    "unet": ("flow matching, the U-Net of flow_fashion, a step of 64 images", CONVOLUTIONS),
    "dit": ("flow matching, a transformer of 6 layers, 192 wide, a step of 64 images of 49 patches", DENSE),
    "flow_sample": ("64 images by 20 evaluations of the U-Net", FORWARD),
    "fid_statistics": ("Inception's moments of 32 images", FORWARD),
}
"""{job: (description of a step, settings to try for PyTorch)}"""
Job = Literal[
    "dcgan_64", "dcgan_128", "vae_mlp", "vae_conv", "gpt_small", "gpt_medium", "decode_1", "decode_16", "tokenizer", "grid", "grid_decode", "codec", "mel_flow",
    "unet", "dit", "flow_sample", "fid_statistics", "end_to_end", "start_up",
]  # fmt: skip
COLUMNS = (
    "job", "ours, ms", "PyTorch, ms", "ratio", "of the peak", "first step, s", "peak memory, MiB", "PyTorch's setting",
)  # fmt: skip


def main(
    jobs: Annotated[tuple[Job, ...], tyro.conf.Positional] = (),
    dtype: Literal["float32", "bfloat16"] = "float32",
    turns: int = 15,
    seconds: float = 0.5,
    tried: float = 2.0,
    json: Path | None = None,
) -> None:
    """Prints the processor and its speed, and one line for each job.

    jobs: the jobs to run; default: all. dtype: of activations and matrix products; a GPU computes float32 products in TF32.
    turns: number of turns of each side. seconds: length of a turn. tried: seconds to try each setting of PyTorch.
    json: file to write {job: {"ratio": ..., ...}} to, and {"machine": ...} with facts about the processor.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed; the fix: pip install -e '.[benchmark]'")
    begun = machine.begin()
    peaks = measure_peaks(dtype, Watch())
    print(f"{begun}\n{peaks_line(dtype, peaks)}\n")
    print("| " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * (len(COLUMNS) - 2) + "---|", flush=True)
    found: dict[str, Any] = {
        "machine": {"processor": machine.read_processor()._asdict(), "dtype": dtype, "peaks": peaks}
    }
    asked = jobs or (*JOBS, *program.JOBS)
    for job in asked:
        watch = Watch()
        try:
            watch.wait_until_quiet()
            if job in program.JOBS:
                result = program.JOBS[job](turns, watch)
            else:
                result = compare(job, dtype, turns, seconds, tried, max(peak["rate"] for peak in peaks.values()), watch)
            found[job] = result | {"load": watch.facts()}
        except Busy as error:
            found[job] = {"refused": str(error.load)}
        print(line(job, found[job]), flush=True)
        if json is not None:
            write_json(json, found)
    check_refused(sum("refused" in found[job] for job in asked), len(asked))


def check_refused(refused: int, asked: int) -> None:
    """Raises: UserError if the machine was busy during some of the jobs."""
    if refused:
        raise UserError(
            f"{refused} of {asked} jobs have no times, because the machine was busy; the fix: run them when nothing else runs"
        )


def measure_peaks(dtype: str, watch: Watch) -> dict[str, dict[str, Any]]:
    """Returns facts about both sides: the device, the version, and "rate", the operations per second of a matrix product.

    Raises: Busy if the machine stays busy.
    """
    watch.wait_until_quiet()
    with ExitStack() as held:
        sides = {
            "ours": held.enter_context(process("benchmarks.ours", "peak", dtype, env=OURS)),
            "peer": held.enter_context(process("benchmarks.peers", "peak", dtype, "eager")),
        }
        return {name: watch.measure(partial(ask, "facts")) for name, ask in sides.items()}


def peaks_line(dtype: str, peaks: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the lines that name the devices, if they are GPUs, and the speed of matrix products of both sides."""
    rates = {side: f"{peak['rate'] / 1e9:,.0f} GFLOP/s" for side, peak in peaks.items()}
    device = (
        ""
        if peaks["ours"]["platform"] == "cpu"
        else f"{peaks['ours']['platform'].upper()}: {peaks['ours']['device']}.\n"
    )
    ours, peer = (f"{peaks[side]['version']}: {rate}" for side, rate in rates.items())
    return f"{device}Matrix products in {dtype}: {ours}; {peer}."


def compare(
    job: str, dtype: str, turns: int, seconds: float, tried: float, rate: float, watch: Watch
) -> dict[str, Any]:
    """Returns the seconds per step of both sides, the ratio of their medians, and facts about both processes.

    rate: operations per second of a matrix product on the faster side.

    Raises: Busy if the machine stays busy.
    """
    check(job)
    _, settings = JOBS[job]
    setting = fastest(job, dtype, settings, tried, watch)
    with ExitStack() as held:
        ours = held.enter_context(process("benchmarks.ours", job, dtype, env=OURS))
        peer = held.enter_context(process("benchmarks.peers", job, dtype, setting))
        sides = {"ours": ours, "peer": peer}
        first = {name: time_first(ask, watch) for name, ask in sides.items()}
        measured = take_turns(sides, turns, seconds, watch)
        facts = {name: ask("facts") for name, ask in sides.items()}
    operations = facts["peer"].pop("operations")
    result: dict[str, Any] = {}
    for name, times in measured.items():
        median = statistics.median(times)
        share = operations / median / rate if operations else None
        numbers = {"median": median, "minimum": min(times), "first": first[name], "share_of_peak": share}
        result[name] = numbers | {"times": times} | facts[name]
    result["peer"]["setting"] = setting
    ratio = result["ours"]["median"] / result["peer"]["median"]
    return {"ratio": ratio, **result, "dtype": dtype, "operations": operations}


def time_first(ask: Ask, watch: Watch) -> float | None:
    """Returns the seconds until a side has made its first step. None: the machine was busy; a side has only one first step."""
    seconds, load = watch.observe(lambda: ask("first"))
    return None if load is not None and load.is_busy else seconds


OURS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # PyTorch's process uses the same GPU


def check(job: str) -> None:
    """Raises: RuntimeError if the two sides do not compute the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "check.npz")
        with process("benchmarks.ours", job, "float64", env={**OURS, "JAX_ENABLE_X64": "1"}) as ask:
            ask("check", path)
        with process("benchmarks.peers", job, "float64", JOBS[job][1][0]) as ask:
            ask("check", path)


def fastest(job: str, dtype: str, settings: Sequence[str], seconds: float, watch: Watch) -> str:
    """Returns the setting with which PyTorch is fastest. Skips settings that do not work on this machine.

    Raises: Busy if the machine stays busy.
    """
    times = {}
    for setting in settings:
        with process("benchmarks.peers", job, dtype, setting) as ask:
            try:
                times[setting] = min(take_turns({"": ask}, 3, seconds / 3, watch)[""])
            except RuntimeError:  # for example, without a C++ compiler
                continue
    return min(times, key=lambda setting: times[setting])


def line(job: str, result: dict[str, Any]) -> str:
    """Returns the row of a job."""
    if "refused" in result:
        return f"| {job} | refused: {result['refused']} |" + " |" * (len(COLUMNS) - 2)
    if "peer" not in result:
        return f"| {job}: {result['what']} | {result['ours']} | {result['against']} | {result['ratio']:.3f} | | | | |"
    both = lambda form, key, scale=1.0: " / ".join(
        form.format(scale * result[side][key]) if result[side][key] is not None else "" for side in ("ours", "peer")
    )
    times = [f"{1e3 * result[s]['median']:.1f} (minimum {1e3 * result[s]['minimum']:.1f})" for s in ("ours", "peer")]
    cells = [f"{job}: {JOBS[job][0]}", *times, f"**{result['ratio']:.3f}**", both("{:.0%}", "share_of_peak")]
    cells += [both("{:.1f}", "first"), both("{:.0f}", "memory", 2**-20), result["peer"]["setting"]]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
