"""Opens a trained run: gives its config, data, model and checkpoints, and generates samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gen import config as configs
from gen import files, memory
from gen.config import Config, Parallel, walk
from gen.core import Array, Dataset, GenerativeModel, Medium, Request, RunView, Spec, State
from gen.data.text import tokenizers
from gen.errors import UserError, say
from gen.families import captions
from gen.families.labels import with_class_number
from gen.media import find_medium
from gen.runs import base as runs_base
from gen.runs import checkpoint, directory, owner
from gen.runs.directory import RunFacts
from gen.runtime import backend, engine

MAX_FILE_BYTES = 2**28
"""Largest size of a file that a data set keeps in a run directory, in bytes."""
MAX_COUNT = 2**31
"""Exclusive upper bound on the integers of a request, such as its number of samples."""


class Drawn(NamedTuple):
    """Samples that a run generated, and the options with which a medium shows them."""

    arrays: dict[str, np.ndarray]
    """The arrays that the model generated: {"samples": [n, ...], ...}."""
    options: Any
    """The medium's options as `Medium.complete` returns them, for `Medium.show`."""


@dataclass(frozen=True)
class TrainedRun:
    """A trained run, with the model that its config.json and spec.json describe. Create it with `open_run`.

    All computations run on the first device.
    """

    workdir: Path
    config: Config
    facts: RunFacts
    """All entries of config.json, such as the digest of the data and the base. Its config is as it was written."""
    spec: Spec
    model: GenerativeModel

    @property
    def checkpoints(self) -> Path:
        return self.workdir / "checkpoints"

    @property
    def medium(self) -> Medium:
        """The medium that shows the run's samples, for instance as images or text."""
        return find_medium(self.config.data, self.spec)

    @cached_property
    def abstract(self) -> State:
        """Shapes and dtypes of the model's state, on the first device. Raises: UserError if they don't fit in memory."""
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        return memory.check_fits(engine.on_one_device(shapes), self.workdir)

    def choose_step(self, step: int | None = None) -> int:
        """Returns `step` if its checkpoint is undamaged. None: returns the step of the best undamaged checkpoint by `save.best`.

        Raises: UserError if there is no such checkpoint, or if it is damaged.
        """
        if step is not None:
            if reason := checkpoint.damage(self.checkpoints, step):
                known = ", ".join(map(str, checkpoint.steps(self.checkpoints))) or "none"
                raise UserError(f"checkpoint {step} of {self.workdir}: {reason}; existing checkpoints: {known}")
            return step
        best = checkpoint.best(self.checkpoints, self.config.save, warn=_warn)
        if best is None:
            every = self.config.save.every
            raise UserError(f"{self.workdir} has no checkpoint yet; its training saves one every {every} steps")
        return best

    def digest(self, step: int) -> str:
        """Returns the SHA-256 of a checkpoint's manifest, which names each of its files."""
        return checkpoint.digest(self.checkpoints, step)

    def has_identity(self, digest: str) -> bool:
        """Returns whether `digest` is a digest of this run's identity, as this or an older version of gen computes it."""
        return not configs.identity_changed(digest, self.facts.config, self.config)

    def open_base(self, moved: str | None = None) -> runs_base.Base | None:
        """Opens the base that this run was begun with. None: it has no base. moved: the base's run directory, if it was moved.

        Raises: UserError if the base does not exist, or has changed.
        """
        return runs_base.base_of_run(self.workdir, self.facts, moved)

    def restore(self, step: int, base: str | None = None) -> State:
        """Returns the state of a checkpoint with an empty optimizer state, on the first device.

        base: where the base of an adapter is now, if it was moved.

        Raises: UserError if the checkpoint does not fit the model, or if the base is missing.
        """
        state = checkpoint.restore(self.checkpoints, step, self.abstract, items=("params", "ema", "stats"))
        if jax.tree.leaves(self.abstract.frozen):
            state = runs_base.with_base(state, self.abstract, self.open_base(base))
        # The item "step" was not restored.
        return replace(state, step=jax.numpy.int32(step))

    def reference(self) -> dict[str, np.ndarray]:
        """Returns the arrays of reference.npz: {feature: validation examples [n, ...]} after preprocessing, and arrays of evaluations.

        {}: the file does not exist, and no checkpoint says that it did. Raises: UserError if the file is damaged, or if its
        examples are not those that the run was trained with.
        """
        found = directory.read_reference(self.workdir, self.spec)
        # Evaluations change the other arrays between checkpoints, so only the examples are compared.
        examples = owner.sums_of({name: array for name, array in found.items() if name in self.spec})
        folder = self.checkpoints
        known = [
            theirs.reference for step in checkpoint.steps(folder) if (theirs := owner.read_owner(folder / str(step)))
        ]
        if known and examples not in known:
            if not found:
                raise UserError(f"{self.workdir} has no reference.npz; training the run again makes one")
            raise UserError(
                f"{self.workdir}/reference.npz has changed since the run's checkpoints were saved; the fix: restore it, or start "
                "the training again, which makes it"
            )
        return found

    def read_file(self, name: str) -> bytes:
        """Returns the content of a file that the data set keeps in the run, such as tokenizer.json.

        Raises: UserError if it is missing.
        """
        try:
            return files.read_bytes(self.workdir / name, MAX_FILE_BYTES)
        except FileNotFoundError:
            raise UserError(f"{self.workdir} has no {name}; copy it from the original run") from None

    def view(self) -> RunView:
        """Returns the parts of the run that a medium may read."""
        return RunView(self.config.data, self.spec, self.read_file, self.reference, self.build_data)

    def build_data(self, data_dir: str | None = None, **changes: Any) -> Dataset:
        """Returns the data set that the run was trained on.

        data_dir: folder of the files now, for kinds of data with the field `data_dir`. changes: {field of the config's data:
        value}, for fields that do not change the content of the data, such as `batch_size`.

        Raises: UserError if the data have changed since training (their digests differ).
        """
        data = self.config.data
        if data_dir is not None and any(hasattr(each, "data_dir") for each in (data, getattr(data, "data", None))):
            changes["data_dir"] = data_dir
        # A tokenizer that was trained on the data is trained again. Any other tokenizer is read from the run's copy, because the
        # original file may be gone.
        was_trained = runs_base.text_tokenizer(data) in tokenizers.TRAINED and self.config.init_from is None
        text = self.workdir if (self.workdir / tokenizers.FILE).exists() and not was_trained else None
        # A stranger's config must not make gen read another run, so images are always encoded by the run's copy of the tokenizer.
        data = runs_base.with_tokenizers(runs_base.with_changes(data, changes), text, codec=self.workdir)
        found = data.build()
        if not directory.is_same_data(self.facts.data, found, self.workdir):
            raise UserError(f"the data are not those that {self.workdir} was trained on (their digests differ)")
        return found

    def to_images(self, samples: Mapping[str, Array]) -> Mapping[str, Array]:
        """Decodes samples that encode images or sound, such as codes. Other samples are returned unchanged."""
        return self.medium.to_images(samples, self.view())

    def draw(self, step: int, seed: int, request: Request, options: Any, base: str | None = None) -> Drawn:
        """Generates samples with the inputs that the medium's options ask for, such as prompts or pictures.

        options: of the medium, as `Medium.read_options` returns them. base: where the base of an adapter is now, if it was moved.

        Raises: UserError if the options do not fit the request or the run; also as `generate`.
        """
        view, medium = self.view(), self.medium
        options = medium.complete(options, request, view)
        medium.check(options, request, view)
        given = medium.give(options, view)
        arrays = self.generate(step, seed, request, given.arrays, given.functions, base)
        if given.finish is not None:
            given.finish(arrays)
        return Drawn(arrays, options)

    def generate(
        self,
        step: int,
        seed: int,
        request: Request,
        given: Mapping[str, np.ndarray] | None = None,
        functions: Mapping[str, Callable[..., object]] = {},
        base: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the arrays that the model generates: {"samples": [n, ...], ...}.

        The result depends only on the run, the checkpoint `step`, the seed, the request and the given arrays.

        given: input arrays of the model's `generate`; None: the arrays of `reference`. functions: {argument of the model's
        `generate`: function}. base: where the base of an adapter is now, if it was moved.

        Raises: UserError if the model does not take the functions or prompts, if the request names a class that the data don't have,
        if a number of the request is too large, or if memory does not suffice.
        """
        request = with_class_number(request, self.spec)
        for name, value in vars(request).items():
            # JAX has no arrays of such a length, and raises several kinds of errors.
            if isinstance(value, int) and value >= MAX_COUNT:
                raise UserError(f"{name} is {value}; it must be below {MAX_COUNT}")
        # Only the `generate` of models that write token by token has parameters for such functions.
        if functions.keys() - inspect.signature(self.model.generate).parameters.keys():
            raise UserError("the model writes at all positions at once; leave out --stream and --stop")
        state = self.restore(step, base)
        inputs = state, jax.random.key(seed), self.reference() if given is None else given
        # Compiled before it runs, to know its memory: if memory ran out, the system might kill other processes.
        lowered = jax.jit(partial(self.model.generate, request=request, **functions)).lower(*inputs)
        # A model that reads no captions would ignore a prompt, and the user would not notice.
        if captions.GIVEN in inputs[-1] and "captions" not in lowered.out_info:
            raise UserError(f"the model of {self.workdir} was trained without reading captions; leave --prompt out")
        program = lowered.compile()
        if size := program.memory_analysis():
            memory.check_memory(size.temp_size_in_bytes + size.output_size_in_bytes, "generating these samples")
        return jax.device_get(program(*inputs))


def open_run(workdir: Path, trust: Sequence[str] = ()) -> TrainedRun:
    """Opens the run in a directory. trust: modules outside gen that its config may name; they are imported.

    Raises: UserError if there is no run, or if its config.json, spec.json or tokenizer.json is damaged, or has changed since its
    checkpoints were saved.
    """
    # JAX must be started before the first array is made, because its settings are fixed from then on.
    backend.start_backend(Parallel())
    config, facts = directory.read_config(workdir, trust)
    spec = directory.read_spec(workdir)
    checkpoint.check_owner(workdir, owner.warn)
    return TrainedRun(workdir, config, facts, spec, config.model.build(spec, config.steps))


def sample_command(workdir: Path, config: Config) -> str:
    """Returns the command line that samples a run, with --trust for the packages outside gen that its config names."""
    classes = {type(x) for x in walk(config) if is_dataclass(x)}
    packages = sorted({cls.__module__.partition(".")[0] for cls in classes} - {"gen"})
    return " ".join([f"python sample.py {workdir}", *(f"--trust {name}" for name in packages)])


def _warn(text: str) -> None:
    say(f"warning: {text}")
