"""Media from outside gen: any kind of data can be trained on and sampled, and a kind of data may define its medium."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gen
from gen import axis, sample
from gen import config as configs
from gen.config import Config, Log, Parallel, Save
from gen.core import (
    Batch,
    Data,
    Dataset,
    Family,
    Feature,
    GenerativeModel,
    HostBatch,
    Key,
    Medium,
    Metrics,
    Request,
    RunView,
    Shown,
    State,
    Sums,
)
from gen.errors import UserError
from gen.media import MEDIA, find_axes, find_medium
from gen.media.arrays import ARRAYS, plot
from gen.media.image import IMAGE
from gen.media.text import TEXT
from gen.runs import directory
from gen.train import train

COUNT = 40  # points in each split
MEAN, SCALE = (3.0, -1.0), (1.0, 0.5)


@dataclass(frozen=True)
class Table(Medium):
    """Points as lines of numbers."""

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        return Shown({"samples.csv": "".join(f"{x},{y}\n" for x, y in np.asarray(samples["samples"])).encode()})


@dataclass(frozen=True)
class Points(Data):
    """Normally distributed points in the plane, in memory."""

    as_table: bool = False

    def build(self) -> Dataset:
        rng = np.random.default_rng(0)
        points = {split: rng.normal(MEAN, SCALE, (COUNT, 2)) for split in ("train", "validation", "test")}

        def read(split: str, index: np.ndarray) -> HostBatch:
            weight = (index < COUNT).astype(np.float32)
            row = np.arange(len(index), dtype=np.int32)
            point = points[split][index % COUNT].astype(np.float32)
            return {"point": point, "row": row, "index": index.astype(np.int32), "weight": weight}

        def batch(seed: int, step: int, rows: range) -> HostBatch:
            return read("train", (step * self.batch_size + np.array(rows)) % COUNT)

        def evaluation(split: str, size: int, rows: range | None = None) -> Iterator[HostBatch]:
            for start in range(0, COUNT, size):
                yield read(split, start + np.array(rows or range(size)))

        spec = {"point": Feature((2,))}
        sizes = dict.fromkeys(points, COUNT)
        return Dataset(spec, sizes, "0" * 64, batch, evaluation, lambda batch, key, training: batch)

    def medium(self) -> Medium | None:
        return Table() if self.as_table else None


@dataclass(frozen=True)
class Normal(Family):
    """A normal distribution with a learned mean and scale of each coordinate."""

    lr: float = 0.3

    def build(self, spec: Mapping[str, Feature], steps: int) -> GenerativeModel:
        shape = spec["point"].shape

        def init(key: Key) -> State:
            return State(jnp.int32(0), {"normal": {"mean": jnp.zeros(shape), "log_scale": jnp.zeros(shape)}}, {})

        def nats(params: Any, batch: Batch) -> jax.Array:
            mean, log_scale = params["normal"]["mean"], params["normal"]["log_scale"]
            z = (batch["point"] - mean[None]) * jnp.exp(-log_scale)[None]
            return (0.5 * z**2 + log_scale[None] + 0.5 * np.log(2 * np.pi)).sum(axis=-1)

        def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
            found = jax.value_and_grad(lambda params: nats(params, batch).mean())(state.params)
            loss, gradient = axis.mean(found)
            params = jax.tree.map(lambda p, g: p - self.lr * g, state.params, gradient)
            return replace(state, step=state.step + 1, params=params), {"loss": loss}

        def evaluate(state: State, batch: Batch, key: Key) -> Sums:
            weight = batch["weight"]
            return {"loss": (axis.total((nats(state.params, batch) * weight).sum()), axis.total(weight.sum()))}

        def generate(state: State, key: Key, given: Any, request: Request) -> dict[str, jax.Array]:
            params = state.params["normal"]
            noise = jax.random.normal(key, (request.n, *shape))
            return {"samples": params["mean"][None] + jnp.exp(params["log_scale"])[None] * noise}

        return GenerativeModel(init, update, evaluate, generate, Request)


def config_of(data: Points) -> Config:
    return Config(
        model=Normal(),
        data=data,
        steps=60,
        evaluate_every=30,
        save=Save(every=30),
        log=Log(every=10, tensorboard=False),
        parallel=Parallel(devices=2),
    )


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """A run of an outside family on points, for which gen has no medium."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train(config_of(Points(batch_size=8)), tmp_path / "run")
    return tmp_path / "run"


def test_data_of_no_medium_train_and_are_sampled_as_arrays(workdir, capsys):
    assert {path.name for path in (workdir / "samples").iterdir()} >= {"step_0000030.png", "step_0000060.npz"}
    assert json.loads((workdir / "evaluation.json").read_text())["metrics"]["loss"] < 4
    train(config_of(Points(batch_size=8)), workdir)
    assert "is finished: 60 steps" in capsys.readouterr().out

    assert sample.main([str(workdir), "--n", "200", "--trust", "test_media", "--out", str(workdir / "out")]) == 0
    with np.load(workdir / "out" / "samples.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"].mean(axis=0), MEAN, atol=0.5)
    with Image.open(workdir / "out" / "samples.png") as image:
        assert image.size == (480, 480)
    assert sample.main(["--verify", str(workdir / "out" / "manifest.json")]) == 0
    assert "verified: samples.png, samples.npz, byte for byte" in capsys.readouterr().out


