"""Runs the preprocessing of a data set inside the compiled steps of a model."""

from __future__ import annotations

from collections.abc import Callable

import jax

from gen.core import Array, Batch, GenerativeModel, Key, Metrics, State, Sums

Transform = Callable[[Batch, Key, bool], Batch]
"""(batch, key, training) -> the batch that the model sees. See gen.core.Dataset.preprocess."""


def with_preprocess(model: GenerativeModel, transform: Transform) -> GenerativeModel:
    """Returns the model with `transform` applied to each batch before `update`, `evaluate` and `test` get the batch.

    The transform and the model get different keys, split from the key of the step.
    """

    def transform_training(batch: Batch, key: Key) -> Batch:
        return transform(batch, key, True)

    def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        data_key, model_key = jax.random.split(key)
        if model.batches is None:
            seen = transform_training(batch, data_key)
        else:
            # The batches of one update lie on a leading axis. Each has its own key.
            seen = jax.vmap(transform_training)(batch, jax.random.split(data_key, model.batches))
        return model.update(state, seen, model_key)

    def evaluate(state: State, batch: Batch, key: Key) -> Sums:
        data_key, model_key = jax.random.split(key)
        return model.evaluate(state, transform(batch, data_key, False), model_key)

    def test(state: State, batch: Batch, key: Key) -> Sums:
        data_key, model_key = jax.random.split(key)
        assert model.test is not None
        return model.test(state, transform(batch, data_key, False), model_key)

    return model._replace(update=update, evaluate=evaluate, test=test if model.test else None)


def scale_levels(v: Array, top: int) -> Array:
    """Maps values in [0, top] linearly to [-1, 1]. v: of any shape."""
    # The division comes last, so that the ends stay inside of [-1, 1] however the compiler rounds.
    return (2 * v - top) / top
