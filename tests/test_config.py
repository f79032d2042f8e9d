"""Configs from files, from the command line and from JSON. Code that is not trusted must never run."""

import json
import sys
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pytest

from gen import config as configs
from gen.config import Config, Log, Parallel, Save, encoding, renamed
from gen.core import Family
from gen.data.images import Images
from gen.data.text import Text
from gen.errors import UserError
from gen.families.gan import ADA, GAN, DiffAugment
from gen.families.language import LM
from gen.families.vae import VAE
from gen.families.vae.likelihoods import DiscretizedLogistic, Gaussian, Likelihood
from gen.families.vae.priors import GaussianMixture, VampPrior
from gen.networks import discriminator, generator
from gen.networks.transformer import Architecture
from gen.networks.vae import Residual
from gen.optim import Group, Optimizer, Piecewise, Warmup, WarmupCosine

PLAIN = Config(model=VAE(), data=Images(name="digits"), steps=100)
RICH = Config(
    model=VAE(
        latents=(8, 4),
        network=Residual((4, 8)),
        likelihood=Gaussian(),
        prior=VampPrior(5),
        beta=Warmup(1.0, 10),
        optim=Optimizer(
            lr=WarmupCosine(1e-3, 10), groups=(Group("bias$", lr_factor=2.0, weight_decay=Piecewise((5,), (0.0, 0.1))),)
        ),
    ),
    data=Images(name="digits"),
    steps=100,
    save=Save(best=("neg_elbo", "min")),
)


def overridden(*arguments: str, config: Config = PLAIN) -> Config:
    return configs.override(config, arguments, prog="train.py").config


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], PLAIN),
        (["--steps", "7", "--seed", "3"], replace(PLAIN, steps=7, seed=3)),
        (["--model.latents", "64"], replace(PLAIN, model=VAE(latents=(64,)))),
        (["--model.latents", "8", "4"], replace(PLAIN, model=VAE(latents=(8, 4)))),
        (["--model.conditional"], replace(PLAIN, model=VAE(conditional=True))),
        (["--model.objective", "iwae"], replace(PLAIN, model=VAE(objective="iwae"))),
        (["--data.batch-size", "32"], replace(PLAIN, data=replace(PLAIN.data, batch_size=32))),
        (["--workdir", "a/b"], replace(PLAIN, workdir="a/b")),
        (["--model.optim.lr", "0.5"], replace(PLAIN, model=VAE(optim=Optimizer(lr=0.5)))),
        (
            ["--model.optim.lr", "WarmupCosine(1e-3, warmup=5)"],
            replace(PLAIN, model=VAE(optim=Optimizer(lr=WarmupCosine(1e-3, 5)))),
        ),
        (["--model.beta", "Piecewise((5,), (0.0, 1.0))"], replace(PLAIN, model=VAE(beta=Piecewise((5,), (0.0, 1.0))))),
    ],
)
def test_an_override_changes_only_its_field(arguments, expected):
    assert overridden(*arguments) == expected


def test_the_fields_of_an_object_that_the_config_chose_are_options():
    config = replace(PLAIN, model=VAE(likelihood=DiscretizedLogistic(17), network=Residual((4, 8))))
    found = overridden("--model.likelihood.levels", "9", "--model.network.widths", "4", config=config)
    assert found.model == VAE(likelihood=DiscretizedLogistic(9), network=Residual((4,)))


