"""Training with one optimizer: `Learner` makes the steps, and `family` builds a whole model from a loss per example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Generic, Literal, Self, TypeVar

import jax.numpy as jnp
import optax
import tyro

from gen import axis, core
from gen.core import LAUNCH, Adapter, Array, Batch, GenerativeModel, Key, Metrics, Params, Rules, State, Sums
from gen.errors import check_decay, check_positive
from gen.networks import dtypes
from gen.optim import Optimizer, adapters, descend

Examples = TypeVar("Examples")
Aux = TypeVar("Aux")
R = TypeVar("R", bound=core.Request)


@dataclass(frozen=True)
class LearnedFamily(core.Family):
    """Hyper-parameters of training with one optimizer. Subclass it to add the hyper-parameters of your model."""

    ema: float = 0.0
    """Decay of the moving average of the parameters, in [0, 1). The average, at least float32, is used for evaluation and sampling.
    0: no average."""
    optim: Optimizer = Optimizer()
    """Optimizer of the parameters."""
    adapter: Annotated[Adapter | None, tyro.conf.Suppress] = None
    """Adapter whose parameters are trained instead of the model's. --finetune sets it. None: all parameters are trained."""
    microbatches: int = field(default=1, metadata=LAUNCH)
    """Number of parts that a device's batch is divided into. Their gradients are computed one after the other and averaged, which
    gives the same update with less memory."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of activations."""
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of parameters. Their averages and the optimizer's moments are at least float32."""

    def __post_init__(self):
        check_decay(ema=self.ema)
        check_positive(microbatches=self.microbatches)

    def with_adapter(self, adapter: Adapter | None) -> Self:
        return replace(self, adapter=adapter)

    def dtypes(self) -> dtypes.Dtypes:
        """Returns the arguments {"dtype": ..., "param_dtype": ...} of Flax modules."""
        return dtypes.module_dtypes(self.dtype, self.param_dtype)

    def real_dtype(self) -> jnp.dtype:
        """Returns the dtype of a network's inputs, losses and noise: the dtype of activations, but at least float32."""
        return jnp.promote_types(self.dtype, jnp.float32)


Loss = Callable[[Params, Examples], tuple[Array, Aux]]
"""(parameters, examples) -> (loss [], aux), both means over the examples. aux: a pytree of other results, such as metrics.

Examples are a pytree of arrays [B, ...], such as a Batch."""


@dataclass(frozen=True)
class Learner:
    """Trains the parameters of a model, or of an adapter, with one optimizer.

    A family uses its methods to build the functions of a GenerativeModel.
    """

    config: LearnedFamily
    """The hyper-parameters of training."""
    name: str
    """Key of the optimizer's state in State.opt_state."""
    begin: Callable[[Key], dict[str, Params]]
    """Key -> the parameters of step 0."""
    tx: optax.GradientTransformation
    """The optimizer."""

    def init(self, key: Key, base: dict[str, Params] | None = None) -> State:
        """Returns the state of step 0, as GenerativeModel.init does.

        base: parameters to start from, {part: pytree}. With an adapter, they stay fixed, and the adapter's new
            parameters are trained. None: the parameters that `begin` returns.
        """
        # With an adapter, the parameters become the fixed base, and the adapter's own parameters are trained.
        trained, frozen = adapters.split_trained(self.config.adapter, key, base or self.begin(key))
        return State(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            opt_state={self.name: self.tx.init(trained)},
            # The average begins at the parameters themselves, so it needs no correction for a start at zero.
            ema=descend.begin_average(trained) if self.config.ema else {},
            frozen=frozen,
        )

    def weights(self, state: State) -> dict[str, Params]:
        """Returns the parameters for evaluation and sampling: the moving averages, or the raw parameters if there is no average.

        If an adapter is trained, it is merged into the fixed parameters of the base.
        """
        return adapters.merge_adapter(self.config.adapter, state.ema or state.params, state.frozen)

    def step(
        self, state: State, loss: Loss[Examples, Aux], batch: Examples, weight: Array | None = None
    ) -> tuple[State, Aux, Array]:
        """Makes one optimizer step. Returns the next state, the aux of `loss` on this device, and the norm of the gradient, [].

        loss: (parameters, examples) -> (mean loss [], aux), see `Loss`. batch: the examples of this device. weight: [],
        weight of this step's gradient in the mean, if gradients are accumulated over several steps, such as its number
        of tokens. Only for a learner that was made with `weighted`. None: all steps count equally.
        """

        # The gradient is taken with respect to the trained parameters alone; merging them with the base is part of the loss.
        def loss_of_trained(trained: dict[str, Params], part: Examples) -> tuple[Array, Aux]:
            return loss(adapters.merge_adapter(self.config.adapter, trained, state.frozen), part)

        opt_state = state.opt_state[self.name]
        parts = self.config.microbatches
        new = descend.descend(loss_of_trained, state.params, opt_state, self.tx, batch, parts, weight)
        ema = descend.update_average(state.ema, new.params, self.config.ema, state.step) if self.config.ema else {}
        state = replace(state, step=state.step + 1, params=new.params, opt_state={self.name: new.opt_state}, ema=ema)
        return state, new.aux, descend.norm(new.grads)


