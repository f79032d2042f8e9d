"""Runs that start from a base: which weights are trained, fixed and stored, and which bases are refused."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ENGINES, assert_close, assert_same, leaves
from flax.traverse_util import flatten_dict
from PIL import Image
from scipy.special import log_softmax
from test_lm import PROMPTS, SPEC, T, batch_of, by_document, nats_of, on_one_device
from test_transformer import ARCHS, END, KEY, SMALL, VOCAB, quickly, random_like, reference

import gen
from gen import core, sample
from gen import files as gen_files
from gen.config import Config, Parallel, Save
from gen.core import State
from gen.data.images import Images
from gen.data.preprocess import with_preprocess
from gen.errors import UserError
from gen.families.flow import DiT, Flow, UNet
from gen.families.language import LM, lm
from gen.networks.positions import PADDING
from gen.optim import Optimizer, adapters
from gen.optim.adapters import LoRA, Prompt
from gen.runs import base as runs_base
from gen.runs import checkpoint, directory
from gen.runs import merge as runs_merge
from gen.runs import trained as runs_trained
from gen.runtime import engine as runtime_engine
from gen.train import build, train
from tests.untrained import make_run

SGD = Optimizer(rule="sgd", lr=0.3, b1=0.9)
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def spelled(number: int) -> str:
    return " ".join(DIGITS[int(digit)] for digit in str(number))


def narrow(tiny: Any, name: str = "lm_pydoc", /, **fields: Any) -> Config:
    """Returns a config that trains fast: a narrow network over the bytes of some lines."""
    config = tiny(name)
    quick: dict[str, Any] = {
        "model": replace(config.model, network=replace(config.model.network, dropout=0.0), optim=SGD, ema=0.9),
        "data": replace(config.data, name="jsonl:lines.jsonl"),
        "steps": 4,
        "evaluate_every": 0,
        "save": Save(every=2),
        "log": replace(config.log, every=1, tensorboard=False),
        "parallel": Parallel(devices=1),
    }
    return replace(config, **quick | fields)


def wide(tiny: Any) -> Config:
    """Returns a config of a wider network over characters that trains for longer."""
    config = narrow(tiny, steps=300, save=Save(every=300))
    model: Any = config.model
    data: Any = config.data
    model = replace(model, network=replace(model.network, width=24))
    return replace(config, model=model, data=replace(data, tokenizer="character"))


def digests(folder: Path) -> dict[str, str]:
    """Returns {file: SHA-256} of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


LORA: dict[str, Any] = {
    "init_from": "base",
    "finetune": "lora",
    "lora": LoRA(rank=2, alpha=32.0, path="(query|value)/kernel$"),
    "parallel": Parallel(devices=2),
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> Iterator[Path]:
    """Returns a folder with the run "base", and with "full" and "lora", which started from it. The base must not change."""
    folder = tmp_path_factory.mktemp("runs")
    lines = [f"{7 * i} is {spelled(7 * i)}" for i in range(60)]
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    with contextlib.chdir(folder):
        train(wide(tiny), Path("base"))
        before = digests(folder / "base")
        train(narrow(tiny, init_from="base"), Path("full"))
        train(narrow(tiny, **LORA), Path("lora"))
    yield folder
    assert digests(folder / "base") == before


@pytest.fixture
def copied(runs, tmp_path, monkeypatch) -> Path:
    """Returns a copy of that folder, as the current folder."""
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    monkeypatch.chdir(folder)
    return folder


def weights(workdir: Path) -> dict[str, Any]:
    """Returns the averages in a run's best checkpoint."""
    run = runs_trained.open_run(workdir)
    return jax.device_get(checkpoint.restore(run.checkpoints, run.choose_step(), run.abstract, items=("ema",)).ema)


def flat(tree: Any) -> dict[tuple[str, ...], Any]:
    return dict(flatten_dict(tree))


def greedy(workdir: str, *more: str) -> str:
    """Returns a text that the run writes, without randomness."""
    out = Path("written") / Path(workdir).name
    sample.main(
        [workdir, "--prompt", "2", "--n", "1", "--tokens", "14", "--temperature", "0", "--out", str(out), *more]
    )
    return (out / "samples.txt").read_text()


def first_loss(workdir: Path) -> float:
    """Returns the loss before the first update."""
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])["loss"]


