"""Bottlenecks of tokenizers against direct computations in NumPy, and the codebook's updates on one device and on parts of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.errors import UserError
from gen.families.tokenizer import FSQ, KL, VQ, Quantizer, Residual, codebook
from gen.families.tokenizer.bottlenecks import BatchFacts, Bottleneck

RNG = np.random.default_rng(0)
FACTS = BatchFacts(jax.random.key(0), jnp.arange(4), 4)


def inputs(bottleneck: Bottleneck, n: int = 4) -> jax.Array:
    return jnp.asarray(RNG.normal(0, 1.5, (n, 3, 3, bottleneck.inputs)), jnp.float32)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 2, 2), (4,)])
def test_fsq_rounds_each_number_to_the_nearest_level(levels):
    fsq = FSQ(levels)
    h = inputs(fsq)
    coded = fsq.encode({}, h, None, None)
    x = np.tanh(np.asarray(h))
    nearest = [
        np.linspace(-1, 1, n)[np.abs(x[..., [i]] - np.linspace(-1, 1, n)).argmin(-1)] for i, n in enumerate(levels)
    ]
    np.testing.assert_allclose(coded.z, np.stack(nearest, -1), atol=1e-6)
    np.testing.assert_allclose(fsq.decode({}, coded.codes), coded.z, atol=1e-6)
    assert coded.codes.dtype == np.int32
    assert fsq.feature((3, 3), ("row", "column")).vocab == np.prod(levels)


@pytest.mark.parametrize("quantizer", [FSQ((8, 5, 5)), FSQ((2, 2, 2, 2)), Residual(2, FSQ((3, 5)))])
def test_every_code_is_the_code_of_its_own_vector(quantizer):
    of = quantizer.of if isinstance(quantizer, Residual) else quantizer
    every = jnp.arange(of.vocab)[:, None]
    if isinstance(quantizer, Residual):
        first, second = jnp.meshgrid(every[:, 0], every[:, 0], indexing="ij")
        every = jnp.stack([first.ravel(), second.ravel()], -1)[:, None]
    # The inverse of tanh would be infinite at the outermost levels, so the vectors are a little smaller.
    h = jnp.arctanh(0.999 * quantizer.decode({}, every).clip(-1, 1))
    again = quantizer.encode({}, h, None, None).codes
    vectors = (quantizer.decode({}, codes) for codes in (every, again))
    inside = jnp.abs(quantizer.decode({}, every)).max(-1) <= 1
    a, b = (np.asarray(v)[np.asarray(inside)] for v in vectors)
    np.testing.assert_allclose(a, b, atol=0.01)


def test_levels_of_two_are_signs():
    fsq = FSQ((2, 2, 2))
    h = inputs(fsq)
    np.testing.assert_array_equal(fsq.encode({}, h, None, None).z, np.sign(h))


@pytest.mark.parametrize(
    "bottleneck", [FSQ((5, 4)), VQ(16, 3), Residual(3, FSQ((5, 4))), Residual(2, VQ(16, 3)), KL(3)]
)
def test_gradients_pass_straight_through(bottleneck):
    stats, h = bottleneck.begin(jax.random.key(1), jnp.float32), inputs(bottleneck)

    def total(h: jax.Array) -> jax.Array:
        return bottleneck.encode(stats, h, None, None).z.sum()

    gradient = jax.grad(total)(h)
    if isinstance(bottleneck, KL):
        expected = np.concatenate([np.ones((4, 3, 3, 3)), np.zeros((4, 3, 3, 3))], -1)
    else:
        of = bottleneck.of if isinstance(bottleneck, Residual) else bottleneck
        expected = 1 - np.tanh(h) ** 2 if isinstance(of, FSQ) else np.ones(h.shape)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_each_book_of_a_residual_quantizer_leaves_less():
    h = inputs(Residual(4, FSQ((5, 5))))
    errors = [jnp.abs(Residual(n, FSQ((5, 5))).encode({}, h, None, None).z - jnp.tanh(h)).max() for n in (1, 2, 3)]
    # Half of the distance of two levels, then half of the distance of two levels of a level.
    assert errors[0] <= 1 / 4 + 1e-6 and errors[1] <= 1 / 16 + 1e-6 and errors[2] <= 1 / 64 + 1e-6
    feature = Residual(4, FSQ((5, 5))).feature((3, 3), ("row", "column"))
    assert feature.shape == (3, 3, 4)
    assert feature.axes == ("row", "column", "book")


def test_kl_is_that_of_a_gaussian_and_its_noise_belongs_to_the_example():
    kl = KL(2, weight=0.5)
    h = inputs(kl)
    mean, log_std = np.split(np.asarray(h, np.float64), 2, -1)
    expected = 0.5 * ((mean**2 + np.exp(2 * log_std) - 1) / 2 - log_std).mean((1, 2, 3))
    keys = jax.random.split(jax.random.key(0), 4)
    coded = kl.encode({}, h, keys, None)
    np.testing.assert_allclose(coded.loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(coded.codes, mean.astype(np.float32))
    alone = kl.encode({}, h[2:3], keys[2:3], None)
    np.testing.assert_array_equal(coded.z[2:3], alone.z)


def vq_by_hand(vq: VQ, stats: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the uses and the codebook after one step without revival: van den Oord et al. 2017, equations 6 to 8."""
    codebook, uses = (np.asarray(stats[name], np.float64) for name in ("codebook", "uses"))
    flat = x.reshape(-1, vq.size)
    codes = np.square(flat[:, None] - codebook).sum(-1).argmin(1)
    new_uses, new_codebook = uses.copy(), codebook.copy()
    for k in range(vq.codes):
        mine = flat[codes == k]
        n = vq.decay * uses[k] + (1 - vq.decay) * len(mine) / len(x)
        m = vq.decay * uses[k] * codebook[k] + (1 - vq.decay) * mine.sum(0) / len(x)
        new_uses[k] = n
        new_codebook[k] = m / n if n > 0 else codebook[k]
    return {"codebook": new_codebook, "uses": new_uses}


