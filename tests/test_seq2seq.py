"""The encoder-decoder: what a target depends on, and the texts that it writes."""

from typing import Any

import numpy as np
import pytest
from test_lm import SEQ2SEQ, SOURCE, T, averages, batch_of, check_text, engine_of, writer
from test_transformer import END, SMALL, reference

from gen.families.language import lm
from gen.networks.positions import PADDING


def test_a_target_depends_on_its_source_and_on_the_tokens_before_it():
    engine, batch = engine_of(SEQ2SEQ), batch_of()
    batch["counted"][:] = np.arange(T + 1) == 5
    batch["source"][:, 3:] = [END, 4, 4]
    state = engine.init()

    def loss(**arrays: np.ndarray) -> float:
        return float(engine.evaluate(state, batch | arrays)["loss"][0])

    def changed(name: str, places: Any, token: int) -> float:
        other = batch[name].copy()
        other[:, places] = token
        return loss(**{name: other})

    base = loss()
    assert changed("source", slice(4, None), 9) == base, "tokens after the end of the source are not read"
    assert changed("source", slice(3, None), END) == base
    assert changed("tokens", slice(6, None), 9) == base, "later targets are not seen"
    left = np.concatenate([np.full((8, 3), PADDING), batch["source"][:, :3]], axis=1).astype(np.int32)
    assert loss(source=left) == pytest.approx(base, rel=1e-6)
    for name, place in (("source", 0), ("source", 2), ("tokens", 4), ("tokens", 0)):
        assert abs(changed(name, place, 9) - base) > 1e-3, (name, place)


def test_padding_of_sources_changes_no_target():
    sources, left, right = [[3], [4, 5, 6, 7, 8, 9], [9, 1, 2]], [], []
    for source in sources:
        more = SOURCE - len(source)
        left.append([PADDING] * more + source)
        right.append(source + [END] * more)
    write, params = writer(SEQ2SEQ, lm.Request(n=2, tokens=20)), averages(SEQ2SEQ)
    made, again = (write({"source": np.array(rows, np.int32)}) for rows in (left, right))
    np.testing.assert_array_equal(made["samples"], again["samples"])
    np.testing.assert_array_equal(made["source"], np.repeat(left, 2, axis=0))
    assert made["samples"].shape == (6, T - 1)
    for i, (said, found) in enumerate(zip(made["samples"], made["log_probs"], strict=True)):
        memory = reference(params["encoder"], SMALL, sources[i // 2], causal=False, readout=False)
        check_text(params["decoder"], SMALL, [END], said, found, memory=memory)