def test_a_run_begins_with_the_weights_network_and_tokenizer_of_its_base(runs, tiny, monkeypatch):
    """The loss of the first batch is the one that NumPy computes for the base. Afterwards every weight has changed."""
    monkeypatch.chdir(runs)
    base, config = weights(Path("base")), runs_base.resolve_config(narrow(tiny, init_from="base"))
    model: Any = config.model
    narrower: Any = narrow(tiny).model
    assert narrower.network.width == 16 and model.network.width == 24
    batch = build(config)[0].batch(config.seed, 0, range(8))
    logits = np.stack([by_document(base["transformer"], model.network, row) for row in batch["tokens"][:, :-1]])
    nats, weight = nats_of(logits, batch)
    expected = (nats * weight).sum() / weight.sum()
    assert expected < np.log(30) / 2
    for name in ("full", "lora"):
        assert first_loss(Path(name)) == pytest.approx(expected, rel=1e-5)
        assert Path(name, "tokenizer.json").read_bytes() == Path("base", "tokenizer.json").read_bytes()
        known = directory.read_config(Path(name))[1].base
        assert known is not None
        assert known == ("../base", 300, checkpoint.digest(Path("base/checkpoints"), 300))
        protocol = json.loads(Path(name, "evaluation.json").read_text())["protocol"]
        assert protocol["loss"]["base"] == known.sha256
    after = leaves(weights(Path("full")))
    assert not [name for name, value in leaves(base).items() if np.array_equal(value, after[name])]


def test_a_checkpoint_of_an_adapter_holds_the_adapter_alone(runs):
    folder = runs / "lora" / "checkpoints" / "4"
    items = {"step", "params", "ema", "opt_state", "meta"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == items
    trained = weights(runs / "lora")
    assert {path[-1] for path in flat(trained)} == {"a", "b"}
    arrays = {path.name for path in (folder / "params").iterdir() if path.name.startswith("transformer")}
    assert arrays == {".".join(path) for path in flat(trained)}
    assert all(name.endswith((".a", ".b")) for name in arrays)
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert size(trained) < size(weights(runs / "base")) / 10


@pytest.mark.slow
def test_an_adapter_continues_exactly_after_its_base_was_moved(copied, runs, tiny, capsys):
    """--base says where the base is now. The metrics, the state and the samples are the same bit for bit."""
    shutil.rmtree("lora/checkpoints/4")
    Path("elsewhere").mkdir()
    Path("base").rename("elsewhere/moved")
    config = narrow(tiny, **LORA)
    for refused in (lambda: train(config, Path("lora")), lambda: greedy("lora")):
        with pytest.raises(UserError, match="--base DIR"):
            refused()
    train(replace(config, base="elsewhere/moved"), Path("lora"))
    for name in ("metrics.jsonl", "evaluation.json"):
        assert Path("lora", name).read_bytes() == (runs / "lora" / name).read_bytes()
    abstract, states = runs_trained.open_run(Path("lora")).abstract, []
    for folder in (runs, copied):
        states.append(checkpoint.restore(folder / "lora/checkpoints", 4, abstract))
    assert_same(*states)

    with contextlib.chdir("elsewhere"):
        greedy("../lora")
    Path("elsewhere/moved").rename("again")
    with pytest.raises(UserError, match="if it was moved: --base DIR"):
        greedy("lora")
    with pytest.raises(UserError, match="--base nowhere does not exist"):
        greedy("lora", "--base", "nowhere")
    greedy("lora", "--base", "again")
    manifest = "written/lora/manifest.json"
    with pytest.raises(UserError, match="if it was moved: --base DIR"):
        sample.main(["--verify", manifest])
    assert sample.main(["--verify", manifest, "--base", "again"]) == 0
    assert "byte for byte" in capsys.readouterr().out


@pytest.mark.slow
def test_a_merged_run_needs_no_base_and_writes_the_same(copied, capsys):
    before = greedy("lora")
    runs_merge.merge(Path("lora"), Path("merged"))
    other = greedy("base")
    shutil.rmtree("base")
    shutil.rmtree("lora")
    assert greedy("merged") == before != other
    assert directory.read_config(Path("merged"))[1].base is None
    assert sample.main(["--verify", "written/merged/manifest.json"]) == 0
    assert greedy("full") != before, "which needs none either"


def test_a_run_is_scored_from_python(copied):
    """The scores are those of its training, and the samples are those of the command line."""
    run = gen.open("base")
    evaluation = directory.read_evaluation(Path("base"))
    assert evaluation is not None
    assert run.score("likelihood").items() >= {"loss": evaluation.metrics["loss"]}.items()
    settings: dict[str, Any] = {"prompt": ["2"], "n": 1, "tokens": 14, "temperature": 0.0}
    assert run.show(run.generate(**settings), prompt=["2"])["samples.txt"].decode() == greedy("base")


def test_a_merged_run_is_the_base_plus_its_low_rank_changes(copied, monkeypatch, capsys):
    """Merged on the command line, from another folder, with a moved base."""
    base, change = flat(weights(Path("base"))), flat(weights(Path("lora")))
    Path("base").rename("moved")
    monkeypatch.setattr("sys.argv", ["merge.py", ".", "../merged", "--base", "../moved"])
    with contextlib.chdir("lora"):
        runs_merge.main()
    assert "next: python sample.py ../merged" in capsys.readouterr().out
    for path, w in flat(weights(Path("merged"))).items():
        expected = np.asarray(base[path], np.float64)
        if path[-2] in ("query", "value"):
            expected = expected + 32 / 2 * np.einsum("lir,lro->lio", change[(*path, "a")], change[(*path, "b")])
            assert np.abs(expected - base[path]).max() > 1e-3
        np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-5, err_msg=str(path))