ADVERSARIAL = replace(PLAIN, model=GAN(augment=DiffAugment()))
LANGUAGE = Config(model=LM(network=Architecture(layers=2)), data=Text(name="pydoc"), steps=100)


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        (PLAIN, ["--model.network", "Residual"], VAE(network=Residual())),
        (PLAIN, ["--model.network=Residual"], VAE(network=Residual())),
        (PLAIN, ["--model.network", "Residual(widths=(4, 8), blocks=2)"], VAE(network=Residual((4, 8), 2))),
        (PLAIN, ["--model.network", "Residual([4])"], VAE(network=Residual((4,)))),
        (PLAIN, ["--model.network", "Residual", "--model.network.widths", "4", "8"], VAE(network=Residual((4, 8)))),
        (PLAIN, ["--model.network.widths", "4", "8", "--model.network", "Residual"], VAE(network=Residual((4, 8)))),
        (PLAIN, ["--model.prior", "gen.families.vae.priors:VampPrior(7)"], VAE(prior=VampPrior(7))),
        (PLAIN, ["--model", "VAE(prior=GaussianMixture(3))"], VAE(prior=GaussianMixture(3))),
        (PLAIN, ["--model.prior", "VampPrior", "--model", "VAE(dreg=False)"], VAE(prior=VampPrior())),
        (
            PLAIN,
            ["--model.optim.groups", "(Group('bias$', lr_factor=2.0),)"],
            VAE(optim=Optimizer(groups=(Group("bias$", lr_factor=2.0),))),
        ),
        (
            PLAIN,
            ["--model.optim", "Optimizer(lr=WarmupCosine(1e-3, warmup=5))"],
            VAE(optim=Optimizer(lr=WarmupCosine(1e-3, 5))),
        ),
        (
            replace(PLAIN, model=VAE(conditional=True)),
            ["--model.prior", "VampPrior", "--model.no-conditional"],
            VAE(prior=VampPrior()),
        ),
        (ADVERSARIAL, ["--model.augment", "None"], GAN()),
        (ADVERSARIAL, ["--model.augment", "ADA(target=0.5)"], GAN(augment=ADA(target=0.5))),
        (
            PLAIN,
            ["--model", "gen.families.gan:GAN(augment=DiffAugment(('color',)))"],
            GAN(augment=DiffAugment(("color",))),
        ),
        (ADVERSARIAL, ["--model.augment", "None", "--model.generator", "DCGAN"], GAN(generator=generator.DCGAN())),
        (
            ADVERSARIAL,
            ["--model.augment", "None", "--model.discriminator", "Residual"],
            GAN(discriminator=discriminator.Residual()),
        ),
        (
            LANGUAGE,
            ["--model.network", "Architecture(layers=3, width=32, heads=2)"],
            LM(network=Architecture(layers=3, width=32, heads=2)),
        ),
    ],
)
def test_an_option_replaces_an_object_by_one_of_another_class(config, arguments, expected):
    found = overridden(*arguments, config=config)
    assert found == replace(config, model=expected)


def test_a_field_may_take_a_word_or_an_object():
    hint = Literal["plain"] | Likelihood | None
    assert configs.parse_object("plain", hint) == "plain"
    assert configs.parse_object("Gaussian", hint) == Gaussian()
    assert configs.parse_object("None", hint) is None
    assert configs.decode(hint, "plain") == "plain"
    with pytest.raises(UserError, match="did you mean Gaussian"):
        configs.parse_object("Gausian", hint)


