"""The transformer against one in numpy, and what may and may not change its logits."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen.errors import UserError
from gen.networks.positions import PADDING, RelativeBias, places
from gen.networks.transformer import Architecture, Transformer
from gen.optim.paths import path_name

KEY = jax.random.key(0)
VOCAB, END, CONTEXT = 11, 0, 12
SINGLE = {"dtype": jnp.float32, "param_dtype": jnp.float32}
SMALL = Architecture(layers=2, width=16, heads=4)
ARCHS = {
    "learned": SMALL,
    "rotary": replace(
        SMALL, positions="rotary", norm="rms", activation="swiglu", kv_heads=2, bias=False, tied=False, window=5
    ),
    "relative": replace(SMALL, positions="relative", qk_norm=True, logit_cap=5.0, hidden=24),
}
A, B, C = [0, 3, 5, 2, 7], [0, 9, 4], [0, 1, 8, 8, 6, 10, 2]  # documents
PART = [4, 6, 1, 9, 9, 2, 5, 7, 3, 8, 10, 1]  # of a longer one


quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # to compile


def reference(
    params: Any,
    arch: Architecture,
    tokens: Sequence[int] | np.ndarray,
    causal: bool = True,
    memory: np.ndarray | None = None,
    readout: bool = True,
) -> np.ndarray:
    """The logits [T, V] of one document without any padding, float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    n = len(tokens)
    x = p["embedding"]["embedding"][np.asarray(tokens)]
    if arch.positions == "learned":
        x = x + p["position"]["embedding"][:n]
    seen = np.array([[s <= t or not causal for s in range(n)] for t in range(n)])
    if arch.window is not None:
        seen &= np.array([[abs(t - s) < arch.window for s in range(n)] for t in range(n)])
    bias = np.zeros((n, n, arch.heads))
    if arch.positions == "relative":
        table = p["relative"]["Embed_0"]["embedding"]
        bias = np.array([[table[bucket(t - s, causal)] for s in range(n)] for t in range(n)])
    for i in range(arch.layers):
        b = jax.tree.map(lambda a, i=i: a[i], p["layers"])
        y = normalized(b["attention_norm"], arch, x)
        x = x + attention(b["attention"], arch, y, y, seen, bias, turned=arch.positions == "rotary")
        if memory is not None:
            y, every = normalized(b["cross_norm"], arch, x), np.ones((n, len(memory)), bool)
            x = x + attention(b["cross"], arch, y, memory, every, np.zeros((*every.shape, arch.heads)), turned=False)
        y = normalized(b["feed_forward_norm"], arch, x)
        up = affine(b["feed_forward"]["up"], y)
        if arch.activation == "swiglu":
            gate = affine(b["feed_forward"]["gate"], y)
            up = up * gate / (1 + np.exp(-gate))
        else:
            up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + affine(b["feed_forward"]["down"], up)
    x = normalized(p["norm"], arch, x)
    if not readout:
        return x
    logits = x @ p["embedding"]["embedding"].T if arch.tied else x @ p["head"]["kernel"]
    return logits if arch.logit_cap is None else arch.logit_cap * np.tanh(logits / arch.logit_cap)