def another() -> None:
    """Puts another sound run in the place of the base."""
    shutil.rmtree("base")
    shutil.copytree("full", "base")
    Path("base/checkpoints/4").rename("base/checkpoints/300")


def damaged() -> None:
    path = Path("base/checkpoints/300/params/transformer.embedding.embedding/0.0")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another, "base is not the base that lora was trained on"),
        (damaged, "base/checkpoints/300: params/transformer.embedding.embedding/0.0 has changed"),
    ],
)
def test_a_base_that_has_changed_is_refused(change, message, copied, tiny):
    change()
    before = digests(copied)
    for use in (
        lambda: train(narrow(tiny, **LORA), Path("lora")),
        lambda: greedy("lora"),
        lambda: runs_merge.merge(Path("lora"), Path("new")),
    ):
        with pytest.raises(UserError, match=message):
            use()
    Path("lora/.lock").touch()
    assert digests(copied) == before


def on_a_gan(tiny: Any) -> Config:
    config = tiny("gan_digits")
    Path("gan").mkdir()
    directory.write_config(Path("gan"), config, "0" * 64)
    gen_files.write_json(Path("gan/spec.json"), {})
    return replace(config, init_from="gan", finetune="lora")


def learned(tiny: Any, **data: Any) -> Any:
    """Returns a config of a network with learned positions."""
    config = narrow(tiny)
    model: Any = config.model
    model = replace(model, network=replace(model.network, positions="learned", context=None))
    return replace(config, model=model, data=replace(config.data, **data))


def begun(config: Config, workdir: Path) -> None:
    """Makes a run without a checkpoint."""
    workdir.mkdir()
    directory.begin_run(workdir, config, config.data.build())


def too_long(tiny: Any) -> Config:
    begun(learned(tiny, length=8), Path("short"))
    return replace(learned(tiny, length=9), init_from="short")


def on_a_prompt(tiny: Any) -> Config:
    begun(narrow(tiny, init_from="base", finetune="prompt"), Path("tuned"))
    return narrow(tiny, init_from="tuned")