def test_the_data_and_launch_settings_are_objects_too():
    found = overridden(
        "--data", "Text(name='pydoc', length=32)", "--parallel", "Parallel(devices=2)", "--data.batch-size", "4"
    )
    assert found == replace(PLAIN, data=Text(name="pydoc", length=32, batch_size=4), parallel=Parallel(devices=2))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model.network", "Residul"], "did you mean Residual"),
        (["--model.network", "VampPrior"], "There are Perceptron, Residual"),
        (["--model.network", "Architecture"], "There are Perceptron, Residual"),
        (["--model.network", "Residual(width=(4,))"], "did you mean widths"),
        (["--model.network", "Residual((4,), 1, 'silu', 16, 3)"], "4 fields, and 5 values"),
        (["--model.network", "Residual((4,), widths=(4,))"], "widths twice"),
        (["--model.network", "Residual(widths=4)"], r"--model\.network\.widths is 4"),
        (["--model.network", "Residual(widths=range(4))"], "no class 'range'"),
        (["--model.network", "Residual(blocks=1 + 1)"], "not a value"),
        (["--model.network", "Residual("], "is not an object; expected one of Perceptron"),
        (["--model.network", "3"], "--model.network is 3, but must be Architecture"),
        (["--model.network", "Residual(blocks=-1)"], "blocks"),
        (["--model.network", "os:system"], "not a dataclass"),
        (["--model.network", "gen.families.vae.priors:VampPrior"], "not a subclass of Architecture"),
        (["--model.network"], "--model.network has no value; give it a class, such as Perceptron, Residual"),
        (["--model.network", "--steps", "3"], "has no value"),
        (["--model.prior", "strange_lab.flow:Config"], r"--trust strange_lab\.flow"),
        *(
            (["--data", f"{kind}:x"], f"--data takes a class; the fix: --data.name {kind}:x")
            for kind in ("audio", "captions", "folder", "jsonl", "midi", "pairs", "rolls", "text")
        ),
    ],
)
def test_an_object_that_does_not_fit_is_refused(arguments, named):
    with pytest.raises(UserError, match=named):
        overridden(*arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model.latent", "64"], "--model.latents"),
        (["--model.latents", "many"], "many"),
        (["--steps", "1.5"], "1.5"),
        (["--model.objective", "elbow"], "elbo"),
        (["--model.optim.lr", "fast"], "WarmupCosine"),
        (["--model.optim.lr", "Warmup(1.0)"], "Warmup"),
        (["--nonsense"], "--nonsense"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_override_exits_with_status_2_and_names_the_nearest(arguments, named, capsys):
    with pytest.raises(SystemExit) as exit:
        overridden(*arguments)
    assert exit.value.code == 2
    assert named in capsys.readouterr().err


def test_an_impossible_value_is_a_user_error():
    with pytest.raises((UserError, SystemExit)) as error:
        overridden("--steps", "0")
    assert isinstance(error.value, UserError) or error.value.code == 2


def test_help_lists_the_familys_fields_with_their_docs_and_explains_classes(capsys):
    with pytest.raises(SystemExit) as exit:
        overridden("--help")
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert "--model.latents" in shown
    assert "Number of training steps (updates)" in shown
    assert shown.count('"Residual(widths=(32, 64))"') == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        ("-2", -2.0),
        ("WarmupCosine(1e-3)", WarmupCosine(1e-3)),
        ("WarmupCosine(peak=1, warmup=5, end=-0.5)", WarmupCosine(1.0, 5, -0.5)),
        ("Piecewise([5], [0.0, 1])", Piecewise((5,), (0.0, 1.0))),
        (str(Warmup(2.0, 3)), Warmup(2.0, 3)),
    ],
)
def test_a_scalar_is_a_number_or_a_schedule_as_python_writes_it(text, expected):
    assert configs.scalar(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Warmup",
        "Warmup()",
        "Warmup(1.0, 2, 3.0, 4)",
        "Warmup(1.0, 2.5)",
        "Warmup(1.0, True)",
        "Warmup(1.0, warmups=3)",
        "Warmup(1.0, 5, value=2.0)",
        "Warmup(value=1.0, **{'warmup': 3})",
        "Warmup(*(1.0, 3))",
        "Warmup(1.0, warmup='3')",
        "Piecewise((5, 4), (1.0, 2.0, 3.0))",
        "gen.optim.schedules.Warmup(1.0, 3)",
        "Schedule()",
        "[1, 2]",
        "1; 2",
        "nan",
        "(" * 500 + ")" * 500,
    ],
)
def test_text_that_is_neither_a_number_nor_a_schedule_is_refused(text):
    with pytest.raises(
        ValueError,
        match=r"There are WarmupCosine, |one of WarmupCosine\(|is missing|must be (int|Schedule)|no field|not a value|4 values|twice|ascend",
    ):
        configs.scalar(text)


@pytest.mark.parametrize("text", ["{}", "Warmup({}, 3)", "Warmup(value={}, warmup=3)", "({})(1.0)"])
def test_text_is_never_evaluated(text, tmp_path):
    code = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    with pytest.raises(ValueError, match="expected a number or a schedule"):
        configs.scalar(text.format(code))
    assert not (tmp_path / "ran").exists()


