"""Eight devices on the processor; a broadcast between ranks is an error."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gen import config as configs
from gen.config import Config
from gen.data.text import Text

# A quarter of the time to compile, and of the memory maps, of which a process has 65,530 (past them LLVM crashes); tests of
# processes (test_run.py) have the programs as people have them.
CHEAP = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # later ones know no other emitters, and refuse the flag
    CHEAP += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {CHEAP}"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_end_with_their_file():
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 synthetic images of three classes, 28x28, grey: stands in for data that a test machine has not."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        image = np.zeros((28, 28), np.uint8)
        row, column = rng.integers(2, 14, 2)
        image[row : row + 8 + 4 * (i % 3), column : column + 8] = rng.integers(128, 255)
        path = folder / f"class{i % 3}" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pairs of a number and its words, as lines of JSON."""
    path = tmp_path_factory.mktemp("texts") / "pairs.jsonl"
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    spelled = lambda i: " ".join(words[int(digit)] for digit in str(i))
    path.write_text("".join(json.dumps({"source": str(7 * i), "target": spelled(7 * i)}) + "\n" for i in range(60)))
    return path


@pytest.fixture(scope="session")
def tiny(pictures: Path, texts: Path):
    """A config of configs/ by name, as small as it goes, on data that is always there."""

    def load(name: str) -> Config:
        config = configs.load(name, CONFIGS)
        data = replace(config.data, batch_size=8)
        if isinstance(data, Text):
            name = f"jsonl:{texts}" if data.name.startswith("jsonl:") else "pydoc"
            source_length = data.source_length and 6
            data = replace(
                data, name=name, split="hash:0.1", tokenizer="byte", length=16, stride=None, source_length=source_length
            )
        elif getattr(data, "name", "digits") != "digits":
            splits = {"train": "train[:40]", "validation": "train[40:50]", "test": "train[50:]"}
            data = replace(data, name=f"folder:{pictures}", **splits)
        return replace(config, model=config.model.tiny(), data=data, steps=100)

    return load
