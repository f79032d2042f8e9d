"""The transformer against one in numpy, and which inputs may change its logits."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike
from scipy import stats

from gen.core import Params
from gen.errors import UserError
from gen.networks.positions import PADDING, RelativeBias, locate_tokens
from gen.networks.transformer import Architecture, Transformer

Path = tuple[jax.tree_util.DictKey, ...]
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
PART = [4, 6, 1, 9, 9, 2, 5, 7, 3, 8, 10, 1]  # of a longer document


# jax.jit for programs that run once: compiled without optimization, which takes less time.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def reference(
    params: Params,
    arch: Architecture,
    tokens: Sequence[int] | np.ndarray,
    causal: bool = True,
    memory: np.ndarray | None = None,
    readout: bool = True,
) -> np.ndarray:
    """Logits [T, V] of one document without padding, in float64."""
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
        x = x + attention(b["attention"], arch, y, y, seen, bias, rotary=arch.positions == "rotary")
        if memory is not None:
            y, every = normalized(b["cross_norm"], arch, x), np.ones((n, len(memory)), bool)
            x = x + attention(b["cross"], arch, y, memory, every, np.zeros((*every.shape, arch.heads)), rotary=False)
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
    p: Params, arch: Architecture, x: np.ndarray, source: np.ndarray, seen: np.ndarray, bias: np.ndarray, rotary: bool
) -> np.ndarray:
    width, groups = arch.width // arch.heads, arch.heads // (arch.kv_heads or arch.heads)
    query, key, value = affine(p["query"], x), affine(p["key"], source), affine(p["value"], source)
    out = []
    for head in range(arch.heads):
        group = head // groups
        q, k, v = (y[:, h * width : (h + 1) * width] for y, h in ((query, head), (key, group), (value, group)))
        if arch.qk_norm:
            q, k = normalized(p["query_norm"], arch, q), normalized(p["key_norm"], arch, k)
        if rotary:
            q, k = (np.stack([rotate(row, place) for place, row in enumerate(y)]) for y in (q, k))
        scores = np.where(seen, q @ k.T / np.sqrt(width) + bias[:, :, head], -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out.append(weights / weights.sum(-1, keepdims=True) @ v)
    return affine(p["out"], np.concatenate(out, axis=-1))


def rotate(x: np.ndarray, place: int) -> np.ndarray:
    """Channels i and i + H / 2 as a complex number, multiplied by e^(i angle). Su et al. 2021."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * place * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def bucket(distance: int, causal: bool) -> int:
    """Bucket of a distance in integers, Raffel et al. 2020: half of the buckets hold one distance, the others grow by a factor."""
    buckets = 32 if causal else 16
    near = buckets // 2
    far = max(distance, 0) if causal else abs(distance)
    grown = sum(far**near >= near**near * (128 // near) ** i for i in range(1, near))
    return (far if far < near else near + grown) + (0 if causal or distance >= 0 else buckets)


def normalized(p: Params, arch: Architecture, x: np.ndarray) -> np.ndarray:
    if arch.norm == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p.get("bias", 0)


def affine(p: Params, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def random_like(shapes: Params, scale: float = 0.4, seed: int = 0) -> Params:
    """Random parameters, so that each one matters: scales of norms are around 1, all others around 0."""
    rng = np.random.default_rng(seed)

    def draw(path: Path, s: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray((path[-1].key == "scale") + scale * rng.normal(size=s.shape), s.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


class Network(NamedTuple):
    network: Transformer
    params: Params
    read: Callable[..., jax.Array]
    """(params, tokens with PADDING, dropout keys, memory, segment of the memory) -> logits. Compiled."""


@functools.cache
def build_network(arch: Architecture, causal: bool = True, dtype: str = "float32", cross: bool = False) -> Network:
    dtypes = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.promote_types(dtype, jnp.float32)}
    network = Transformer(arch, VOCAB, CONTEXT, causal=causal, dtypes=dtypes, cross=cross)
    call = functools.partial(on_rows, network)
    memory = (jnp.zeros((1, 3, arch.width), dtype), jnp.zeros((1, 3), jnp.int32)) if cross else (None, None)

    def init(key: jax.Array) -> Params:
        return network.init(key, *inputs(np.zeros((1, 4), np.int32)), None, None, *memory)["params"]

    return Network(network, random_like(jax.eval_shape(init, KEY)), quickly(call))


def inputs(tokens: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens [B, T] with PADDING -> (tokens, segment, position) as the network takes them."""
    tokens = jnp.asarray(tokens)
    segment, position = locate_tokens(tokens, END)
    return jnp.maximum(tokens, 0), segment, position


def on_rows(
    network: Transformer,
    params: Params,
    tokens: ArrayLike,
    keys: jax.Array | None = None,
    memory: jax.Array | None = None,
    segment: jax.Array | None = None,
) -> jax.Array:
    return network.apply({"params": params}, *inputs(tokens), keys, None, memory, segment)[0]  # pyright: ignore


def make_row(*parts: Sequence[int] | int) -> tuple[list[int], list[slice]]:
    """A row of documents, with padding where a part is a number, and the slices of the documents in it."""
    row, spans = [], []
    for part in parts:
        if isinstance(part, int):
            row += part * [PADDING]
        else:
            spans.append(slice(len(row), len(row) + len(part)))
            row += part
    return row, spans


ROWS = [
    make_row(A, B, C[:4]),
    make_row(5, C),
    make_row(PART),
    make_row(2, PART[:3], A, 2),
    make_row(C[:6], 2, B[:2], 2),
]


def double(name: str, causal: bool, rows: Sequence[Sequence[int]]) -> tuple[Params, np.ndarray]:
    """(parameters, logits) in float64 of at most CONTEXT + 1 rows, filled up so that all calls share one program."""
    more = [PART] * (CONTEXT + 1 - len(rows))
    with jax.enable_x64(True):
        _, params, read = build_network(ARCHS[name], causal, "float64")
        return params, np.asarray(read(params, np.array([*rows, *more], np.int32)))[: len(rows)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ARCHS)
def test_documents_in_a_row_have_the_logits_that_numpy_gives_each_alone(name, causal):
    """Wherever a document is in its row, and whatever is around it."""
    params, logits = double(name, causal, [row for row, _ in ROWS])
    assert logits.dtype == np.float64
    for found, (row, spans) in zip(logits, ROWS, strict=True):
        for span in spans:
            np.testing.assert_allclose(found[span], reference(params, ARCHS[name], row[span], causal), atol=1e-10)


@pytest.mark.parametrize("name", ["rotary", "relative"])
def test_a_decoder_reads_the_encoders_output_without_its_padding(name):
    arch, rng = ARCHS[name], np.random.default_rng(1)
    memory, segment = rng.normal(size=(2, 6, 16)), np.array([[PADDING, PADDING, 0, 0, 0, 0], [0, 0, 0, 0, 0, PADDING]])
    with jax.enable_x64(True):
        _, params, read = build_network(arch, True, "float64", cross=True)
        logits = read(params, np.array([C, C]), None, jnp.asarray(memory), jnp.asarray(segment))
    for found, source, part in zip(logits, memory, segment, strict=True):
        expected = reference(params, arch, C, memory=source[part != PADDING])
        np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("name", ARCHS)
def test_a_token_changes_the_logits_of_all_positions_that_see_it_and_no_others(name):
    """With a window, two layers look back two windows."""
    rows = np.array([PART] * (CONTEXT + 1))
    rows[range(CONTEXT), range(CONTEXT)] = 9 - rows[range(CONTEXT), range(CONTEXT)] % 8
    _, (*changed, base) = double(name, True, rows.tolist())
    for place, logits in enumerate(changed):
        last = CONTEXT if (window := ARCHS[name].window) is None else place + 2 * (window - 1) + 1
        difference = np.abs(logits - base).max(-1)
        assert (difference[:place] == 0).all() and (difference[last:] == 0).all()
        assert (difference[place:last] > 1e-5).all()


def test_positions_of_an_encoder_see_their_document_on_both_sides_and_nothing_else():
    row, (a, c) = make_row(A, C)
    other, unlike = list(row), list(row)
    other[c.stop - 1], unlike[a.start + 1] = 9, 9
    _, (base, other, unlike) = double("learned", False, [row, other, unlike])
    for found, inside, outside in ((other, c, a), (unlike, a, c)):
        np.testing.assert_array_equal(found[outside], base[outside])
        assert (np.abs(found[inside] - base[inside]).max(-1) > 1e-5).all()


def test_documents_begin_at_the_end_token_and_after_padding():
    tokens = jnp.asarray([[PADDING, PADDING, 4, 5, END, 6, END, END, 7], [3, 4, END, PADDING, PADDING, 5, 6, END, 7]])
    segment, position = locate_tokens(tokens, END)
    np.testing.assert_array_equal(segment, [[-1, -1, 1, 1, 2, 2, 3, 4, 4], [0, 0, 1, -1, -1, 2, 2, 3, 3]])
    np.testing.assert_array_equal(np.asarray(position)[tokens >= 0], [0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1])
    segment, position = locate_tokens(tokens, None)
    np.testing.assert_array_equal(segment, [[-1, -1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, -1, -1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(np.asarray(position)[tokens >= 0], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 1, 2, 3])


@pytest.mark.parametrize("causal", [True, False])
def test_relative_biases_use_the_bucket_of_each_distance(causal):
    distance = np.arange(-300, 301, dtype=np.int32)[None]

    def bias(table: jax.Array, distance: np.ndarray) -> jax.Array:
        return RelativeBias(1, causal, SINGLE).apply({"params": {"Embed_0": {"embedding": table}}}, distance)  # pyright: ignore

    expected = np.array([[[bucket(d, causal) for d in distance[0].tolist()]]])
    assert len(np.unique(expected)) == (32 if causal else 31)  # distance 0 has no bucket on the other side
    for function in (bias, jax.jit(bias)):
        np.testing.assert_array_equal(function(jnp.arange(32.0)[:, None], distance), expected)


def test_dropout_noise_depends_only_on_the_key_of_the_example():
    _, params, read = build_network(replace(ARCHS["rotary"], dropout=0.3))
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(6))
    rows = np.array([PART, PART, C + A, B + C + B[:2], PART, C + A])
    logits, order = np.asarray(read(params, rows, keys)), np.array([4, 2, 5, 0, 3, 1])
    np.testing.assert_allclose(read(params, rows[order], keys[order]), logits[order], atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 0.1
    quiet = np.asarray(read(params, rows))
    np.testing.assert_array_equal(quiet[0], quiet[1])
    np.testing.assert_allclose(quiet[0], reference(params, ARCHS["rotary"], PART), atol=1e-4)


def test_each_part_of_each_layer_has_dropout_noise_of_its_own():
    """Every part adds 1 to every unit, so a unit is 0 only if all seven dropout layers dropped it."""
    arch = replace(SMALL, layers=3, norm="rms", positions="rotary", dropout=0.6)
    dtypes = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    network = Transformer(arch, VOCAB, CONTEXT, causal=True, dtypes=dtypes, readout=False)
    tokens = np.broadcast_to(PART, (100, CONTEXT))
    shapes = jax.eval_shape(lambda key: network.init(key, *inputs(tokens))["params"], KEY)
    ones = ("embedding/embedding", "layers/attention/out/bias", "layers/feed_forward/down/bias", "scale")

    def fill(path: Path, s: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.full(s.shape, float(jax.tree_util.keystr(path, simple=True, separator="/").endswith(ones)))

    params = jax.tree_util.tree_map_with_path(fill, shapes)
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(100))
    x = np.asarray(quickly(functools.partial(on_rows, network))(params, tokens, keys))
    zeros = x.size - np.count_nonzero(x)
    assert stats.binomtest(zeros, x.size, 0.6**7).pvalue > 1e-3, zeros / x.size


@pytest.mark.parametrize("name", ["rotary", "relative"])
def test_bfloat16_activations_have_float32_parameters_and_logits(name):
    network, params, _ = build_network(ARCHS[name], dtype="bfloat16")
    assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype("float32")}
    for readout, dtype in ((True, "float32"), (False, "bfloat16")):
        inside = functools.partial(on_rows, network.clone(readout=readout))
        assert jax.eval_shape(inside, params, np.array([C])).dtype == dtype


def test_logits_in_bfloat16_are_close_to_float64():
    _, params, read = build_network(ARCHS["rotary"], dtype="bfloat16")
    expected = np.concatenate([reference(params, ARCHS["rotary"], part) for part in (C, A)])
    error = np.abs(read(params, np.array([C + A]))[0] - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.1


def test_remat_and_unroll_change_no_loss_and_no_gradient():
    def loss_and_gradient(arch: Architecture) -> tuple[float, Params]:
        network, params, _ = build_network(arch)

        def loss(params: Params) -> jax.Array:
            return jnp.square(on_rows(network, params, np.array([C + A]), jax.random.split(KEY, 1))).mean()

        return quickly(jax.value_and_grad(loss))(params)

    arch = replace(SMALL, dropout=0.2)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, loss_and_gradient(replace(arch, remat=True, unroll=7)), loss_and_gradient(arch))


@pytest.mark.parametrize("remat", [False, True])
def test_the_program_of_48_layers_is_as_long_as_the_program_of_2(remat):
    def lines(layers: int) -> int:
        network, params, _ = build_network(replace(ARCHS["rotary"], layers=layers, remat=remat))

        def loss(params: Params) -> jax.Array:
            return jnp.square(on_rows(network, params, np.array([C]))).mean()

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
def test_an_impossible_architecture_raises_an_error_that_names_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **fields)
