"""Labels that a language model predicts, and its likelihoods in one table."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import axis
from gen.config import Parallel
from gen.core import Array, Batch, State
from gen.data.text import Text, tokenizers
from gen.errors import UserError
from gen.evaluate import scores
from gen.evaluation.score import Options
from gen.media import text as media_text
from gen.metrics import labels
from gen.runs import directory, trained
from gen.train import train

COLOURS = ["blue", "green", "red"]

pytestmark = pytest.mark.slow  # a model is trained until it has learned the labels


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory) -> Iterator[Path]:
    """A model of lines whose label is the colour that the line names."""
    folder = tmp_path_factory.mktemp("labelled")
    lines = [
        {"text": f"a {COLOURS[i % 3]} {'kite' if i % 2 else 'door'} {i}", "label": COLOURS[i % 3]} for i in range(240)
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny("lm_pydoc")
    data = replace(config.data, name=f"jsonl:{folder / 'lines.jsonl'}", length=48, batch_size=16)
    network = replace(config.model.network, width=32)
    config = replace(config, model=replace(config.model, network=network), data=data, steps=300, evaluate_every=0)
    config = replace(config, parallel=Parallel(devices=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train(config, folder / "run")
        yield folder / "run"


@pytest.fixture(scope="module")
def parts(workdir):
    run = trained.open_run(workdir)
    return run.build_data(), run.model, run.restore(run.choose_step())


def test_the_likelihood_of_a_text_is_the_product_of_its_parts(parts):
    data, model, state = parts
    end = data.spec["tokens"].end

    def words(text: str) -> list[int]:
        return tokenizers.encode(tokenizers.load(data.files["tokenizer.json"]), text)

    prompt, a, b = [end, *words("a red door 7\n")], words("re"), words("d")
    pairs = [(prompt, a), ([*prompt, *a], b), (prompt, [*a, *b])]
    first, second, both = labels.negative_log_likelihoods(data, model, state, pairs)
    assert both == pytest.approx(first + second, rel=1e-5)


def test_a_model_that_has_learned_the_rule_predicts_the_labels(parts):
    data, model, state = parts
    score = labels.score_labels(data, model, state)
    assert score.n == data.sizes["test"]
    assert score.accuracy > 0.9 > 0.6 > score.majority
    shots = labels.score_labels(data, model, state, shots=1)
    assert shots.majority == score.majority
    assert shots.accuracy != score.accuracy, "it was never trained on two lines in a window"
    with pytest.raises(UserError, match="longer than the 43 tokens that fit in a window"):
        labels.score_labels(data, model, state, shots=9)
    with pytest.raises(UserError, match="999 examples before each prompt are more than"):
        labels.score_labels(data, model, state, shots=999)


@pytest.mark.parametrize(("shots", "ending"), [(0, 0), (2, 0), (2, ord("\n") + 1)], ids=["document", "shots", "line"])
def test_a_label_that_begins_another_one_is_told_by_its_end(tmp_path, monkeypatch, shots, ending):
    """The model knows: after an "a" comes 1, after a "b" comes 10, and then the token `ending`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines = [{"text": f"{'ab'[i % 2]} {'x' * (i // 2)}", "label": ("1", "10")[i % 2]} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Text(name=f"jsonl:{tmp_path / 'a.jsonl'}", split="hash:0.2", length=96).build()
    a, b, one, zero = (ord(letter) + 1 for letter in "ab10")

    def evaluate(state: State, batch: Batch, key: Array) -> Any:
        tokens, counted = batch["tokens"][0], batch["counted"][0]
        place = jnp.arange(len(tokens))
        is_b = tokens[jnp.where((tokens == a) | (tokens == b), place, -1).max()] == b
        right = jnp.where((tokens == one) & is_b, zero, ending)[:-1]
        right = jnp.where(counted[:-1] == 0, one, right)
        nats = jnp.where(tokens[1:] == right, 0.1, 3.0)
        return axis.total({"loss": ((nats * counted[1:]).sum(), counted.sum())})

    model: Any = SimpleNamespace(evaluate=evaluate)
    state: Any = ()
    score = labels.score_labels(data, model, state, shots=shots)
    assert score.accuracy == 1 > score.majority


def test_numbers_of_training_are_shown_and_others_computed(workdir):
    before = directory.read_evaluation(workdir)
    assert before is not None
    found = scores(Options((workdir,)))[str(workdir)]
    assert found.keys() == {"loss", "perplexity", "bits_per_byte", "label_accuracy", "label_majority"}
    assert {name: found[name] for name in before.metrics} == before.metrics
    after = directory.read_evaluation(workdir)
    assert after is not None and after.protocol["loss"] == before.protocol["loss"]
    assert after.protocol["label_accuracy"]["shots"] == 0
    assert after.protocol["label_accuracy"]["label_end"] == "counted"

    again = scores(Options((workdir,), ("likelihood",), split="validation"))[str(workdir)]
    assert np.isfinite(again["loss"])
    assert again["loss"] != found["loss"]
    computed = scores(Options((workdir,), ("likelihood",)))[str(workdir)]
    assert computed["loss"] == pytest.approx(found["loss"], rel=1e-6), (
        "computed again, it agrees with the number of training"
    )


def test_data_that_were_moved_are_named(workdir, tmp_path):
    lines = next((workdir.parent).glob("*.jsonl"))
    moved = tmp_path / "moved.jsonl"
    lines.rename(moved)
    try:
        with pytest.raises(UserError, match=r"lines\.jsonl"):
            scores(Options((workdir,)))
        found = scores(Options((workdir,), ("likelihood",), data_name=f"jsonl:{moved}"))
        assert np.isfinite(found[str(workdir)]["loss"])
        moved.write_text(moved.read_text().replace("kite", "boat"))
        with pytest.raises(UserError, match="not those that"):
            scores(Options((workdir,), data_name=f"jsonl:{moved}"))
    finally:
        moved.write_text(moved.read_text().replace("boat", "kite"))
        moved.rename(lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ("kid",)}, "kid is a metric of images"),
        ({"step": 3}, "no such checkpoint"),
        ({"request": ("temperature=0.5",)}, "don't generate anything"),
    ],
)
def test_options_that_do_not_fit_texts_are_refused(workdir, change, message):
    with pytest.raises(UserError, match=message):
        scores(replace(Options((workdir,)), **change))


def test_a_prompt_begins_like_the_pairs_of_the_training(workdir, parts):
    data, model, state = parts
    options = media_text.TextOptions(prompt=("a green kite 5\n",))
    run = trained.open_run(workdir)
    given = media_text.TEXT.give(options, run.view()).arrays
    same = media_text.TEXT.give(media_text.TextOptions(source=("a green kite 5",)), run.view()).arrays
    np.testing.assert_array_equal(same["prompt"], given["prompt"])
    assert given["prompt"][0, 0] == data.spec["tokens"].end
    made = model.generate(state, jax.random.key(0), given, model.request(n=1, tokens=8, temperature=0.0))
    written = media_text.join_texts(made, tokenizers.load(data.files["tokenizer.json"]), options)
    assert written == ["a green kite 5\ngreen"]