def test_a_config_file_is_found_by_name_or_path(tmp_path):
    (tmp_path / "mine.py").write_text("from test_config import RICH as config")
    assert configs.load("mine", tmp_path) == configs.load(str(tmp_path / "mine.py")) == RICH


@pytest.mark.parametrize("name", ["vae_digit", "{}/vae_digit.py"])
def test_an_unknown_config_file_names_the_nearest(name, tmp_path):
    for known in ("vae_digits", "other"):
        (tmp_path / f"{known}.py").touch()
    with pytest.raises(UserError, match="did you mean vae_digits"):
        configs.load(name.format(tmp_path), tmp_path)


def test_an_unknown_config_file_without_a_near_name_lists_the_files(tmp_path):
    (tmp_path / "abc.py").touch()
    with pytest.raises(UserError, match="has abc"):
        configs.load("xyz", tmp_path)
    with pytest.raises(UserError, match="none"):
        configs.load("xyz", tmp_path / "nowhere")


DERIVED = """
from dataclasses import replace
from gen.config import load

base = load("{base}")
config = replace(base, steps=7)
"""


def test_a_config_file_derives_from_another_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "mine" / "derived.py").write_text(DERIVED.format(base="vae_digits"))
    expected = replace(configs.load("vae_digits"), steps=7)
    assert configs.load(str(tmp_path / "mine" / "derived.py")) == expected
    (tmp_path / "mine" / "again.py").write_text(DERIVED.format(base="derived").replace("7", "8"))
    assert configs.load("again", tmp_path / "mine") == replace(expected, steps=8)
    (tmp_path / "mine" / "by_path.py").write_text(DERIVED.format(base="derived.py"))
    assert configs.load("../mine/by_path.py") == expected


def test_a_derived_config_may_have_the_name_of_its_base(tmp_path):
    (tmp_path / "vae_digits.py").write_text(DERIVED.format(base="vae_digits"))
    folder = Path(__file__).parent.parent / "configs"
    assert configs.load(str(tmp_path / "vae_digits.py"), folder) == replace(configs.load("vae_digits", folder), steps=7)


def test_configs_that_derive_from_each_other_are_refused(tmp_path):
    (tmp_path / "one.py").write_text(DERIVED.format(base="two"))
    (tmp_path / "two.py").write_text(DERIVED.format(base="one"))
    with pytest.raises(UserError, match="no config file"):
        configs.load("one", tmp_path)


FAMILY = """
from __future__ import annotations
from dataclasses import dataclass
from gen.core import Family


@dataclass(frozen=True)
class Config(Family):
    width: int = 3
"""
EXPERIMENT = """
from gen import config as configs
from gen.data.images import Images

config = configs.Config(model={model}, data=Images(name="digits"), steps=3)
"""


def test_a_family_next_to_its_config_is_found_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "near_family.py").write_text(FAMILY)
    (tmp_path / "near.py").write_text("import near_family" + EXPERIMENT.format(model="near_family.Config(5)"))
    before = list(sys.path)
    config = configs.load("near", tmp_path)
    assert sys.path == before
    value = configs.encode(config)
    assert value["model"] == {"type": "near_family.Config", "width": 5}
    assert configs.decode(Config, value) == config  # it is loaded already
    for name in ("near_family", "near"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="--trust near_family"):
        configs.decode(Config, value)
    with pytest.raises(UserError, match="No module named"):
        configs.decode(Config, value, ("near_family",))
    monkeypatch.syspath_prepend(tmp_path)
    assert configs.encode(configs.decode(Config, value, ("near_family",))) == value


def test_a_family_in_its_config_file_is_found_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "whole_experiment.py").write_text(FAMILY + EXPERIMENT.format(model="Config(5)"))
    config = configs.load(str(tmp_path / "whole_experiment.py"))
    value = configs.encode(config)
    assert value["model"]["type"] == "whole_experiment.Config"
    assert configs.decode(Config, value) == config
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "experiment.py").write_text(FAMILY + EXPERIMENT.format(model="Config(5)"))
    monkeypatch.syspath_prepend(tmp_path)
    value = configs.encode(configs.load(str(tmp_path / "package" / "experiment.py")))
    assert value["model"]["type"] == "package.experiment.Config"


