"""What a language model's adaptation is worth: python -m benchmarks.adapt RUN [--sizes 10 100 1000] [--seeds 3] [--out adapt.json]

Of which package of the standard library is a function, told from the first sentence of its docstring? RUN, a language model
that knows nothing of the task, is trained on few labelled examples: all of it, low-rank changes of its matrices, a prompt of vectors;
and beside it the same network from scratch. All have the same budget of updates, and the label is the one that is likeliest after
the sentence. Beside them stand the largest class, and RUN itself with no example and with one before each sentence.

A base that is worth adapting, which has not read what is held out: `python -m benchmarks.library library.jsonl`, then
`python train.py lm_text --data.name jsonl:library.jsonl`. Finished runs are kept in the file; a command that was stopped goes on.
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

from benchmarks.study import Numbers, finished, table, trained
from gen.config import Config
from gen.data.text import Text
from gen.data.text.docstrings import functions
from gen.errors import UserError, run_command
from gen.families.language import LM
from gen.metrics import labels
from gen.optim import Optimizer, WarmupCosine
from gen.runs import checkpoint, directory
from gen.runs import trained as runs_trained

Method = Literal["scratch", "full", "lora", "prompt"]
METHODS: dict[Method, float] = {"scratch": 2e-3, "full": 1e-3, "lora": 2e-3, "prompt": 1e-1}
"""{method: learning rate}"""
BATCH = 16
PACKAGES = 8
HELD_OUT = 400
LONGEST = 100  # characters of a sentence, of which two stand in a window


def examples(folder: Path) -> list[dict[str, str]]:
    """{"text": the first sentence of a docstring, "label": its package}, each sentence once, of the PACKAGES that have most; in an
    order of seed 0."""
    found: dict[str, str] = {}
    for path, _, sentence in functions(folder):
        if 20 <= len(sentence) <= LONGEST:
            found.setdefault(sentence, path.parts[0].removesuffix(".py"))
    most = {package for package, _ in Counter(found.values()).most_common(PACKAGES)}
    kept = [{"text": sentence, "label": package} for sentence, package in found.items() if package in most]
    return [kept[i] for i in np.random.default_rng(0).permutation(len(kept))]


def few(folder: Path, known: Sequence[dict[str, str]], n: int, seed: int) -> tuple[str, str]:
    """(--data.name, --data.split) of n training examples of a seed, and of the first HELD_OUT that none trains on."""
    held_out, others = known[:HELD_OUT], known[HELD_OUT:]
    if n > len(others):
        raise UserError(f"{n} examples asked for; the standard library has {len(others)} beside those held out")
    drawn = [others[i] for i in np.random.default_rng(seed).permutation(len(others))[:n]]
    path = folder / f"{n}-{seed}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*drawn, *held_out]))
    return f"jsonl:{path}", f"tail:{(HELD_OUT - 0.5) / (n + HELD_OUT)}"


def adapted(base: Path, method: Method, name: str, split: str, steps: int, seed: int) -> Config:
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
    """{n: accuracy on the held-out examples} after training on n."""
    found = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            config = adapted(base, method, *few(Path(folder), known, n, seed), steps, seed)
            with trained(config) as workdir:
                _, model = runs_trained.load_model(workdir, ())
                data = runs_trained.build_dataset(workdir, None, ())
                state = runs_trained.restore_state(workdir, model, steps, str(base))
                found[str(n)] = labels.scored(data, model, state).accuracy
    return found


def references(base: Path, known: Sequence[dict[str, str]], n: int) -> dict[str, Numbers]:
    """Of the largest class, and of the base as it is."""
    config, model = runs_trained.load_model(base, ())
    state = runs_trained.restore_state(base, model, runs_trained.choose_step(base, config, None))
    with tempfile.TemporaryDirectory() as folder:
        data = adapted(base, "scratch", *few(Path(folder), known, n, 0), 1, 0).data.build()
        scores = [labels.scored(data, model, state, shots=shots) for shots in (0, 1)]
    named = {"the largest class": scores[0].majority, "RUN, no example": scores[0].accuracy}
    return {name: {str(n): value} for name, value in (named | {"RUN, one example": scores[1].accuracy}).items()}


def main(
    base: tyro.conf.Positional[Path],
    sizes: tuple[int, ...] = (10, 100, 1000),
    seeds: int = 3,
    steps: int = 300,
    out: Path = Path("adapt.json"),
) -> None:
    """Train what isn't in the file yet, and print the table."""
    config, _ = directory.read_config(base)
    if not (isinstance(config.data, Text) and isinstance(config.model, LM)):
        raise UserError(f"{base} is no causal language model")
    step = runs_trained.choose_step(base, config, None)
    known = examples(Path(sysconfig.get_path("stdlib")))
    digest = checkpoint.digest(base / "checkpoints", step)
    protocol = {"benchmark": "adapt", "base": digest, "sizes": list(sizes), "steps": steps, "examples": len(known)}
    measured: Any = lambda method, seed: measure(base, known, method, sizes, steps, seed)
    results = finished(out, protocol, list(METHODS), seeds, measured)
    columns = {str(n): (f"{n} examples", "{:.3f}") for n in sizes}
    print(table(columns, references(base, known, max(sizes)), results))
    print(
        f"\nAccuracy on {HELD_OUT} held-out sentences of {PACKAGES} packages; {steps} updates of {BATCH}; {seeds} seeds, 95% intervals."
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