WRONG: dict[str, tuple[Callable[[Any], Config], str]] = {
    "no base": (lambda tiny: narrow(tiny, finetune="lora"), "--init-from RUN"),
    "no run": (lambda tiny: narrow(tiny, init_from="nothing"), "nothing, .* is not a run directory.*--base DIR"),
    "no run at --base": (
        lambda tiny: narrow(tiny, init_from="base", base="nowhere"),
        "--base nowhere is not a run directory; it has to be where",
    ),
    "a prompt, which can't be merged": (on_a_prompt, "is a learned prompt.*; choose a whole run"),
    "no checkpoint": (lambda tiny: narrow(tiny, init_from="empty"), "empty has no checkpoint to start from"),
    "an adapter": (lambda tiny: narrow(tiny, init_from="lora"), "python -m gen.runs.merge lora DIR"),
    "another family": (
        lambda tiny: narrow(tiny, "mlm_pydoc", init_from="base"),
        "base is a gen.families.language.lm.LM, and this config trains a gen.families.language.mlm.MLM",
    ),
    "a family without adapters": (on_a_gan, "gen.families.gan.family.GAN has no adapters"),
    "a path of nothing": (lambda tiny: narrow(tiny, **LORA | {"lora": LoRA(path="nothing")}), "lora.path 'nothing' m"),
    "no expression": (lambda tiny: narrow(tiny, **LORA | {"lora": LoRA(path="(")}), r"lora.path '\(' is not a regular"),
    "no rank": (lambda tiny: narrow(tiny, **LORA | {"lora": LoRA(rank=0)}), "rank is 0"),
    "no size": (lambda tiny: narrow(tiny, **LORA | {"lora": LoRA(alpha=0.0)}), "alpha is 0"),
    "a rank of full": (
        lambda tiny: narrow(tiny, init_from="base", lora=LoRA(rank=3)),
        "lora.rank .*--finetune lora, or",
    ),
    "a length of LoRA": (
        lambda tiny: narrow(tiny, **LORA | {"prompt": Prompt(length=3)}),
        "prompt.length .*finetune lora;",
    ),
    "no prompt": (lambda tiny: narrow(tiny, **LORA | {"prompt": Prompt(length=0)}), "length is 0"),
    "windows that are too long": (too_long, "has 8 learned positions, and windows have 9; the fix: --data.length 8"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_unusable_base_is_refused_before_anything_is_written(what, copied, tiny):
    make, message = WRONG[what]
    shutil.copytree("base", "empty", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match=message):
        train(make(tiny), Path("new"))
    assert not Path("new").exists()


def test_a_run_that_began_with_settings_of_another_adapter_is_continued_and_opened(copied, tiny, monkeypatch):
    config = narrow(tiny, init_from="base", lora=LoRA(rank=3))
    with monkeypatch.context() as older:
        older.setattr("gen.config.check_new_run", lambda _: None)
        train(config, Path("older"))
    train(replace(config, steps=5), Path("older"))
    assert gen.open("older").generate(n=1)["samples"].shape[0] == 1


def test_runs_that_are_no_lora_adapters_are_not_merged(copied, capsys):
    config, known = directory.read_config(Path("lora"))
    prompted = replace(config, finetune="prompt", model=config.model.with_adapter(config.prompt))
    shutil.copytree("lora", "prompted")
    directory.write_config(Path("prompted"), prompted, known.data, known.base, identities=[known.identity])
    Path("occupied").mkdir()
    Path("occupied/file").touch()
    for workdir, out, message in (
        ("full", "new", "full is not an adapter"),
        ("base", "new", "base is not an adapter"),
        ("prompted", "new", "a learned prompt .* can't be merged"),
        ("lora", "occupied", "occupied exists already"),
        ("lora", "occupied/file", "file exists already"),
    ):
        with pytest.raises(UserError, match=message):
            runs_merge.merge(Path(workdir), Path(out))
    with pytest.raises(SystemExit):
        runs_merge.main(["lora"])
    assert "DIR" in capsys.readouterr().err
    assert not Path("new").exists()
    assert [path.name for path in Path("occupied").iterdir()] == ["file"]


@pytest.mark.parametrize("how", ["full", "lora", "prompt"])
def test_learned_positions_of_the_base_are_kept_with_shorter_windows(how, copied, tiny):
    long = learned(tiny, length=16)
    long = replace(long, model=replace(long.model, fill_in_the_middle=0.5))  # which has words of its own
    begun(long, Path("long"))
    base = jax.eval_shape(build(long)[1].init, KEY).params
    config = runs_base.resolve_config(replace(learned(tiny, length=5), init_from="long", finetune=how))
    data, model, engine = build(config)
    state = jax.eval_shape(model.init, KEY, base)
    assert (state.frozen or state.params)["transformer"] == base["transformer"]
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, engine.abstract)
    evaluate = on_one_device(model.evaluate)
    sums = jax.eval_shape(evaluate, state, next(data.evaluation("validation", 8)), KEY)
    assert sums["loss_by_place"][0].shape == (5,)


def first_of(model: core.GenerativeModel, scale: float = 0.4) -> Any:
    """Returns random parameters of a whole model, none of them zero."""
    return jax.device_get(random_like(jax.eval_shape(model.init, KEY).params, scale))


@pytest.mark.parametrize(
    "name", ["lm_pydoc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlm_pydoc", "seq2seq_docstring"))]
)
def test_an_adapted_model_equals_its_base_at_first_and_later_the_merged_model(name, tiny):
    """The first equality is exact, the second holds to 1e-5. No update changes the base."""
    config, adapter = tiny(name), LoRA(rank=2, path="(query|value)/kernel$")
    model: Any = replace(config.model, network=replace(config.model.network, dropout=0.0), optim=SGD)
    data = config.data.build()
    whole, adapted = (m.build(data.spec, 100) for m in (model, model.with_adapter(adapter)))
    plain, evaluate, update = (on_one_device(f) for f in (whole.evaluate, adapted.evaluate, adapted.update))
    base, batch = first_of(whole), next(data.evaluation("validation", 8))
    state = quickly(adapted.init)(KEY, base)
    of_base = lambda params: plain(State(state.step, params, {}), batch, KEY)
    began, before = leaves(state.params), evaluate(state, batch, KEY)
    assert {path[-3:] for path in flat(state.params)} == {
        (part, "kernel", name) for part in ("query", "value") for name in ("a", "b")
    }
    assert_same(before, of_base(base))
    for step in range(2):
        state, _ = update(state, data.batch(0, step, range(8)), jax.random.fold_in(KEY, step))
    assert not [name for name, value in leaves(state.params).items() if np.array_equal(value, began[name])]
    assert_same(state.frozen, base)
    after = evaluate(state, batch, KEY)
    assert abs(after["loss"][0] - before["loss"][0]) > 1e-3 * before["loss"][0]
    assert_close(after, of_base(adapter.merge(state.params, base)), 1e-5)


