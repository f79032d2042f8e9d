"""Fill in the middle: which training texts are rearranged, and how."""

import jax
import numpy as np
from scipy import stats
from test_lm import rearrange
from test_transformer import KEY

SENTINELS = {"prefix": 100, "suffix": 101, "middle": 102, "end": 0}


def rows_of(n: int, length: int) -> dict[str, np.ndarray]:
    """Rows without repeated tokens, of which about half count."""
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.permutation(99)[:length] + 1 for _ in range(n)]).astype(np.int32)
    counted = (rng.random((n, length)) < 0.5).astype(np.uint8)
    return {"tokens": tokens, "counted": counted, "row": np.arange(n, dtype=np.int32)}


def parts_of(row: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """(before, middle, after) of a rearranged row."""
    suffix, middle = (row.tolist().index(SENTINELS[name]) for name in ("suffix", "middle"))
    assert row[0] == SENTINELS["prefix"] and row[-1] == SENTINELS["end"] and suffix < middle
    return row[1:suffix].tolist(), row[middle + 1 : -1].tolist(), row[suffix + 1 : middle].tolist()


def test_the_middle_is_moved_to_the_end_and_its_tokens_count_as_before():
    batch = rows_of(3000, 9)
    out = jax.device_get(rearrange(batch, KEY, 0.3, SENTINELS["prefix"], SENTINELS["end"]))
    chosen, cuts = out.moved, []
    assert stats.binomtest(int(chosen.sum()), 3000, 0.3).pvalue > 1e-3
    np.testing.assert_array_equal(out.tokens[~chosen], batch["tokens"][~chosen])
    np.testing.assert_array_equal(out.counted[~chosen], batch["counted"][~chosen])
    for i in np.flatnonzero(chosen):
        before, middle, after = parts_of(out.tokens[i])
        assert before + middle + after == batch["tokens"][i, :5].tolist()
        count = dict(zip(batch["tokens"][i].tolist(), batch["counted"][i].tolist(), strict=True))
        count |= {100: 0, 101: 0, 102: 0, 0: 1}
        assert out.counted[i].tolist() == [count[token] for token in out.tokens[i].tolist()]
        cuts.append((len(before), len(before) + len(middle)))
    expected = {(a, b): (2 - (a == b)) / 36 for a in range(6) for b in range(a, 6)}  # two uniform draws, sorted
    counts = [cuts.count(pair) for pair in expected]
    assert sum(counts) == len(cuts)
    assert stats.chisquare(counts, [p * len(cuts) for p in expected.values()]).pvalue > 1e-3


def test_which_rows_are_rearranged_depends_only_on_the_key_the_rate_and_the_row():
    batch = rows_of(64, 13)
    every, none, some = (jax.device_get(rearrange(batch, KEY, rate, 100, 0)) for rate in (1.0, 0.0, 0.5))
    assert every.moved.all() and not none.moved.any()
    np.testing.assert_array_equal(none.tokens, batch["tokens"])
    np.testing.assert_array_equal(none.counted, batch["counted"])
    order = np.random.default_rng(1).permutation(64)
    other = jax.device_get(rearrange({k: v[order] for k, v in batch.items()}, KEY, 0.5, 100, 0))
    np.testing.assert_array_equal(other.tokens, some.tokens[order])
    assert not np.array_equal(jax.device_get(rearrange(batch, jax.random.key(1), 0.5, 100, 0)).tokens, some.tokens)