def test_an_output_that_is_no_folder_is_refused_before_samples_are_drawn(workdir, monkeypatch):
    monkeypatch.setattr(sample, "make_outputs", None)
    for out in (workdir / "config.json", workdir / "config.json" / "out"):
        with pytest.raises(UserError, match=r"config\.json is not a folder; the fix: another --out"):
            sample.main([str(workdir), "--n", "2", "--out", str(out)])


def test_a_command_opens_its_run_once(workdir, monkeypatch):
    opened = []
    for name in ("read_config", "read_spec"):
        read = getattr(directory, name)
        monkeypatch.setattr(directory, name, lambda *args, name=name, read=read: [opened.append(name), read(*args)][1])
    sample.main([str(workdir), "--n", "2", "--out", str(workdir / "out")])
    assert opened == ["read_config", "read_spec"]


def test_training_names_the_command_that_samples_the_run(workdir, capsys):
    (workdir / "evaluation.json").unlink()
    train(config_of(Points(batch_size=8)), workdir)
    assert f"next: python sample.py {workdir} --trust test_media" in capsys.readouterr().out


def test_a_kind_of_data_may_bring_its_medium(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train(config_of(Points(batch_size=8, as_table=True)), tmp_path / "run")
    assert len((tmp_path / "run" / "samples" / "step_0000060.csv").read_text().splitlines()) == 64
    assert sample.main([str(tmp_path / "run"), "--n", "3", "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"samples.csv", "samples.npz", "manifest.json"}


def test_a_config_of_a_gen_with_fewer_fields_is_not_a_changed_one(workdir, capsys):
    """A field that gen has added since the samples were drawn has its default, so the config is the same."""
    sample.main([str(workdir), "--n", "2", "--out", str(workdir / "out")])
    path, written = workdir / "out" / "manifest.json", workdir / "config.json"
    manifest, facts = (json.loads(file.read_text()) for file in (path, written))
    identity = configs.identity(config_of(Points(batch_size=8)))
    for fields in (identity, facts["config"]):
        del fields["finetune"]
    before = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    written.write_text(json.dumps(facts))
    for digest, says in ((before, False), (manifest["identity"], False), ("0" * 64, True)):
        path.write_text(json.dumps(manifest | {"identity": digest}))
        capsys.readouterr()
        assert sample.main(["--verify", str(path)]) == 0
        assert ("changed: config" in capsys.readouterr().out) == says


def test_a_run_is_opened_from_python(workdir):
    run = gen.open(workdir)
    arrays = run.generate(n=5, seed=3)
    assert arrays["samples"].shape == (5, 2)
    np.testing.assert_array_equal(run.generate(n=5, seed=3)["samples"], arrays["samples"])
    assert not np.array_equal(run.generate(n=5, seed=3, step=30)["samples"], arrays["samples"])
    assert run.show(arrays).keys() == {"samples.png", "samples.npz"}
    curve = run.metrics()
    assert curve["step"] == [10, 20, 30, 40, 50, 60] and curve["loss"][-1] < curve["loss"][0]
    assert run.metrics("validation")["step"] == [30, 60]
    assert run.config.steps == 60
    with pytest.raises(UserError, match="there is no setting 'nn'; did you mean n"):
        run.generate(nn=5)
    with pytest.raises(UserError, match=r"n is 10{20}; a request has at most 100000 samples"):
        run.generate(n=10**20)
    with pytest.raises(UserError, match="is not a run directory"):
        gen.open(workdir / "samples")


def test_importing_gen_imports_no_jax():
    subprocess.run([sys.executable, "-c", "import gen, sys; assert 'jax' not in sys.modules"], check=True, timeout=60)


def test_the_medium_is_that_of_the_features():
    image, tokens = Feature((8, 8, 1)), Feature((9,), "int32", vocab=5)
    assert find_medium(Points(), {"image": image}) is IMAGE
    assert find_medium(Points(), {"source": tokens, "tokens": tokens}) is TEXT
    assert find_medium(Points(), {"point": Feature((2,))}) is ARRAYS
    assert find_medium(Points(as_table=True), {"image": image}) == Table()
    assert (find_axes("image"), find_axes("label"), find_axes("tokens"), find_axes("point")) == (3, 0, 1, None)
    assert all(medium.features for medium in MEDIA)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (7,), (3, 4)])
def test_arrays_of_any_shape_have_a_plot(shape):
    samples = np.random.default_rng(0).normal(size=(5, *shape))
    samples.flat[0] = np.nan
    image = np.asarray(Image.open(io.BytesIO(plot(samples))))
    assert image.shape == (480, 480) and image.min() == 0 and image.max() == 255
    assert plot(np.zeros((5, *shape))).startswith(b"\x89PNG")