@pytest.mark.slow
def test_an_adapted_vae_equals_its_base_at_first_and_later_the_merged_model(tiny):
    config, adapter = tiny("vae_digits"), LoRA(rank=2)
    model: Any = replace(config.model, optim=replace(SGD, lr=1e-3))
    data = config.data.build()
    whole, adapted = (
        with_preprocess(m.build(data.spec, 100), data.preprocess) for m in (model, model.with_adapter(adapter))
    )
    plain, evaluate, update = (on_one_device(f) for f in (whole.evaluate, adapted.evaluate, adapted.update))
    base, batch = jax.device_get(quickly(whole.init)(KEY).params), next(data.evaluation("validation", 8))
    state = quickly(adapted.init)(KEY, base)
    before = evaluate(state, batch, KEY)
    assert_close(before, plain(State(state.step, base, {}), batch, KEY), 1e-6)
    for step in range(2):
        state, _ = update(state, data.batch(0, step, range(8)), jax.random.fold_in(KEY, step))
    assert_same(state.frozen, base)
    merged = adapter.merge(state.ema, base)
    after = evaluate(state, batch, KEY)
    assert abs(after["neg_elbo"][0] - before["neg_elbo"][0]) > 1e-5 * abs(before["neg_elbo"][0])
    assert_close(after, plain(State(state.step, merged, {}), batch, KEY), 1e-5)
    made = lambda m, s: np.asarray(m.generate(s, KEY, {}, m.request(n=3))["samples"])
    np.testing.assert_allclose(made(adapted, state), made(whole, State(state.step, merged, {})), atol=1e-5)


