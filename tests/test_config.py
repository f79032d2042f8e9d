"""Configs from files, from the command line and from JSON; what must never run or be accepted does not."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gen import config as configs
from gen.config import Config, Log, Parallel, Save
from gen.core import Family
from gen.data.images import Images
from gen.errors import UserError
from gen.families.vae import VAE
from gen.families.vae.likelihoods import DiscretizedLogistic, Gaussian
from gen.families.vae.priors import VampPrior
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
def test_an_override_changes_its_field_alone(arguments, expected):
    assert overridden(*arguments) == expected


def test_what_a_config_has_chosen_can_be_overridden_within():
    config = replace(PLAIN, model=VAE(likelihood=DiscretizedLogistic(17), network=Residual((4, 8))))
    found = overridden("--model.likelihood.levels", "9", "--model.network.widths", "4", config=config)
    assert found.model == VAE(likelihood=DiscretizedLogistic(9), network=Residual((4,)))


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
def test_a_wrong_override_exits_with_status_2_and_names_what_was_meant(arguments, named, capsys):
    with pytest.raises(SystemExit) as exit:
        overridden(*arguments)
    assert exit.value.code == 2
    assert named in capsys.readouterr().err


def test_an_override_that_can_not_be_is_a_users_error():
    with pytest.raises((UserError, SystemExit)) as error:
        overridden("--steps", "0")
    assert isinstance(error.value, UserError) or error.value.code == 2


def test_help_lists_a_familys_fields_with_their_docs(capsys):
    with pytest.raises(SystemExit) as exit:
        overridden("--help")
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert "--model.latents" in shown
    assert "top group first" in shown


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
def test_what_is_neither_number_nor_schedule_is_refused(text):
    with pytest.raises(
        ValueError,
        match=r"neither a number nor one of WarmupCosine, |is missing|which is no int|is no field|must ascend",
    ):
        configs.scalar(text)


@pytest.mark.parametrize("text", ["{}", "Warmup({}, 3)", "Warmup(value={}, warmup=3)", "({})(1.0)"])
def test_text_is_never_evaluated(text, tmp_path):
    code = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    with pytest.raises(ValueError, match="neither a number"):
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


def test_an_unknown_config_file_with_none_near_lists_what_is_there(tmp_path):
    (tmp_path / "abc.py").touch()
    with pytest.raises(UserError, match="has abc"):
        configs.load("xyz", tmp_path)
    with pytest.raises(UserError, match="none"):
        configs.load("xyz", tmp_path / "nowhere")


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


def test_an_unknown_field_and_a_missing_one_are_named():
    with pytest.raises(UserError, match=r"config\.model\.latent is no field of gen\.families\.vae\.family\.VAE"):
        configs.decode(Config, changed("model.latent", 3))
    value = configs.encode(PLAIN)
    del value["steps"]
    with pytest.raises(UserError, match=r"config\.steps is missing"):
        configs.decode(Config, value)


def test_a_decoded_config_is_checked_like_any_other():
    with pytest.raises(UserError, match="steps is 0"):
        configs.decode(Config, changed("steps", 0))


@pytest.mark.parametrize("value", [None, 3, [], "gen.config.Config", {}])
def test_what_is_no_config_at_all_is_refused(value):
    with pytest.raises(UserError, match="which is no Config"):
        configs.decode(Config, value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("os.system", "no Family"),
        ("gen.core.Feature", "no Family"),
        ("gen.families.vae.family.build", "no Family"),
        ("gen.families.vae.family.Request", "no Family"),
        ("gen.families.vae.family.core.command", "gen.families.vae.family.core"),
        ("gen.families.vae.family.Missing", "no Family"),
        ("gen.families.missing.Config", "No module named"),
        ("gen.families..vae.Config", "not part of gen"),
        ("gen.families.vae.family.", "not part of gen"),
        ("gen.data.images.dataset.Images", "no Family"),
        ("gen.not_imported_yet.Config", "not part of gen"),
        (".gen.families.vae.Config", "not part of gen"),
        ("gen.families_evil.Config", "not part of gen"),
        ("Config", "not part of gen"),
        ("", "not part of gen"),
        ("gen.families.vae.family;import os.Config", "not part of gen"),
        ("x" * 10_000, "not part of gen"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_no_family_of_gen_is_refused(name, reason):
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
    """A family in a package of its own, which leaves a trace when it is imported."""
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


def test_what_the_model_or_the_data_are_belongs_to_the_identity():
    others = [
        replace(PLAIN, seed=1),
        replace(PLAIN, model=VAE(latents=(21,))),
        replace(PLAIN, model=VAE(optim=Optimizer(lr=2e-3))),
        replace(PLAIN, data=replace(PLAIN.data, batch_size=64)),
        replace(PLAIN, data=Images(name="mnist")),
    ]
    assert len({configs.digest(config) for config in [PLAIN, *others]}) == 6


def test_the_difference_of_two_identities_is_a_line_a_field():
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
    """Of a module that is not part of gen."""

    width: int = 3


def test_a_forks_config_is_written_by_the_path_that_reads_it():
    config = replace(PLAIN, model=Ours(4))
    assert configs.encode(config)["model"] == {"type": f"{__name__}.Ours", "width": 4}
    assert configs.decode(Config, configs.encode(config), (__name__,)) == config