def attention(
    p: Any, arch: Architecture, x: np.ndarray, source: np.ndarray, seen: np.ndarray, bias: np.ndarray, turned: bool
) -> np.ndarray:
    width, groups = arch.width // arch.heads, arch.heads // (arch.kv_heads or arch.heads)
    query, key, value = affine(p["query"], x), affine(p["key"], source), affine(p["value"], source)
    out = []
    for head in range(arch.heads):
        of = lambda y, h: y[:, h * width : (h + 1) * width]
        q, k, v = of(query, head), of(key, head // groups), of(value, head // groups)
        if arch.qk_norm:
            q, k = normalized(p["query_norm"], arch, q), normalized(p["key_norm"], arch, k)
        if turned:
            q, k = (np.stack([turn(row, place) for place, row in enumerate(y)]) for y in (q, k))
        scores = np.where(seen, q @ k.T / np.sqrt(width) + bias[:, :, head], -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out.append(weights / weights.sum(-1, keepdims=True) @ v)
    return affine(p["out"], np.concatenate(out, axis=-1))


def turn(x: np.ndarray, place: int) -> np.ndarray:
    """Channels i and i + H / 2 as a complex number, times e^(i angle). Su et al. 2021."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * place * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def bucket(distance: int, causal: bool) -> int:
    """Raffel et al. 2020, in whole numbers: half of the buckets hold one distance, the others grow by a factor up to 128."""
    buckets = 32 if causal else 16
    near = buckets // 2
    far = max(distance, 0) if causal else abs(distance)
    grown = sum(far**near >= near**near * (128 // near) ** i for i in range(1, near))
    return (far if far < near else near + grown) + (0 if causal or distance >= 0 else buckets)


def normalized(p: Any, arch: Architecture, x: np.ndarray) -> np.ndarray:
    if arch.norm == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p.get("bias", 0)


def affine(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def random_like(shapes: Any, scale: float = 0.4, seed: int = 0) -> Any:
    """Parameters of which each one matters: scales of norms are around one, all else around zero."""
    rng = np.random.default_rng(seed)
    drawn = lambda path, s: (path[-1].key == "scale") + scale * rng.normal(size=s.shape)
    return jax.tree_util.tree_map_with_path(lambda path, s: jnp.asarray(drawn(path, s), s.dtype), shapes)


class Built(NamedTuple):
    network: Transformer
    params: Any
    read: Callable[..., jax.Array]
    """(params, tokens with PADDING among them, keys, memory, segment of the memory) -> logits. Compiled."""


@functools.cache
def built(arch: Architecture, causal: bool = True, dtype: str = "float32", cross: bool = False) -> Built:
    dtypes = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.promote_types(dtype, jnp.float32)}
    network = Transformer(arch, VOCAB, CONTEXT, causal=causal, dtypes=dtypes, cross=cross)
    call = functools.partial(on_rows, network)
    memory = (jnp.zeros((1, 3, arch.width), dtype), jnp.zeros((1, 3), jnp.int32)) if cross else (None, None)
    make = lambda key: network.init(key, *inputs(np.zeros((1, 4), np.int32)), None, None, *memory)["params"]
    return Built(network, random_like(jax.eval_shape(make, KEY)), quickly(call))


def inputs(tokens: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = jnp.asarray(tokens)
    return jnp.maximum(tokens, 0), *places(tokens, END)


def on_rows(
    network: Transformer, params: Any, tokens: Any, keys: Any = None, memory: Any = None, segment: Any = None
) -> jax.Array:
    return network.apply({"params": params}, *inputs(tokens), keys, None, memory, segment)[0]  # pyright: ignore


def padded(*parts: Sequence[int] | int) -> tuple[list[int], list[slice]]:
    """A row of documents, and of padding where a number says how much; and where the documents are in it."""
    row, spans = [], []
    for part in parts:
        if isinstance(part, int):
            row += part * [PADDING]
        else:
            spans.append(slice(len(row), len(row) + len(part)))
            row += part
    return row, spans


ROWS = [padded(A, B, C[:4]), padded(5, C), padded(PART), padded(2, PART[:3], A, 2), padded(C[:6], 2, B[:2], 2)]


def double(name: str, causal: bool, rows: Sequence[Sequence[int]]) -> tuple[Any, np.ndarray]:
    """(parameters, logits) in float64, of at most CONTEXT + 1 rows."""
    more = [PART] * (CONTEXT + 1 - len(rows))
    with jax.enable_x64(True):
        _, params, read = built(ARCHS[name], causal, "float64")
        return params, np.asarray(read(params, np.array([*rows, *more], np.int32)))[: len(rows)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ARCHS)
def test_each_document_of_a_row_has_the_logits_that_it_has_alone_in_numpy(name, causal):
    """Wherever it is in the row, whatever is around it."""
    params, logits = double(name, causal, [row for row, _ in ROWS])
    assert logits.dtype == np.float64
    for found, (row, spans) in zip(logits, ROWS, strict=True):
        for span in spans:
            np.testing.assert_allclose(found[span], reference(params, ARCHS[name], row[span], causal), atol=1e-10)


@pytest.mark.parametrize("name", ["rotary", "relative"])
def test_a_decoder_reads_all_of_an_encoders_output_but_the_padding(name):
    arch, rng = ARCHS[name], np.random.default_rng(1)
    memory, segment = rng.normal(size=(2, 6, 16)), np.array([[PADDING, PADDING, 0, 0, 0, 0], [0, 0, 0, 0, 0, PADDING]])
    with jax.enable_x64(True):
        _, params, read = built(arch, True, "float64", cross=True)
        logits = read(params, np.array([C, C]), None, jnp.asarray(memory), jnp.asarray(segment))
    for found, source, part in zip(logits, memory, segment, strict=True):
        expected = reference(params, arch, C, memory=source[part != PADDING])
        np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("name", ARCHS)
def test_a_token_changes_no_logits_before_it_and_all_that_see_it(name):
    """Through a window, those of as many places on as two layers look back."""
    rows = np.array([PART] * (CONTEXT + 1))
    rows[range(CONTEXT), range(CONTEXT)] = 9 - rows[range(CONTEXT), range(CONTEXT)] % 8
    _, (*changed, base) = double(name, True, rows.tolist())
    for place, logits in enumerate(changed):
        last = CONTEXT if (window := ARCHS[name].window) is None else place + 2 * (window - 1) + 1
        difference = np.abs(logits - base).max(-1)
        assert (difference[:place] == 0).all() and (difference[last:] == 0).all()
        assert (difference[place:last] > 1e-5).all()


def test_an_encoders_places_see_their_document_on_both_sides_and_nothing_else():
    row, (a, c) = padded(A, C)
    other, unlike = list(row), list(row)
    other[c.stop - 1], unlike[a.start + 1] = 9, 9
    _, (base, other, unlike) = double("learned", False, [row, other, unlike])
    for found, inside, outside in ((other, c, a), (unlike, a, c)):
        np.testing.assert_array_equal(found[outside], base[outside])
        assert (np.abs(found[inside] - base[inside]).max(-1) > 1e-5).all()


def test_documents_begin_at_the_end_token_and_after_padding():
    tokens = jnp.asarray([[PADDING, PADDING, 4, 5, END, 6, END, END, 7], [3, 4, END, PADDING, PADDING, 5, 6, END, 7]])
    segment, position = places(tokens, END)
    np.testing.assert_array_equal(segment, [[-1, -1, 1, 1, 2, 2, 3, 4, 4], [0, 0, 1, -1, -1, 2, 2, 3, 3]])
    np.testing.assert_array_equal(np.asarray(position)[tokens >= 0], [0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1])
    segment, position = places(tokens, None)
    np.testing.assert_array_equal(segment, [[-1, -1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, -1, -1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(np.asarray(position)[tokens >= 0], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 1, 2, 3])


@pytest.mark.parametrize("causal", [True, False])
def test_relative_positions_have_the_buckets_of_their_distances(causal):
    distance = np.arange(-300, 301, dtype=np.int32)[None]
    plain = lambda table, distance: RelativeBias(1, causal, SINGLE).apply(
        {"params": {"Embed_0": {"embedding": table}}}, distance
    )
    expected = np.array([[[bucket(d, causal) for d in distance[0].tolist()]]])
    assert len(np.unique(expected)) == (32 if causal else 31)  # none has the distance 0 on the other side
    for function in (plain, jax.jit(plain)):
        np.testing.assert_array_equal(function(jnp.arange(32.0)[:, None], distance), expected)


def test_the_noise_of_dropout_belongs_to_the_example():
    _, params, read = built(replace(ARCHS["rotary"], dropout=0.3))
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(6))
    rows = np.array([PART, PART, C + A, B + C + B[:2], PART, C + A])
    logits, order = np.asarray(read(params, rows, keys)), np.array([4, 2, 5, 0, 3, 1])
    np.testing.assert_allclose(read(params, rows[order], keys[order]), logits[order], atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 0.1
    quiet = np.asarray(read(params, rows))
    np.testing.assert_array_equal(quiet[0], quiet[1])
    np.testing.assert_allclose(quiet[0], reference(params, ARCHS["rotary"], PART), atol=1e-4)


def test_each_part_of_each_layer_drops_units_of_its_own():
    """Where every part adds ones, what is left of none is what all have dropped."""
    arch = replace(SMALL, layers=3, norm="rms", positions="rotary", dropout=0.6)
    dtypes = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    network = Transformer(arch, VOCAB, CONTEXT, causal=True, dtypes=dtypes, readout=False)
    tokens = np.broadcast_to(PART, (100, CONTEXT))
    shapes = jax.eval_shape(lambda key: network.init(key, *inputs(tokens))["params"], KEY)
    ones = ("embedding/embedding", "layers/attention/out/bias", "layers/feed_forward/down/bias", "scale")
    at = lambda path, s: jnp.full(s.shape, float(path_name(path).endswith(ones)))
    params = jax.tree_util.tree_map_with_path(at, shapes)
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(100))
    x = np.asarray(quickly(functools.partial(on_rows, network))(params, tokens, keys))
    zeros = x.size - np.count_nonzero(x)
    assert stats.binomtest(zeros, x.size, 0.6**7).pvalue > 1e-3, zeros / x.size


@pytest.mark.parametrize("name", ["rotary", "relative"])
def test_bfloat16_activations_have_float32_parameters_and_logits(name):
    network, params, _ = built(ARCHS[name], dtype="bfloat16")
    assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype("float32")}
    for readout, dtype in ((True, "float32"), (False, "bfloat16")):
        inside = functools.partial(on_rows, network.clone(readout=readout))
        assert jax.eval_shape(inside, params, np.array([C])).dtype == dtype


def test_bfloat16_computes_near_float64():
    _, params, read = built(ARCHS["rotary"], dtype="bfloat16")
    expected = np.concatenate([reference(params, ARCHS["rotary"], part) for part in (C, A)])
    error = np.abs(read(params, np.array([C + A]))[0] - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.1


def test_recomputing_and_unrolling_change_no_loss_and_no_gradient():
    def descended(arch: Architecture) -> tuple[float, Any]:
        network, params, _ = built(arch)
        loss = lambda p: jnp.square(on_rows(network, p, np.array([C + A]), jax.random.split(KEY, 1))).mean()
        return quickly(jax.value_and_grad(loss))(params)

    arch = replace(SMALL, dropout=0.2)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, descended(replace(arch, remat=True, unroll=7)), descended(arch))


@pytest.mark.parametrize("remat", [False, True])
def test_the_program_of_48_layers_is_no_longer_than_that_of_2(remat):
    def lines(layers: int) -> int:
        network, params, _ = built(replace(ARCHS["rotary"], layers=layers, remat=remat))
        loss = lambda p: jnp.square(on_rows(network, p, np.array([C]))).mean()
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("\n")

    assert lines(48) == lines(2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"heads": 3}, "width 16 can't be shared by 3 heads"),
        ({"kv_heads": 3}, "4 heads can't share 3 kv_heads"),
        ({"kv_heads": 0}, "kv_heads is 0"),
        ({"positions": "rotary", "width": 12}, "a head has 3"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"window": 0}, "window is 0"),
        ({"logit_cap": -1.0}, "logit_cap is -1.0"),
        ({"unroll": 0}, "unroll is 0"),
    ],
)
def test_an_impossible_architecture_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **fields)