@pytest.mark.slow
def test_a_conditional_flow_learns_a_new_class_from_a_few_pictures(tmp_path):
    """Full and LoRA begin with the velocities of the base without a label."""
    flow = Flow(network=DiT(1, 8, 2, (2,)), conditional=True, optim=SGD, likelihood_steps=2)
    digits = Images(name="digits", batch_size=8)
    make_run(tmp_path / "base", Config(model=flow, data=digits, steps=5, parallel=Parallel(devices=1)))
    (tmp_path / "new").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "new" / f"{i}.png")
    new = Images(name=f"folder:{tmp_path / 'new'}", train=None, validation=None, test=None, batch_size=8)
    first: dict[str, Any] = {}
    for how in ("full", "lora"):
        config = Config(
            model=replace(flow, network=UNet(), conditional=False),
            data=new,
            steps=5,
            init_from=str(tmp_path / "base"),
            finetune=how,
            lora=LoRA(rank=2),
            parallel=Parallel(devices=1),
        )
        config = runs_base.resolve_config(config)
        data, _, engine = build(config)
        base = runs_base.choose_base(config, tmp_path / how)
        assert base is not None
        runs_base.check_base(base, engine.abstract)
        weights = runs_base.read_weights(base, engine.abstract.frozen or engine.abstract.params)
        state = engine.init(weights)
        before = leaves(state.params)
        for step in range(2):
            state, metrics = engine.update(state, data.batch(0, step, range(8)))
            first.setdefault(how, jax.device_get(metrics["loss"]))
        still = {name for name, x in leaves(state.params).items() if np.array_equal(x, before[name])}
        assert not still
        if how == "lora":
            assert_same(state.frozen, weights)
            assert {path[-1] for path in flat(state.params)} == {"a", "b"}
    assert first["full"] == pytest.approx(first["lora"], rel=1e-6)


@pytest.mark.slow
def test_engines_and_devices_agree_on_an_adapted_model(monkeypatch):
    """Including FSDP, which shards the base too."""
    monkeypatch.setattr("gen.runtime.binding.MIN_SHARDED", 2)
    config = LM(network=replace(SMALL, layers=1, norm="rms", bias=False), optim=SGD)
    base = first_of(config.build(SPEC, 100), scale=0.2)
    model = config.with_adapter(LoRA(rank=4, path="(query|up)/kernel$")).build(SPEC, 100)

    def after_three(how: Parallel) -> tuple[State, list[Mapping[str, Any]]]:
        engine = runtime_engine.compile_engine(model, how, 0, 8)
        state, metrics = engine.init(base), []
        for step in range(3):
            state, found = engine.update(state, batch_of(seed=step))
            metrics.append(jax.device_get(found))
        return state, metrics

    one = after_three(Parallel(devices=1))
    assert_same(one[0].frozen, base)
    for name in ("pmap on 4", "jit on 4", "fsdp on 4"):
        state, metrics = after_three(ENGINES[name])
        assert_close((state, metrics), one, 1e-5)
        shares = 4 if name == "fsdp on 4" else 1
        for tree, last in ((state.frozen, ()), (state.params, ("a",))):
            kernel = flat(tree)["transformer", "layers", "feed_forward", "up", "kernel", *last]
            assert kernel.addressable_shards[0].data.size == kernel.size // shares


def tree_of(rng: np.random.Generator) -> dict[str, Any]:
    """Returns matrices, some of them stacked, the kernels of two convolutions, and vectors."""
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        "dense": {"kernel": draw(6, 5), "bias": draw(5)},
        "layers": {"kernel": draw(3, 6, 5), "bias": draw(3, 5), "scale": draw(3, 6)},
        "convolution": {"kernel": draw(3, 2, 4, 7), "bias": draw(7)},
        "sound": {"kernel": draw(3, 4, 7)},
        "other": draw(6, 5),
    }