def test_a_config_file_replaces_no_module(tmp_path):
    (tmp_path / "json.py").write_text("from test_config import PLAIN as config")
    assert configs.load("json", tmp_path) == PLAIN
    assert sys.modules["json"] is json


def test_a_file_without_a_config_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("config = 3")
    with pytest.raises(UserError, match="defines no `config = Config"):
        configs.load("empty", tmp_path)


@pytest.mark.parametrize("config", [PLAIN, RICH], ids=["plain", "rich"])
def test_a_config_survives_json(config):
    text = json.dumps(configs.encode(config))
    found = configs.decode(Config, json.loads(text))
    assert found == config
    assert json.dumps(configs.encode(found)) == text


def test_an_integer_for_a_float_is_read_as_a_float():
    value = configs.encode(PLAIN)
    value["model"]["optim"]["lr"] = 1
    assert repr(configs.decode(Config, value).model.optim.lr) == "1.0"


OLD = {
    "type": "gen.config.Config",
    "model": {
        "type": "gen.families.vae.Config",
        "latents": [8, 4],
        "network": {"type": "gen.networks.vae.Residual", "widths": [4, 8]},
        "likelihood": {"type": "gen.likelihoods.Gaussian"},
        "prior": {"type": "gen.priors.VampPrior", "components": 5},
        "beta": {"type": "gen.schedules.Warmup", "value": 1.0, "warmup": 10},
        "optim": {
            "type": "gen.optim.OptimConfig",
            "lr": {"type": "gen.schedules.WarmupCosine", "peak": 0.001, "warmup": 10},
            "groups": [
                {
                    "type": "gen.optim.Group",
                    "path": "bias$",
                    "lr_factor": 2.0,
                    "weight_decay": {"type": "gen.schedules.Piecewise", "boundaries": [5], "values": [0.0, 0.1]},
                }
            ],
        },
    },
    "data": {"type": "gen.data.images.Config", "name": "digits"},
    "steps": 100,
    "lora": {"type": "gen.adapters.LoRA"},
    "parallel": {"type": "gen.parallel.Config"},
    "save": {"type": "gen.checkpoint.Config", "best": ["neg_elbo", "min"]},
    "log": {"type": "gen.log.Config"},
    "alarms": {"type": "gen.alarms.Config"},
    "faults": {"type": "gen.faults.Config"},
}
"""The rich config in the names of modules before November 2026."""


def test_a_config_in_old_names_is_read():
    assert configs.decode(Config, OLD) == RICH


@pytest.mark.parametrize("name", sorted({*renamed.TYPES.values()}))
def test_every_renamed_class_exists(name):
    assert encoding.import_class(name, object).__name__ == name.rpartition(".")[2]


def old_digest(stored: dict[str, Any]) -> str:
    """The digest of an identity as it was taken when `stored` was written: of its names and its fields."""
    launch = (
        "base",
        "steps_per_call",
        "evaluate_every",
        "workdir",
        "parallel",
        "save",
        "log",
        "alarms",
        "faults",
        "profile",
    )
    text = json.dumps({k: v for k, v in stored.items() if k not in launch}, sort_keys=True)
    return sha256(text.replace(".0,", ",").replace(".0}", "}").replace(".0]", "]").encode()).hexdigest()


def test_new_fields_and_new_names_do_not_change_an_identity():
    config = configs.decode(Config, OLD)
    assert not configs.identity_changed(old_digest(OLD), OLD, config)
    assert not configs.identity_changed(configs.digest(config), OLD, config)
    assert configs.difference(config, RICH) == []


