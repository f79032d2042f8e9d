"""Every path that a command takes may begin with ~, the home folder."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gen import config as configs
from gen import files
from gen.config import Config
from gen.data import prepare
from gen.data.images import Images
from gen.data.text import Text, docstrings, tokenizers
from gen.errors import UserError
from gen.evaluation.image_subject import load_features
from gen.evaluation.score import Options
from gen.families.vae import VAE
from gen.interop.__main__ import Export
from gen.media.text import TextOptions
from gen.runs import base, merge
from gen.runs.directory import BaseRecord, RunFacts
from gen.sample import Verify


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@dataclass(frozen=True)
class Outer:
    inner: TextOptions
    name: str


def test_each_path_of_a_commands_options_is_expanded(home):
    def of(options: object) -> object:
        return files.expand_paths(options)

    assert of(Options((Path("~/a"), Path("b")))) == Options((home / "a", Path("b")))
    assert of(Verify(Path("~/m.json"), run=Path("~/r"))) == Verify(home / "m.json", run=home / "r")
    assert of(Export(Path("~/r"), Path("~/o"))) == Export(home / "r", home / "o")
    assert of(merge.Merge(Path("~/r"), Path("~/o"))) == merge.Merge(home / "r", home / "o")
    assert of(prepare.Options("mnist", Path("~/idx"))) == prepare.Options("mnist", home / "idx")
    assert of(docstrings.Options(Path("~/o"), Path("~/f"))) == docstrings.Options(home / "o", home / "f")
    # Below the medium of sample.py's options, and not in texts.
    inner = TextOptions(prompt=("~/no path",), prompt_file=Path("~/p.txt"))
    assert of(Outer(inner, "~")) == Outer(replace(inner, prompt_file=home / "p.txt"), "~")
    with pytest.raises(UserError, match="~nobody-of-this-name"):
        of(Verify(Path("~nobody-of-this-name/m.json")))


def test_paths_that_are_texts_are_expanded_where_they_are_read(home):
    config = Config(model=VAE(), data=Images(), steps=1, init_from="~/run")
    with pytest.raises(UserError, match=f"{home}/run, the base"):
        base.location(config)
    with pytest.raises(UserError, match=f"--base {home}/moved"):
        base.location(replace(config, base="~/moved"))
    facts = RunFacts("", BaseRecord("../x", 1, ""), 1, "", {})
    with pytest.raises(UserError, match=f"--base {home}/moved"):
        base.base_of_run(home / "run", facts, "~/moved")
    (home / "empty").mkdir()
    for data in (Images(name="folder:~/empty"), Text(name="text:~/empty"), Text(name="jsonl:~/empty")):
        with pytest.raises(UserError) as error:
            data.build()
        assert "there is no such" not in str(error.value)
    with pytest.raises(UserError, match=f"not prepared in {home}/sets"):
        Images(name="mnist", data_dir="~/sets").build()
    with pytest.raises(UserError, match=f"{home}/tokenizer"):
        tokenizers.read(Path("~/tokenizer"))
    with pytest.raises(UserError, match=f"{home}/weights"):
        load_features("~/weights", Images().build())


def test_a_config_file_and_a_run_are_found_below_the_home_folder(home):
    (home / "mine.py").write_text('from gen.config import load\n\nconfig = load("vae_digits")\n')
    assert configs.load("~/mine.py") == configs.load("vae_digits")
    import gen

    with pytest.raises(UserError, match=f"{home}/run is not a run directory"):
        gen.open("~/run")
