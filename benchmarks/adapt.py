"""Compares ways to fine-tune a language model on few labelled examples:
python -m benchmarks.adapt RUN [--sizes 10 100 1000] [--seeds 3] [--out adapt.json]

The task: given the first paragraph of a function's docstring, usually one sentence, name its package in the standard library. RUN
is a language model that was not trained for this task. It is fine-tuned in full, by low-rank adapters (LoRA), and by a soft prompt. The same network
is also trained from scratch. All trainings have the same number of updates. The prediction is the most likely label after the
sentence. For reference, the table also has the accuracy of always predicting the largest class, and of RUN without training, with
zero and with one example in its prompt.

To train a suitable base that has not read the held-out sentences: `python -m benchmarks.library library.jsonl`, then
`python train.py lm_text --data.name jsonl:library.jsonl`. The output file keeps finished runs, so a stopped command continues.
"""

from __future__ import annotations

import json
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.study import Numbers, run_missing, table, train_silently
from gen.config import Config
from gen.data.text import Text
from gen.data.text.docstrings import functions
from gen.errors import UserError, run_command
from gen.families.language import LM
from gen.metrics import labels
from gen.optim import Optimizer, WarmupCosine
from gen.runs import directory
from gen.runs import trained as runs_trained

Method = Literal["scratch", "full", "lora", "prompt"]
METHODS: dict[Method, float] = {"scratch": 2e-3, "full": 1e-3, "lora": 2e-3, "prompt": 1e-1}
"""{method: learning rate}"""
BATCH = 16
PACKAGES = 8
HELD_OUT = 400
LONGEST = 100  # characters of a sentence, so that two fit into a window


def examples(folder: Path) -> list[dict[str, str]]:
    """Returns examples {"text": first sentence of a docstring, "label": its package}, shuffled with seed 0.

    Each sentence occurs once. Only the PACKAGES packages with the most sentences are kept.
    """
    found: dict[str, str] = {}
    for path, _, sentence in functions(folder):
        if 20 <= len(sentence) <= LONGEST:
            found.setdefault(sentence, path.parts[0].removesuffix(".py"))
    most = {package for package, _ in Counter(found.values()).most_common(PACKAGES)}
    kept = [{"text": sentence, "label": package} for sentence, package in found.items() if package in most]
    return [kept[i] for i in np.random.default_rng(0).permutation(len(kept))]


def draw_examples(folder: Path, known: Sequence[dict[str, str]], n: int, seed: int) -> tuple[str, str]:
    """Writes n training examples, drawn with `seed`, and the HELD_OUT held-out examples. Returns (--data.name, --data.split)."""
    held_out, others = known[:HELD_OUT], known[HELD_OUT:]
    if n > len(others):
        raise UserError(
            f"{n} examples asked for; the standard library has {len(others)} for training; use smaller --sizes"
        )
    drawn = [others[i] for i in np.random.default_rng(seed).permutation(len(others))[:n]]
    path = folder / f"{n}-{seed}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*drawn, *held_out]))
    return f"jsonl:{path}", f"tail:{(HELD_OUT - 0.5) / (n + HELD_OUT)}"


def build_config(base: Path, method: Method, name: str, split: str, steps: int, seed: int) -> Config:
    """Returns the config that trains on this data with a method. "scratch" does not use the base's weights."""
    config, _ = directory.read_config(base)
    assert isinstance(config.data, Text)
    assert isinstance(config.model, LM)
    optim = Optimizer(lr=WarmupCosine(METHODS[method], warmup=20), b2=0.99, clip=1.0)
    data = replace(config.data, name=name, split=split, tokenizer=str(base), stride=None, batch_size=BATCH)
    own = Config(replace(config.model, optim=optim), data, steps, seed)
    return own if method == "scratch" else replace(own, init_from=str(base), finetune=method)


def measure(
    base: Path, known: Sequence[dict[str, str]], method: Method, sizes: Sequence[int], steps: int, seed: int
) -> Numbers:
    """Returns {n: accuracy on the held-out examples after training on n examples}."""
    found = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            config = build_config(base, method, *draw_examples(Path(folder), known, n, seed), steps, seed)
            with train_silently(config) as workdir:
                run = runs_trained.open_run(workdir)
                state = run.restore(steps, str(base))
                found[str(n)] = labels.score_labels(run.build_data(), run.model, state).accuracy
    return found


def references(base: Path, known: Sequence[dict[str, str]], n: int) -> dict[str, Numbers]:
    """Returns the accuracies of the largest class, and of the base without training."""
    run = runs_trained.open_run(base)
    state = run.restore(run.choose_step())
    with tempfile.TemporaryDirectory() as folder:
        data = build_config(base, "scratch", *draw_examples(Path(folder), known, n, 0), 1, 0).data.build()
        scores = [labels.score_labels(data, run.model, state, shots=shots) for shots in (0, 1)]
    named = {"the largest class": scores[0].majority, "RUN, no example": scores[0].accuracy}
    return {name: {str(n): value} for name, value in (named | {"RUN, one example": scores[1].accuracy}).items()}


def main(
    base: tyro.conf.Positional[Path],
    sizes: tuple[int, ...] = (10, 100, 1000),
    seeds: int = 3,
    steps: int = 300,
    out: Path = Path("adapt.json"),
) -> None:
    """Trains the runs that are not in the file yet, and prints the table.

    sizes: numbers of training examples. seeds: runs of each method and size. steps: updates of each run. out: file of results.
    """
    run = runs_trained.open_run(base)
    config = run.config
    if not (isinstance(config.data, Text) and isinstance(config.model, LM)):
        raise UserError(f"{base} is not a causal language model; choose a run of the LM family")
    known = examples(Path(sysconfig.get_path("stdlib")))
    digest = run.digest(run.choose_step())
    protocol = {"benchmark": "adapt", "base": digest, "sizes": list(sizes), "steps": steps, "examples": len(known)}
    measured: Any = lambda method, seed: measure(base, known, method, sizes, steps, seed)
    results = run_missing(out, protocol, list(METHODS), seeds, measured)
    columns = {str(n): (f"{n} examples", "{:.3f}") for n in sizes}
    print(table(columns, references(base, known, max(sizes)), results))
    print(
        f"\nAccuracy on {HELD_OUT} held-out sentences of {PACKAGES} packages; {steps} updates with batch {BATCH}; {seeds} seeds, 95% intervals."
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