def test_a_changed_value_changes_an_identity():
    stored = json.loads(json.dumps(OLD))
    stored["model"]["latents"] = [8, 5]
    assert configs.identity_changed(old_digest(OLD), stored, configs.decode(Config, stored))
    longer = {**OLD, "steps": 101}  # WarmupCosine reads the number of steps
    assert configs.identity_changed(old_digest(OLD), longer, configs.decode(Config, longer))
    moved = {**OLD, "workdir": "elsewhere"}
    assert not configs.identity_changed(old_digest(OLD), moved, configs.decode(Config, moved))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The rich config as JSON, with the value at a dotted path replaced."""
    tree = json.loads(json.dumps(configs.encode(RICH)))
    *parents, last = path.split(".")
    inner = tree
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("steps", "100"),
        ("steps", 100.0),
        ("steps", True),
        ("steps", None),
        ("model.dreg", 1),
        ("model.latents", 8),
        ("model.latents", [8, "4"]),
        ("model.objective", "elbow"),
        ("model.objective", ["elbo"]),
        ("model.optim.lr", "1e-3"),
        ("model.optim.lr", True),
        ("model.optim.clip", {"type": "gen.optim.schedules.Warmup", "value": 1.0, "warmup": 3}),
        ("model.optim.groups", [{"path": "bias"}]),
        ("save.best", ["neg_elbo"]),
        ("save.best", ["neg_elbo", "least"]),
        ("model", None),
        ("model", {}),
        ("model", {"type": 3}),
        ("workdir", 3),
    ],
)
def test_a_wrong_type_is_refused_and_the_field_named(path, value):
    with pytest.raises(UserError, match=rf"config\.{path}"):
        configs.decode(Config, changed(path, value))


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(UserError, match=r"config\.model\.latent is not a field of gen\.families\.vae\.family\.VAE"):
        configs.decode(Config, changed("model.latent", 3))
    value = configs.encode(PLAIN)
    del value["steps"]
    with pytest.raises(UserError, match=r"config\.steps is missing"):
        configs.decode(Config, value)


def test_a_decoded_config_is_checked_like_any_other():
    with pytest.raises(UserError, match="steps is 0"):
        configs.decode(Config, changed("steps", 0))


@pytest.mark.parametrize("value", [None, 3, [], "gen.config.Config", {}])
def test_json_that_is_not_a_config_is_refused(value):
    with pytest.raises(UserError, match=r"must be Config|not a subclass of Config"):
        configs.decode(Config, value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("os.system", "not a subclass of Family"),
        ("gen.core.Feature", "not a subclass of Family"),
        ("gen.families.vae.family.build", "has no build"),
        ("gen.families.vae.family.Request", "not a subclass of Family"),
        ("gen.families.vae.family.core.command", "gen.families.vae.family.core"),
        ("gen.families.vae.family.Missing", "has no Missing"),
        ("gen.families.missing.Config", "No module named"),
        ("gen.families..vae.Config", "not part of gen"),
        ("gen.families.vae.family.", "not part of gen"),
        ("gen.data.images.dataset.Images", "not a subclass of Family"),
        ("gen.not_imported_yet.Config", "No module named"),
        (".gen.families.vae.Config", "not part of gen"),
        ("gen.families_evil.Config", "No module named"),
        ("Config", "not part of gen"),
        ("", "not part of gen"),
        ("gen.families.vae.family;import os.Config", "not part of gen"),
        ("x" * 10_000, "not part of gen"),
    ],
    ids=lambda value: value[:40],
)
def test_a_name_that_is_not_a_family_of_gen_is_refused(name, reason):
    with pytest.raises(UserError, match=reason) as error:
        configs.decode(Config, changed("model", {"type": name}))
    assert "config.model" in str(error.value)
    assert len(str(error.value)) < 400


FORK = """
import pathlib
from dataclasses import dataclass
from gen.core import Family

pathlib.Path(__file__).with_suffix(".imported").touch()


@dataclass(frozen=True)
class Config(Family):
    width: int = 3