def make_learner(
    config: LearnedFamily, steps: int, name: str, begin: Callable[[Key], dict[str, Params]], weighted: bool = False
) -> Learner:
    """Returns the `Learner` of a run of `steps` training steps, with the optimizer that the config describes.

    name: key of the optimizer's state in State.opt_state. begin: random key -> the parameters of step 0. weighted:
    whether `Learner.step` is called with the weight of each batch, because batches differ, for instance, in their
    number of tokens.
    """
    return Learner(config, name, begin, config.optim.build(steps, weighted))


ExampleLoss = Callable[[Params, Batch, Key], Array | tuple[Array, Metrics]]
"""(parameters, examples, keys [B]) -> the loss of each example [B], or (the loss [B], {metric: [B]})."""
Sample = Callable[[Params, Key, Batch, R], dict[str, Array]]
"""(parameters, keys [n], input arrays such as prompts, request) -> {"samples": [n, ...], "labels": [n] if any, ...}.

n is request.n, the number of samples."""


def family(
    config: LearnedFamily,
    steps: int,
    *,
    init: Callable[[Key], Params],
    loss: ExampleLoss,
    sample: Sample[R],
    request: type[R],
    evaluate: ExampleLoss | None = None,
    rules: Rules = (),
    protocol: Mapping[str, Mapping[str, object]] | None = None,
) -> GenerativeModel:
    """Returns a GenerativeModel that is trained to minimize the mean of `loss` over examples. For an example, see examples/flow.py.

    Evaluation reports the mean of the loss on held-out examples as "loss", along with the other metrics. Moving averages, adapters,
    microbatches and training on several devices work without further code.

    steps: number of training steps of the run.
    init: key -> {name of a part of the model: parameters} of step 0.
    loss: (params, batch, keys) -> [B], or ([B], {metric: [B]}). `keys` has one key per example, made from the step and the
        example's position in the global batch. Draw all noise of an example from its key, with jax.vmap over keys. Then
        the noise does not depend on the number of devices. batch["step"] is int32 [B], the number of updates done:
        `schedule(value, steps)(batch["step"])` is a hyper-parameter that changes with the step.
    sample: (params, keys, given, request) -> {"samples": [n, ...], ...}. `keys` has one key per sample. `given` holds
        input arrays, such as prompts. Samples are float32 images in [-1, 1], or int32 tokens. Add "labels", int32 [n],
        if the samples have classes: labels.labels_to_generate(n, asked, classes, given).
    request: class of the argument `request` of `sample`: core.Request, labels.LabelRequest, or a frozen dataclass that
        is a subclass of one of them.
    evaluate: like `loss`, for held-out examples, for instance without dropout. None: `loss`.
    rules: which axis of which parameters tensor parallelism shards.
    protocol: {metric: how it is estimated}, stored with each reported metric.

    Fields of GenerativeModel that are not arguments here can be set on the result:
    `family(...)._replace(summarize=...)`.
    """
    parts = _LossModel(make_learner(config, steps, "model", init), loss, evaluate or loss, sample)
    return GenerativeModel(
        init=parts.learner.init,
        update=parts.update,
        evaluate=parts.evaluate,
        generate=parts.generate,
        request=request,
        protocol=protocol or {},
        together=config.microbatches,
        rules=rules,
    )


@dataclass(frozen=True)
class _LossModel(Generic[R]):
    """The functions `update`, `evaluate` and `generate` of the GenerativeModel that `family` returns, as methods."""

    learner: Learner
    loss: ExampleLoss
    held_out: ExampleLoss
    sample: Sample[R]

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        def mean_loss(params: Params, part: Batch) -> tuple[Array, Metrics]:
            means = {name: value.mean() for name, value in _losses(self.loss, params, part).items()}
            return means["loss"], means

        state, metrics, gradient = self.learner.step(state, mean_loss, _with_keys(state, batch, key))
        return state, axis.mean(metrics) | {"gradient": gradient}

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        values = _losses(self.held_out, self.learner.weights(state), _with_keys(state, batch, key))
        return axis.mean_sums(batch, values)

    def generate(self, state: State, key: Key, given: Mapping[str, Array], request: R) -> dict[str, Array]:
        keys = axis.example_keys(key, jnp.arange(request.n))
        return self.sample(self.learner.weights(state), keys, dict(given), request)


def _with_keys(state: State, batch: Batch, key: Key) -> Batch:
    # Keys are an entry of the batch, so that microbatches divide them along with the examples.
    row = batch["row"]
    return batch | {"step": jnp.full_like(row, state.step), "keys": axis.example_keys(key, row)}


def _losses(loss: ExampleLoss, params: Params, batch: Batch) -> Metrics:
    """Returns {"loss": [B], metric: [B]} of a batch with its random keys [B] in the entry "keys", in at least float32.

    Raises: ValueError if the loss or a metric is not one number per example.
    """
    keys = batch["keys"]
    # The loss gets the keys as an argument of their own, so that they cannot be overlooked.
    found = loss(params, {name: value for name, value in batch.items() if name != "keys"}, keys)
    value, metrics = found if isinstance(found, tuple) else (found, {})
    values = {"loss": value, **metrics}
    for name, x in values.items():
        if jnp.shape(x) != keys.shape:
            raise ValueError(
                f"{name} has the shape {jnp.shape(x)} for {len(keys)} examples; return one number per example, [B], and leave the "
                "mean over examples to learner.family"
            )
    return descend.at_least_float32(values)