def test_low_rank_changes_follow_the_paper():
    """W + alpha / r A B, where B begins at zero. A convolution counts as the matrix over its whole window."""
    rng = np.random.default_rng(0)
    base, adapter = tree_of(rng), LoRA(rank=2, alpha=3.0, path=r"^\w+/(kernel|bias|scale)$")
    trained = quickly(adapter.begin)(KEY, base)
    shapes = {"/".join(path): x.shape for path, x in flat(trained).items()}
    assert shapes == {
        "dense/kernel/a": (6, 2),
        "dense/kernel/b": (2, 5),
        "layers/kernel/a": (3, 6, 2),
        "layers/kernel/b": (3, 2, 5),
        "convolution/kernel/a": (3 * 2 * 4, 2),
        "convolution/kernel/b": (2, 7),
        "sound/kernel/a": (3 * 4, 2),
        "sound/kernel/b": (2, 7),
    }
    merge = quickly(adapter.merge)
    assert_same(merge(trained, base), base)
    trained = jax.tree.map(lambda x: rng.normal(size=x.shape), trained)
    a, b = ({name: trained[name]["kernel"][part] for name in trained} for part in "ab")
    change = {
        "dense": a["dense"] @ b["dense"],
        "layers": np.stack([a["layers"][i] @ b["layers"][i] for i in range(3)]),
        "convolution": np.tensordot(a["convolution"].reshape(3, 2, 4, 2), b["convolution"], axes=1),
        "sound": (a["sound"] @ b["sound"]).reshape(3, 4, 7),
    }
    merged = merge(jax.tree.map(np.float32, trained), base)
    for name, of in change.items():
        np.testing.assert_allclose(merged[name]["kernel"], base[name]["kernel"] + 3 / 2 * of, rtol=1e-5, atol=1e-5)
    kept = lambda tree: {name: x for name, x in leaves(tree).items() if "kernel" not in name}
    assert_same(kept(merged), kept(base))


def test_a_begins_as_noise_that_keeps_the_scale_of_its_input():
    base = {"one": {"kernel": jnp.zeros((400, 3))}, "two": {"kernel": jnp.zeros((2, 5, 5, 3))}}
    trained: Any = quickly(LoRA(rank=50, path="kernel").begin)(KEY, base)
    one, two = (np.asarray(trained[name]["kernel"]["a"]) for name in ("one", "two"))
    assert one.std() == pytest.approx(1 / np.sqrt(400), rel=0.03)
    assert two.std() == pytest.approx(1 / np.sqrt(50), rel=0.05)
    assert abs(np.corrcoef(one[:50].ravel(), two.ravel())[0, 1]) < 0.1


def test_gradients_reach_the_adapter_alone():
    rng = np.random.default_rng(0)
    base, adapter = tree_of(rng), LoRA(rank=2, path="kernel$")
    trained = random_like(jax.eval_shape(lambda: adapter.begin(KEY, base)))

    def size(adapter: LoRA | None, trained: Any, frozen: Any) -> Any:
        return sum(jnp.square(x).sum() for x in jax.tree.leaves(adapters.merge_adapter(adapter, trained, frozen)))

    adapted, whole = (quickly(jax.grad(partial(size, of), argnums=(0, 1))) for of in (adapter, None))
    of_adapter, of_base = adapted(trained, base)
    assert all(np.abs(x).min() > 0 for x in jax.tree.leaves(of_adapter))
    assert not any(np.any(x) for x in jax.tree.leaves(of_base))
    assert_close(whole(base, {})[0], jax.tree.map(lambda x: 2 * x, base), 1e-6)


LENGTH = 3


