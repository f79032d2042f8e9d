"""Running a data set's preprocessing inside a model's compiled steps."""

from __future__ import annotations

from collections.abc import Callable

import jax

from gen.core import Batch, GenerativeModel, Key

Transform = Callable[[Batch, Key, bool], Batch]


def with_preprocess(model: GenerativeModel, transform: Transform) -> GenerativeModel:
    """The model whose update, evaluate and test first transform the batch with its own key (see Dataset.preprocess)."""

    def update(state, batch, key):
        data_key, model_key = jax.random.split(key)
        if model.batches is None:
            seen = transform(batch, data_key, True)
        else:
            keys = jax.random.split(data_key, model.batches)
            seen = jax.vmap(lambda batch, key: transform(batch, key, True))(batch, keys)
        return model.update(state, seen, model_key)

    def evaluate(state, batch, key):
        data_key, model_key = jax.random.split(key)
        return model.evaluate(state, transform(batch, data_key, False), model_key)

    def test(state, batch, key):
        data_key, model_key = jax.random.split(key)
        assert model.test is not None
        return model.test(state, transform(batch, data_key, False), model_key)

    return model._replace(update=update, evaluate=evaluate, test=test if model.test else None)
