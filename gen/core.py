"""The types that every family, every data set and every engine agree on."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

LARGEST = 2**26
"""Numbers of an example at most, and classes or tokens to choose from."""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
USERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
USERS += (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)  # of a path that was named
LAUNCH = {"launch": True}
"""Metadata of a config's field that may change between launches of one run: it is no part of the run's identity."""

Array = jax.Array
Key = jax.Array
Params = Any
Batch = dict[str, Array]
HostBatch = dict[str, np.ndarray]
Metrics = dict[str, Array]
Sums = dict[str, tuple[Array, Array]]
Rules = tuple[tuple[str, int | None], ...]
"""(regular expression, axis; None: none) pairs; the first that is found in an array's path counts."""


REQUEUE = 75
"""Exit status of a run that was stopped and wants to be started again (EX_TEMPFAIL)."""


class UserError(Exception):
    """A mistake of the person at the terminal: a short message that names the thing and the fix. Exit status 2."""


class Requeue(BaseException):
    """Nobody's mistake: a machine was taken back, or another host is gone. The same command goes on. Exit status REQUEUE. As
    KeyboardInterrupt, it is no Exception: nothing on the way may take it for one."""


@dataclass(frozen=True)
class Feature:
    """What one entry of a batch holds, as a model sees it (after preprocessing)."""

    shape: tuple[int, ...]
    """Shape of one example, without the batch axis."""
    dtype: str = "float32"
    """Its dtype by name."""
    classes: int | None = None
    """Number of classes, if it is a label in [0, classes)."""
    vocab: int | None = None
    """Size of the vocabulary, if it is tokens in [0, vocab)."""
    end: int | None = None
    """The token that stands between documents, if it is tokens: each document begins with it."""
    sample_rate: int | None = None
    """Samples per second in Hz, if it is audio."""
    levels: int | None = None
    """Number of equally spaced values in [-1, 1] that the feature takes: 256 for bytes, 2 if binarized; None if unknown."""
    dequantized: bool = False
    """Whether uniform noise of one level's width was added, so that a density bounds the mass of the levels."""


Spec = Mapping[str, Feature]


@dataclass(frozen=True)
class Adapter:
    """How a base is adapted: a few parameters are trained beside weights that stay as they are. Subclass it to add a way."""

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        """What is trained, as it is before the first step: with it, the networks do what the base does, or nearly."""
        raise NotImplementedError

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        """The parameters that the networks take."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that training changes, and all that a checkpoint holds: arrays only. No random key: a step's key is
    fold_in(key(seed), step)."""

    step: Array
    """int32[]. The number of updates done; never goes back."""
    params: dict[str, Params]
    """What is trained, by player or part."""
    opt_state: dict[str, optax.OptState]
    """By optimizer."""
    ema: dict[str, Params] = field(default_factory=dict)
    """Running averages of params that samples are drawn from; {} = use params."""
    stats: dict[str, Any] = field(default_factory=dict)
    """What is estimated rather than descended: batch statistics, codebook averages."""
    frozen: dict[str, Params] = field(default_factory=dict)
    """Read, never written, nor saved: a fine-tuning base, another run's tokenizer."""


class GenerativeModel(NamedTuple):
    """A generative model as pure functions, as optax pairs init with update.

    `update`, `evaluate` and `test` run under a mapped axis named "data" (the devices, or an axis of size one) on a part
    of the batch; every example carries its position `row` in the whole batch and its `weight` (0 = padding).
    """

    init: Callable[..., State]
    """(key) -> the state of step 0; (key, params) -> the same that starts from these, or stands on them if it is adapted."""
    update: Callable[[State, Batch, Key], tuple[State, Metrics]]
    """One training step; metrics are scalars, already averaged over "data"."""
    evaluate: Callable[[State, Batch, Key], Sums]
    """{name: (total, count)} of a batch, summed over "data": exact under padding and any sharding. Run during training."""
    test: Callable[[State, Batch, Key], Sums]
    """As `evaluate`, as thorough as published numbers are. Run once, on the best checkpoint."""
    summarize: Callable[[Mapping[str, tuple[Any, Any]]], dict[str, Any]]
    """Sums of a split -> metrics. Scalars are logged; vectors are kept in the run's reference.npz."""
    generate: Callable[..., dict[str, Array]]
    """(state, key, given, request) -> {"samples": ...}. `given` holds arrays (images to change, prompts); `request` is
    the family's frozen dataclass, of which sample.py makes its command line."""
    request: type
    """The class of `request`."""
    protocol: Mapping[str, Mapping[str, Any]]
    """{metric: how it is estimated}; stored beside the number."""
    batches: int | None = None
    """Batches that an update takes, stacked on a leading axis [n, B, ...]; None: one, without that axis."""
    together: int = 1
    """Examples that must be on one device: a batch there is a multiple of it."""
    rules: Rules = ()
    """Which axis of which parameters devices divide that share an example (--parallel.tensor)."""