"""


@pytest.fixture
def fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A family in another package, which leaves a file behind when it is imported."""
    package = tmp_path / "strange_lab"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "flow.py").write_text(FORK)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("strange_lab", "strange_lab.flow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return package / "flow.imported"


@pytest.mark.parametrize("trust", [(), ("strange",), ("strange_lab.other",), ("",), ("strange_lab.flow.Config",)])
def test_a_foreign_module_is_not_imported_unless_it_is_trusted(fork, trust):
    with pytest.raises(UserError, match=r"--trust strange_lab\.flow"):
        configs.decode(Config, changed("model", {"type": "strange_lab.flow.Config"}), trust)
    assert not fork.exists()
    assert "strange_lab" not in sys.modules


@pytest.mark.parametrize("trust", ["strange_lab", "strange_lab.flow"])
def test_a_trusted_fork_survives_json(fork, trust):
    value = changed("model", {"type": "strange_lab.flow.Config", "width": 5})
    config = configs.decode(Config, value, (trust,))
    assert fork.exists()
    assert isinstance(config.model, Family)
    assert vars(config.model) == {"width": 5}
    assert configs.encode(config) == value
    with pytest.raises(UserError, match="width"):
        configs.decode(Config, changed("model", {"type": "strange_lab.flow.Config", "width": "5"}), (trust,))


@pytest.mark.parametrize(
    "fields",
    [
        {"workdir": "elsewhere"},
        {"evaluate_every": 7},
        {"parallel": Parallel(engine="jit", devices=2)},
        {"save": Save(every=3)},
        {"log": Log(every=1)},
        {"steps": 101},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_launch_fields_do_not_belong_to_the_identity(fields):
    other = replace(PLAIN, **fields)
    assert configs.digest(other) == configs.digest(PLAIN)
    assert configs.difference(PLAIN, other) == []


@pytest.mark.parametrize(
    ("lr", "belong"),
    [(1e-3, False), (Warmup(1e-3, 5), False), (Piecewise((5,), (1.0, 2.0)), False), (WarmupCosine(1e-3), True)],
)
def test_steps_belong_to_the_identity_where_a_schedule_reads_them(lr, belong):
    config = replace(PLAIN, model=VAE(optim=Optimizer(groups=(Group("x"), Group("y", weight_decay=lr)))))
    assert (configs.digest(config) != configs.digest(replace(config, steps=101))) == belong


def test_the_model_and_the_data_belong_to_the_identity():
    others = [
        replace(PLAIN, seed=1),
        replace(PLAIN, model=VAE(latents=(21,))),
        replace(PLAIN, model=VAE(optim=Optimizer(lr=2e-3))),
        replace(PLAIN, data=replace(PLAIN.data, batch_size=64)),
        replace(PLAIN, data=Images(name="mnist")),
    ]
    assert len({configs.digest(config) for config in [PLAIN, *others]}) == 6


def test_the_difference_of_two_identities_has_one_line_per_field():
    other = replace(PLAIN, seed=1, model=VAE(latents=(8, 4), likelihood=DiscretizedLogistic(17)), workdir="x")
    assert configs.difference(PLAIN, other) == [
        "model.latents: [20] -> [8, 4]",
        "model.likelihood.components: (absent) -> 1",
        "model.likelihood.levels: (absent) -> 17",
        'model.likelihood.type: "gen.families.vae.likelihoods.Bernoulli" -> "gen.families.vae.likelihoods.DiscretizedLogistic"',
        "seed: 0 -> 1",
    ]


def test_a_difference_of_none_and_absent_is_shown():
    old, new = (replace(PLAIN, model=VAE(likelihood=x)) for x in (Gaussian(), DiscretizedLogistic(17)))
    assert "model.likelihood.std: null -> (absent)" in configs.difference(old, new)


@dataclass(frozen=True)
class Ours(Family):
    """A family of a module that is not part of gen."""

    width: int = 3


def test_a_forks_config_is_written_under_the_name_that_reads_it():
    config = replace(PLAIN, model=Ours(4))
    assert configs.encode(config)["model"] == {"type": f"{__name__}.Ours", "width": 4}
    assert configs.decode(Config, configs.encode(config), (__name__,)) == config
