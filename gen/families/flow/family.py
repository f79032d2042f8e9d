"""Flow matching (Lipman et al. 2023; Liu et al. 2023) and MeanFlow (Geng et al. 2025), on images or latents.

The modules of this folder:

family      the hyper-parameters, and the model that they build
objectives  training losses, from the line between an example and noise
masks       masks that show the network a part of an example, so that it learns to complete the rest
model       the velocity network on a batch, guidance, and samples
editing     pictures that a user gives: to inpaint, upscale, colorize, edit or translate
samplers    solvers of the differential equation
sampling    the request, and the functions from noise to examples and back
likelihood  bits per dimension of held-out examples
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax

from gen import core
from gen.core import Batch, GenerativeModel, Key, Params, Spec, State, Sums
from gen.errors import UserError, check_fraction, check_positive
from gen.families import learner
from gen.families.conditions import Conditions, find_conditions
from gen.families.flow.likelihood import Likelihood
from gen.families.flow.masks import Mask
from gen.families.flow.model import FlowModel, find_feature, find_source
from gen.families.flow.objectives import FlowMatching, Objective
from gen.networks.text_encoder import TextEncoder
from gen.networks.unet import UNet
from gen.networks.velocity import Architecture, Velocity, change_classes


@dataclass(frozen=True)
class Flow(learner.LearnedFamily):
    """A model of the velocity that moves noise to images or latents, trained on straight lines between both."""

    network: Architecture = UNet()
    """Layers of the velocity network."""
    objective: Objective = FlowMatching()
    """Training loss."""
    conditional: bool = False
    """Condition the velocity on the labels and captions of the data, whichever they have."""
    label_dropout: float = 0.1
    """Probability that a training example's label and caption are left out, in [0, 1]. Guidance needs a value above 0."""
    given: Mask | None = None
    """Mask that shows the network a part of each training example, such as AnyOf(), so that the model learns to complete
    pictures. None: the network only sees the noisy example."""
    likelihood_steps: int = 32
    """Steps of the differential equation's solver for bits_per_dim, in the final test."""
    likelihood_probes: int = 2
    """Number of random vectors from which each divergence in bits_per_dim is estimated, at least 2."""

    def __post_init__(self):
        super().__post_init__()
        check_fraction(label_dropout=self.label_dropout)
        check_positive(likelihood_steps=self.likelihood_steps)
        if self.likelihood_probes < 2:
            raise UserError(
                f"likelihood_probes is {self.likelihood_probes}; the error is estimated from their spread, so use at least 2"
            )

    def tiny(self) -> Flow:
        return replace(self, network=self.network.tiny(), likelihood_steps=2)

    def inherit(self, base: core.Family, spec: Spec) -> Flow:
        super().inherit(base, spec)
        assert isinstance(base, Flow)
        # The classes may differ from the base. `adopt` then replaces their parameters.
        return replace(self, network=base.network, given=base.given)

    def adopt(self, params: dict[str, Params], like: dict[str, Params]) -> dict[str, Params]:
        return {**params, "velocity": change_classes(params["velocity"], like["velocity"])}

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """Returns the model for the images or latents that `spec`, the features of the data, describes.

        Raises: UserError if the data have no images or latents, if the model is conditional and the data have no labels
        or captions, or if the data do not suit the network or the mask.
        """
        model, (_, feature) = self.flow_model(spec), find_feature(spec)
        weights = learner.make_learner(self, steps, "model", model.init).weights
        likelihood = Likelihood(model, feature, weights, self.likelihood_steps, self.likelihood_probes)
        parts = learner.family(
            self,
            steps,
            init=model.init,
            loss=partial(model.loss, self.objective),
            evaluate=partial(model.loss, self.objective, training=False),
            sample=model.sample,
            request=self.objective.request,
            rules=self.network.rules,
            protocol={"loss": {"conditional": model.given}} | likelihood.protocol(),
        )
        # A likelihood takes many evaluations of the network per example, so only the final test computes it.
        if likelihood.mismatch is not None:
            return parts

        def test(state: State, batch: Batch, key: Key) -> Sums:
            return parts.evaluate(state, batch, key) | likelihood.evaluate(state, batch, key)

        return parts._replace(test=test, summarize=likelihood.summarize)

    def flow_model(self, spec: Spec) -> FlowModel:
        """Returns the velocity network with its conditions, mask and sources. For `spec` and errors, see `build`."""
        name, feature = find_feature(spec)
        dtype, dtypes, width = self.real_dtype(), self.dtypes(), self.network.condition
        if self.given is not None:
            # Traces a draw without computing it, so that a mask that does not suit the examples raises before the run.
            jax.eval_shape(self.given.draw, jax.random.key(0), jax.ShapeDtypeStruct(feature.shape, dtype))
        source = find_source(spec, feature.shape)
        if source is not None and self.conditional:
            raise UserError(
                "a flow on pairs reads the sources, and can't also read labels; the fix: --model.conditional False"
            )
        read = find_conditions(spec) if self.conditional else Conditions()
        # The encoder is trained together with the velocity. Its vector is added to the vector of the time.
        encoder = None
        if read.caption is not None:
            encoder = TextEncoder(read.caption.vocab or 1, read.end, width, dtypes)
        return FlowModel(
            network=Velocity(self.network.trunk(feature.shape, dtypes), width, read.classes, dtypes, encoder),
            name=name,
            shape=feature.shape,
            conditions=read,
            label_dropout=self.label_dropout,
            dtype=dtype,
            mask=self.given,
            source=source,
            intervals=self.objective.intervals,
        )
