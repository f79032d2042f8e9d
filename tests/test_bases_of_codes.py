"""Runs on codes that start from another run: its tokenizers of texts and of images, and adapters that are merged."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from untrained import make_run

import gen
from gen.config import Config, Parallel
from gen.data.images.captions import Captioned
from gen.data.text import tokenizers
from gen.derived import Encoded
from gen.families.grid import GridLM
from gen.families.tokenizer import FSQ, KL, Tokenizer
from gen.networks.tokenizer import Residual
from gen.networks.transformer import Architecture
from gen.optim.adapters import LoRA
from gen.runs.base import build_data
from gen.runs.merge import merge
from gen.train import train

ONE = Parallel(devices=1)
MODEL = GridLM(network=Architecture(1, 16, 2, positions="learned"), conditional=True)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def described(folder: Path) -> Captioned:
    return Captioned(name=f"captions:{folder}", size=8, colors=3, tokenizer="bpe", vocabulary=270, length=8)


def tokenizer_run(folder: Path, data: Captioned, model: Tokenizer) -> Path:
    return make_run(folder, Config(model=model, data=data, steps=1, parallel=ONE))


@pytest.fixture
def base(captions, tmp_path) -> Path:
    """A model from captions to the codes of their pictures."""
    coder = Tokenizer(network=Residual((4,), (4,)), bottleneck=FSQ((3, 2)))
    codes = str(tokenizer_run(tmp_path / "coder", described(captions), coder))
    data = Encoded(data=described(captions), tokenizer=codes, batch_size=8)
    return make_run(tmp_path / "base", Config(model=MODEL, data=data, steps=1, parallel=ONE))


@pytest.fixture
def others(captions, tmp_path) -> Path:
    """The same pictures with captions of other words, for which the bpe would learn other tokens."""
    folder = Path(shutil.copytree(captions, tmp_path / "others"))
    for text in folder.glob("*.txt"):
        text.write_text(f"a small square of number {text.stem}\n")
    return folder


def config_on(folder: Path, base: Path, finetune: Literal["full", "lora"]) -> Config:
    data = Encoded(data=described(folder), tokenizer=str(base), batch_size=8)
    return Config(model=MODEL, data=data, steps=1, init_from=str(base), finetune=finetune, lora=LoRA(2), parallel=ONE)


def test_captions_are_read_by_the_tokenizer_of_the_base(base, others):
    """By a tokenizer of its own, the base would see other words than it learned."""
    known = (base / tokenizers.FILE).read_bytes()
    config = config_on(others, base, "full")
    assert config.data.build().files[tokenizers.FILE] != known
    assert build_data(config).files[tokenizers.FILE] == known


def test_a_merged_run_needs_nothing_but_its_folder(base, others, tmp_path):
    train(config_on(others, base, "lora"), tmp_path / "lora")
    run = gen.open(tmp_path / "lora")
    assert run.trained.build_data().digest == run.trained.facts.data
    merge(tmp_path / "lora", tmp_path / "merged")
    expected = run.generate(prompt=("a small",), n=2)
    for folder in ("lora", "base", "coder"):
        shutil.rmtree(tmp_path / folder)
    merged = gen.open(tmp_path / "merged")
    found = merged.generate(prompt=("a small",), n=2)
    np.testing.assert_array_equal(found["samples"], expected["samples"])
    assert merged.show(found)["samples.png"].startswith(b"\x89PNG")
    assert merged.trained.build_data().digest == merged.trained.facts.data


@pytest.mark.parametrize("bottleneck", [FSQ((3, 2)), KL(2)])
def test_codes_of_another_tokenizer_than_the_base_read_are_a_warning(base, bottleneck, captions, tmp_path, capsys):
    config = config_on(captions, base, "full")
    build_data(config)
    assert "another tokenizer" not in capsys.readouterr().err
    model = Tokenizer(network=Residual((6,), (4,)), bottleneck=bottleneck)
    other = tokenizer_run(tmp_path / "other", described(captions), model)
    build_data(replace(config, data=replace(config.data, tokenizer=str(other))))
    assert f"the fix: --data.tokenizer {base}" in capsys.readouterr().err