def test_vq_is_the_nearest_code_and_codes_are_moving_averages():
    vq = VQ(6, 3, decay=0.9, commitment=0.5, revive=0.0)
    stats, x = vq.begin(jax.random.key(1), jnp.float32), inputs(vq)
    stats = {**stats, "uses": jnp.linspace(0, 2, 6)}
    coded = vq.encode(stats, x, None, FACTS)
    distance = np.square(np.asarray(x)[..., None, :] - np.asarray(stats["codebook"])).sum(-1)
    np.testing.assert_array_equal(coded.codes, distance.argmin(-1))
    np.testing.assert_allclose(coded.loss, 0.5 * distance.min(-1).mean((1, 2)) / 3, rtol=1e-5)
    new, expected = vq.learn(stats, coded.seen, FACTS), vq_by_hand(vq, stats, np.asarray(x))  # pyright: ignore
    for name in ("codebook", "uses"):
        np.testing.assert_allclose(new[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_first_batch_fills_the_codebook_and_parts_of_a_batch_agree():
    vq = VQ(40, 2)
    stats, x = vq.begin(jax.random.key(1), jnp.float32), inputs(vq)
    whole = vq.learn(stats, vq.encode(stats, x, None, FACTS).seen, FACTS)
    flat = np.asarray(x).reshape(-1, 2)
    distance = np.abs(np.asarray(whole["codebook"])[:, None] - flat).max(-1)
    assert distance.min(1).max() < 0.1, "each code is near the vector of a place of the batch"
    assert len(np.unique(distance.argmin(1))) > 10, "codes are not all of one place"
    # The parts of two devices, or two microbatches.
    parts = [
        vq.encode(stats, x[rows], None, FACTS._replace(row=jnp.arange(4)[rows])).seen
        for rows in (slice(2), slice(2, 4))
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    for name, array in vq.learn(stats, mean, FACTS).items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("most", [2**24, 50, 1])
def test_sums_by_code_in_parts_of_bounded_size(monkeypatch, most):
    """23 rows of 4 codes are one part, two parts, or a part for each row."""
    monkeypatch.setattr(codebook, "MAX_ONE_HOT", most)
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(23, 3)).astype(np.float32), rng.integers(0, 4, 23)
    one_hot, sizes = jax.nn.one_hot, []

    def watched(codes: jax.Array, n: int, dtype: jnp.dtype) -> jax.Array:
        sizes.append(codes.size * n)
        return one_hot(codes, n, dtype=dtype)

    monkeypatch.setattr(jax.nn, "one_hot", watched)
    uses, sums = codebook.sum_by_code(jnp.asarray(x), jnp.asarray(codes), 4)
    expected = np.zeros((4, 3))
    np.add.at(expected, codes, x)
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    np.testing.assert_array_equal(uses, np.bincount(codes, minlength=4))
    assert max(sizes) <= max(most, 4)


def test_codes_that_are_revived_at_equal_places_differ():
    vq = VQ(16, 2)
    stats, x = vq.begin(jax.random.key(1), jnp.float32), jnp.full((4, 3, 3, 2), 0.5)
    found = vq.learn(stats, vq.encode(stats, x, None, FACTS).seen, FACTS)["codebook"]
    assert len(np.unique(found, axis=0)) == 16
    np.testing.assert_allclose(found, 0.5, atol=0.05)


def test_each_draw_of_a_step_has_its_own_key(monkeypatch):
    """The rows and the places that codes are revived from, and the noise on them."""
    seen, parents = [], []

    def watch(name: str, to: list[tuple[int, ...]]) -> None:
        function = getattr(jax.random, name)

        def watched(key: jax.Array, *rest: object, **more: object) -> jax.Array:
            to.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
            return function(key, *rest, **more)

        monkeypatch.setattr(jax.random, name, watched)

    vq = VQ(16, 2)
    stats, x = vq.begin(jax.random.key(1), jnp.float32), inputs(vq)
    for name in ("normal", "randint"):
        watch(name, seen)
    watch("fold_in", parents)
    vq.learn(stats, vq.encode(stats, x, None, FACTS).seen, FACTS)
    assert len(seen) == len(set(seen)) == 3
    assert not parents, "folding a key that was split gives the same keys again"


def test_only_dead_codes_are_revived():
    vq = VQ(4, 2, decay=0.5, revive=0.2)
    x = inputs(vq)
    far = jnp.array([[0.0, 0.0], [0.1, 0.1], [50.0, 50.0], [-50.0, 50.0]])
    stats = {"codebook": far, "uses": jnp.full(4, 2.0)}
    for step in range(5):
        facts = FACTS._replace(key=jax.random.key(step))
        stats = vq.learn(stats, vq.encode(stats, x, None, facts).seen, facts)
    assert np.abs(stats["codebook"]).max() < 10, "codes that nothing is near to have moved to the data"
    assert len(np.unique(vq.assign(stats, x))) == 4


def test_codes_beyond_uint16_are_refused():
    large: list[Quantizer] = [FSQ((16,) * 5), VQ(2**17)]
    for quantizer in large:
        with pytest.raises(UserError, match="at most 65,536 can be stored"):
            quantizer.feature((2, 2), ("row", "column"))
    assert FSQ((2,) * 16).feature((2, 2), ("row", "column")).vocab == 2**16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FSQ(()), "at least one number"),
        (lambda: FSQ((8, 1)), "must be at least 2"),
        (lambda: VQ(1), "codes - 1 is 0"),
        (lambda: VQ(decay=1.0), "decay is 1"),
        (lambda: VQ(revive=-0.1), "revive is -0.1"),
        (lambda: Residual(0), "n is 0"),
        (lambda: KL(0), "size is 0"),
        (lambda: KL(weight=-1.0), "weight is -1"),
    ],
)
def test_wrong_sizes_are_short_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()
