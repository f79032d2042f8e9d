"""Gives all tests eight CPU devices, tiny configs, and data that need no download."""

import atexit
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import processes
import pytest
from PIL import Image

from gen.config import Config
from gen.core import Data
from gen.data.audio import Audio, Transcribed
from gen.data.images import Images
from gen.data.images.captions import Captioned
from gen.data.music import Music
from gen.data.text import Text
from gen.media.audio import encode_wav

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {processes.CHEAP}"

# A program is compiled once: for all processes of `pytest -n 2`, and for all processes that the tests start. These inherit the
# folder from the environment. The files of a cache with a maximum size are locked while they are written.
COMPILED = {
    "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR")
    or tempfile.mkdtemp(prefix="gen-compiled-"),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_compilation_cache_max_size": 2**31,
}
for setting, value in COMPILED.items():
    jax.config.update(setting, value)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    atexit.register(shutil.rmtree, COMPILED["jax_compilation_cache_dir"], ignore_errors=True)
os.environ.update({setting.upper(): str(value) for setting, value in COMPILED.items()})

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# A forgotten axis must not broadcast silently. test_contract.py lifts this rule for configs from outside of the project, and
# also the rule that warnings are errors (pyproject.toml): a fork's code need not know them.
jax.config.update("jax_numpy_rank_promotion", "raise")

pytest.register_assert_rewrite("contract")

CONFIGS = Path(__file__).parent.parent / "configs"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="config file to run tests/test_contract.py on, instead of the project's own configs (repeatable)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A fork that tests its own configs wants every promise tested, the slow ones too.
    if config.getoption("--config"):
        config.option.markexpr = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file in one process of `pytest -n 2`, since they share fixtures and programs.

    The contract tests are too many for that: only those of one config stay together.
    """
    from xdist.scheduler import LoadScopeScheduling  # the tests also run without pytest-xdist

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            config = re.search(r"\[(\w+)", test) if file.endswith("test_contract.py") else None
            return f"{file} {config[1]}" if config else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    """Frees the memory maps of compiled programs after each test file."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of 60 synthetic grey images, 28x28, of three classes. It replaces data sets that need a download."""
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
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of 96 pictures, 8x8: squares in a red, green or blue of several shades, with "red 7" and so on as captions."""
    folder = tmp_path_factory.mktemp("captions")
    for i in range(96):
        color = i % 3
        image = np.full((8, 8, 3), 255, np.uint8)
        image[1:7, 1:7] = 0
        image[1:7, 1:7, color] = 255 - i
        Image.fromarray(image).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"{('Red', 'Green', 'Blue')[color]} {i}\n")
    return folder


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of 60 recordings at 8 kHz, 0.1 s: tones of several heights, with "tone 7" and so on as texts."""
    folder = tmp_path_factory.mktemp("spoken")
    for i in range(60):
        tone = 0.5 * np.sin(2 * np.pi * (200 + 20 * i) * np.arange(800) / 8000)
        (folder / f"{i:02d}.wav").write_bytes(encode_wav(tone[:, None], 8000))
        (folder / f"{i:02d}.txt").write_text(f"Tone {i}\n")
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a file of 60 lines of JSON: pairs of a number and its digits as words."""
    path = tmp_path_factory.mktemp("texts") / "pairs.jsonl"
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

    def line(number: int) -> str:
        spelled = " ".join(words[int(digit)] for digit in str(number))
        return json.dumps({"source": str(number), "target": spelled}) + "\n"

    path.write_text("".join(line(7 * i) for i in range(60)))
    return path


@pytest.fixture(scope="session")
def tiny(pictures: Path, captions: Path, spoken: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory):
    """Returns a function (name or file) -> that config with the smallest model, on data that always exist.

    A name is that of a file in configs/. Data of a kind that gen does not have stay as they are, with a batch size of 8.
    """

    # These import the training loop, which most tests do without.
    from contract import load
    from untrained import make_run

    from gen.derived import Encoded, ToText

    folder = tmp_path_factory.mktemp("tokenizers")

    def encode(data: Encoded) -> Encoded:
        """Returns the data with the smallest tokenizer, whose run has the name of its config, on that config's small images."""
        name = Path(data.tokenizer).name
        config = shrink(name)
        if not (folder / name).exists():
            make_run(folder / name, config)
        return replace(data, data=config.data, tokenizer=str(folder / name))

    def shrink(name: str) -> Config:
        config = load(name if name.endswith(".py") else str(CONFIGS / f"{name}.py"))
        return replace(config, model=config.model.tiny(), data=shrink_data(config.data), steps=100)

    def shrink_data(data: Data) -> Data:
        data = replace(data, batch_size=8)
        if isinstance(data, ToText):
            data = replace(data, data=shrink_data(data.data))
        elif isinstance(data, Text):
            source = f"jsonl:{texts}" if data.name.startswith("jsonl:") else "pydoc"
            source_length = data.source_length and 6
            data = replace(
                data,
                name=source,
                split="hash:0.1",
                tokenizer="byte",
                length=16,
                stride=None,
                source_length=source_length,
            )
        elif isinstance(data, Encoded):
            data = encode(data)
        elif isinstance(data, Captioned):
            data = replace(data, name=f"captions:{captions}", size=8, tokenizer="byte", length=8)
        elif isinstance(data, Transcribed):
            data = replace(data, name=f"captions:{spoken}", seconds=0.1, tokenizer="byte", length=8)
        elif isinstance(data, Images) and data.name != "digits":
            splits = {"train": "train[:40]", "validation": "train[40:50]", "test": "train[50:]"}
            # The halves of a picture are a pair.
            paired = {"name": f"pairs:{pictures}", "source": "left"}
            named = paired if data.name.startswith("pairs:") else {"name": f"folder:{pictures}"}
            data = replace(data, **named, **splits, size=data.size and min(data.size, 64))
        elif isinstance(data, Audio):
            data = replace(data, name="tones", seconds=0.1, pattern=None, train=None, validation=None, test=None)
        elif isinstance(data, Music):
            data = replace(data, name="canons", frames=16, excerpt=data.excerpt and 8)
        return data

    return shrink