@dataclass(frozen=True)
class FamilyConfig:
    """A config's `model`: hyper-parameters that build a family. Subclass it to add one."""

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """The model for examples of `spec`, trained for `steps` (schedules read it)."""
        raise NotImplementedError

    def tiny(self) -> FamilyConfig:
        """The same model, as small as the contract tests want it."""
        raise NotImplementedError

    def inherit(self, base: FamilyConfig, spec: Spec) -> FamilyConfig:
        """This config with what decides the shapes of parameters taken from the base's, which has examples of `spec`.

        Raises: UserError if it is another family's.
        """
        if type(self) is not type(base):
            family = lambda config: type(config).__module__
            raise UserError(f"the base is of {family(base)}, and this config of {family(self)}; choose a config of it")
        return self

    def adapted(self, adapter: Adapter | None) -> FamilyConfig:
        """The config of this model with its parameters as a fixed base, and the adapter trained; None: without one again.

        Raises: UserError if the family has no adapters.
        """
        raise UserError(f"{type(self).__module__} has no adapters; the fix: --finetune full")


class Dataset(NamedTuple):
    """Examples as pure functions of (seed, step, row): random access, no iterator state."""

    spec: Spec
    """What the model sees: features after `preprocess`."""
    sizes: dict[str, int]
    """Number of examples of "train", "validation" and "test"."""
    digest: str
    """SHA-256 over what the examples are made from."""
    batch: Callable[[int, int, range], HostBatch]
    """(seed, step, rows) -> those rows of a training batch: uint8 and integers, with "row" and "index"."""
    evaluation: Callable[..., Iterator[HostBatch]]
    """(split, batch size) -> the split in order, the last batch padded; "weight" is 0 on padding. (split, batch size, rows) ->
    those rows of each batch."""
    preprocess: Callable[[Batch, Key, bool], Batch]
    """(batch, key, training) -> what the model sees. Runs in the compiled step; its noise belongs to (key, row)."""
    files: Mapping[str, bytes] = {}
    """What a run keeps of the data beside their spec, by file name: a tokenizer."""
    protocol: Mapping[str, Any] = {}
    """How the evaluation splits are read, stored beside each number."""
    baselines: Callable[[], dict[str, float]] = dict
    """() -> {metric: what a trivial model reaches on the test split}, stored beside the model's own."""


@dataclass(frozen=True)
class DataConfig:
    """A config's `data`. Subclass it to add a kind of data."""

    batch_size: int = 128
    """Examples a step, over all devices and hosts."""

    def build(self) -> Dataset:
        raise NotImplementedError


def classes(spec: Spec) -> int:
    """The number of classes of the label. Raises: UserError if there is none."""
    label = spec.get("label")
    if label is None or label.classes is None:
        raise UserError(
            "a conditional model needs labels, and the data have none (folder: give each class a sub-folder)"
        )
    return label.classes


def labels(n: int, asked: int | None, classes: int | None) -> Array | None:
    """int32 [n] to generate: the class asked for, or all in turn; None of an unconditional model.

    Raises: UserError for a label that the model doesn't have.
    """
    if asked is not None and (classes is None or not 0 <= asked < classes):
        has = "is not conditional" if classes is None else f"has labels 0 to {classes - 1}"
        raise UserError(f"label {asked} asked for, and the model {has}")
    if classes is None:
        return None
    index = jnp.arange(n, dtype=jnp.int32)
    return index % classes if asked is None else jnp.full_like(index, asked)


def dtypes(dtype: str, param_dtype: str) -> dict[str, Any]:
    """Of activations and of parameters, as Flax modules take them. Raises: UserError for float64 while JAX has none."""
    if "float64" in (dtype, param_dtype) and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError("float64 is float32 unless JAX is told otherwise; the fix: JAX_ENABLE_X64=1 in the environment")
    return {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}


def cache_folder() -> Path:
    """Where what can be made again is kept for the user: $XDG_CACHE_HOME/gen, by default ~/.cache/gen."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gen"


def expanded(path: Path | str) -> Path:
    """The path with ~ as the user's home. Raises: UserError for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from None


def positive(**numbers: float) -> None:
    """Raises UserError for the first of the named numbers that is not finite and above zero."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}; it must be above 0")


def checked_seed(seed: int) -> int:
    """Raises UserError for a seed that is no uint32."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2**32")
    return seed