def after_prefix(params: Any, arch: Any, prefix: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Returns logits [T, V] of a text after the prefix, which counts as more words without positions."""
    words = np.concatenate([params["embedding"]["embedding"], prefix])
    more: dict[str, Any] = {"embedding": {"embedding": words}}
    if arch.positions == "learned":
        nowhere = np.zeros_like(prefix)
        more["position"] = {"embedding": np.concatenate([nowhere, params["position"]["embedding"]])}
    text = [*range(len(words) - len(prefix), len(words)), *tokens]
    return reference(params | more, arch, text)[len(prefix) :, :VOCAB]


def prompted(arch: Any, ema: float = 0.0) -> tuple[core.GenerativeModel, Any]:
    """Returns a model with a learned prompt, and the weights of its base."""
    config = LM(network=arch, optim=SGD, ema=ema)
    model = config.with_adapter(Prompt(length=LENGTH)).build(SPEC, 100)
    return model, first_of(config.build(SPEC, 100))


def test_only_the_learned_prompt_is_trained_and_every_document_sees_it():
    model, base = prompted(SMALL)
    engine = runtime_engine.compile_engine(model, Parallel(devices=1), 0, 8)
    state, batch = engine.init(base), batch_of()
    assert state.params["prefix"].shape == (LENGTH, 16) and state.params.keys() == {"prefix"}
    words = base["transformer"]["embedding"]["embedding"]
    assert all((words == vector).all(1).any() for vector in np.asarray(state.params["prefix"])), "they begin as words"

    def loss_of(prefix: np.ndarray) -> float:
        logits = []
        for row in batch["tokens"][:, :-1]:
            documents = np.split(row, [at for at in np.flatnonzero(row == END) if at])
            logits.append(np.concatenate([after_prefix(base["transformer"], SMALL, prefix, d) for d in documents]))
        nats, weight = nats_of(np.stack(logits), batch)
        return (nats * weight).sum() / weight.sum()

    found = [np.array(state.params["prefix"])]
    for _ in range(2):
        expected = loss_of(found[-1])
        assert float(model.summarize(engine.evaluate(state, batch))["loss"]) == pytest.approx(expected, rel=1e-5)
        state, metrics = engine.update(state, batch)
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
        found.append(np.array(state.params["prefix"]))
    assert abs(loss_of(found[-1]) - loss_of(found[0])) > 1e-3
    assert np.abs(found[1] - found[0]).min(1).max() > 1e-6
    assert_same(state.frozen, base)


@pytest.mark.parametrize("arch", [SMALL, replace(ARCHS["rotary"], window=None)], ids=["learned", "rotary"])
@pytest.mark.slow
def test_decoding_after_a_learned_prompt_equals_whole_passes(arch):
    """Decoding has a cache. Beyond the context it reads the last half again."""
    prompts = PROMPTS
    model, base = prompted(arch)
    prefix = 0.4 * np.random.default_rng(1).normal(size=(LENGTH, 16))
    state = State(jnp.int32(0), {"prefix": jnp.asarray(prefix, jnp.float32)}, {}, frozen=base)
    n, width = 12, prompts.shape[1]
    write = quickly(lambda state: model.generate(state, KEY, {"prompt": prompts}, lm.Request(n=3, tokens=n)))
    made, longest = jax.device_get(write(state)), 0
    for prompt, said, found in zip(made["prompt"], made["samples"], made["log_probs"], strict=True):
        text, start = np.concatenate([prompt, said]), 0
        for i in range(width, width + int((said != PADDING).sum())):
            seen = text[start:i][text[start:i] != PADDING]
            logits = after_prefix(base["transformer"], arch, prefix, seen)[-1]
            assert found[i - width] == pytest.approx(log_softmax(logits)[text[i]], abs=1e-4), (i, start)
            if i - start == T:  # no room for this one
                start = i + 1 - T // 2
            longest = max(longest, i)
    assert longest >= T + 2


@pytest.mark.parametrize("name", ["rotary", "relative"])
@pytest.mark.slow
def test_padding_does_not_change_the_distance_to_a_learned_prompt(name):
    """Even if a sliding window has moved past it."""
    model, base = prompted(ARCHS[name])
    prefix = jnp.asarray(np.random.default_rng(1).normal(size=(LENGTH, 16)), jnp.float32)
    state = State(jnp.int32(0), {"prefix": prefix}, {}, frozen=base)
    request = lm.Request(n=1, tokens=6, temperature=0.0)
    write = quickly(lambda state, prompt: model.generate(state, KEY, {"prompt": prompt}, request)["log_probs"])
    for row, made in zip(PROMPTS, write(state, PROMPTS), strict=True):
        np.testing.assert_allclose(made, write(state, row[None, row != PADDING])[0], atol=1e-5)