def command(main: Callable[[], None], leave: Callable[[int], Any] = sys.exit) -> None:
    """Run an entry point: a person's mistake or a full or read-only disk is one line and exit status 2, a bug keeps its
    traceback. leave: how the process ends if it fails."""
    try:
        main()
    except UserError as error:
        leave(_fail(f"error: {error}"))
    except Requeue as stop:
        _fail(str(stop))
        leave(REQUEUE)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(141)
    except MemoryError as error:
        leave(_fail(f"error: out of memory: {error}"))
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint, if there is one")
        leave(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in USERS:
            leave(_fail(f"error: {error.filename or 'writing'}: {error.strerror}"))
        traceback.print_exc()
        leave(1)


def _fail(message: str) -> int:
    print(printable(message), file=sys.stderr, flush=True)
    return 2


def by_path(function: Any, params: Params) -> Any:
    """Map `function(path, leaf)` over a tree; paths are joined by "/"."""
    return jax.tree_util.tree_map_with_path(lambda p, leaf: function(path_name(p), leaf), params)


def path_name(path: tuple[Any, ...]) -> str:
    """ "encoder/Dense_0/kernel" for a key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def printable(text: str) -> str:
    """The text with what would command a terminal (control characters but newline and tab), or can't be encoded, escaped."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def mean(tree: Any) -> Any:
    """Average over the mapped axis "data": the devices under pmap, an axis of size one under jit."""
    return jax.lax.pmean(tree, "data")


def total(tree: Any) -> Any:
    """Sum over the mapped axis "data"."""
    return jax.lax.psum(tree, "data")


def norm(tree: Any) -> Array:
    """The Euclidean norm of all numbers of the tree: of each array the product with itself, which writes down no squares."""

    def square(x: Array) -> Array:
        axes = tuple(range(x.ndim))
        whole = jnp.promote_types(x.dtype, jnp.float32)
        return jax.lax.dot_general(x, x, ((axes, axes), ((), ())), "highest", preferred_element_type=whole)

    return jnp.sqrt(sum(map(square, jax.tree.leaves(tree)), jnp.zeros(())))


spread: ContextVar[Callable[[Array], Array]] = ContextVar("spread", default=lambda x: x)
"""Keeps activations [B, ...] spread over devices by their examples: an engine that shards the state sets it while a network
is traced. Without, the compiler may as well spread them as the weights are, and send activations where weights are smaller."""


descending: ContextVar[Callable[[Any], None]] = ContextVar("descending", default=lambda backward: None)
"""Is shown each backward pass that `descend` traces: a pytree of what it keeps of the forward pass (see gen.plan)."""


def descend(
    loss: Callable[[Params, Batch], tuple[Array, Any]],
    params: Params,
    opt_state: optax.OptState,
    tx: optax.GradientTransformation,
    batch: Batch,
    parts: int = 1,
) -> tuple[Params, optax.OptState, Array, Any, Params]:
    """One optimizer step on `loss(params, batch) -> (scalar, aux)`: params, opt_state, loss, aux, gradients. The only place where
    gradients are averaged: over "data", and before that over so many parts of the batch, taken one after the other."""

    def of(part: Batch) -> Any:
        value, backward, aux = jax.vjp(lambda params: loss(params, part), params, has_aux=True)
        descending.get()(backward)
        return (value, aux), backward(jnp.ones_like(value))[0]

    if parts == 1:
        (value, aux), grads = of(batch)
    else:
        # Every parts-th example, so that a batch that is sharded stays where it is.
        each = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
        shapes = jax.eval_shape(of, jax.tree.map(lambda x: x[0], each))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
        add = lambda sums, part: (jax.tree.map(jnp.add, sums, of(part)), None)
        sums, _ = jax.lax.scan(add, zeros, each)
        (value, aux), grads = jax.tree.map(lambda x, like: (x / parts).astype(like.dtype), sums, shapes)
    grads = mean(grads)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value, aux, grads


def average(ema: Params, params: Params, decay: float, step: Array) -> Params:
    """The running average, one step on. It starts as the parameters are: its decay grows from 1/10 to `decay`."""
    now = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: a + ((1 - now) * (p - a)).astype(a.dtype), ema, params)


def per_example(draw: Callable[[Key], Any], key: Key, row: Array) -> Any:
    """`draw(key of the row)` for each row [B] -> [B, ...]: noise belongs to the example, whatever device holds it."""
    return jax.vmap(lambda r: draw(jax.random.fold_in(key, r)))(row)
