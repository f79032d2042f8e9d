"""Vector quantization: a bottleneck whose codebook is learned by moving averages over the global batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array, Key
from gen.errors import check_decay, check_not_negative, check_positive
from gen.families.tokenizer.bottlenecks import BatchFacts, Stats
from gen.families.tokenizer.quantizers import Quantizer
from gen.networks.kernels.sums import as_row

REVIVAL_NOISE = 0.01
"""Standard deviation of the noise on a revived code's vector (see `VQ`), as a fraction of the root mean square of the
encoder's outputs."""
MAX_ONE_HOT = 2**24
"""Maximum number of elements of a matrix of one-hot codes. They take 64 MiB in float32."""


@dataclass(frozen=True)
class VQ(Quantizer):
    """Vector quantization: each code's vector is a moving average of the encoder's outputs that were nearest to it.

    van den Oord et al. 2017, section 3.2 and appendix A.1. A code that is hardly used is revived: it gets the encoder's
    output at a random position of a random example, with a little noise, so that the codebook does not collapse
    (Dhariwal et al. 2020, appendix B.1). All codes start as unused, so the first batch revives nearly all of them.
    """

    codes: int = 1024
    """Number of codes."""
    size: int = 8
    """Number of dimensions of a code's vector. If it is small, most codes stay in use (Yu et al. 2022)."""
    decay: float = 0.99
    """Decay of the moving averages of the codes' vectors and of how often each code is used, in [0, 1)."""
    commitment: float = 0.25
    """Weight of the mean squared difference of the encoder's outputs and the vectors of their codes, a loss term that
    trains the encoder."""
    revive: float = 0.1
    """A code is revived if its use is below this fraction, in [0, 1), of the mean use of all codes. 0: never."""

    def __post_init__(self):
        check_positive(**{"codes - 1": self.codes - 1, "size": self.size})
        check_decay(decay=self.decay)
        check_not_negative(commitment=self.commitment)
        check_decay(revive=self.revive)

    @property
    def vocab(self) -> int:
        return self.codes

    @property
    def channels(self) -> int:
        return self.size

    def begin(self, key: Key, dtype: DTypeLike) -> Stats:
        dtype = jnp.promote_types(dtype, jnp.float32)
        codebook = jax.random.normal(key, (self.codes, self.size), dtype)
        return {"codebook": codebook, "uses": jnp.zeros(self.codes, dtype)}

    def assign(self, stats: Stats, x: Array) -> Array:
        e = stats["codebook"]
        # |x - e|^2 without |x|^2, which is the same for all codes.
        products = jnp.tensordot(x.astype(e.dtype), e, ((-1,), (-1,)), precision="highest")
        return jnp.argmin(as_row(jnp.square(e).sum(-1), x.ndim) - 2 * products, -1).astype(jnp.int32)

    def embed(self, stats: Stats, codes: Array) -> Array:
        return stats["codebook"][codes]

    def commit(self, x: Array, embedded: Array) -> Array:
        return self.commitment * jnp.square(x - jax.lax.stop_gradient(embedded)).mean(range(1, x.ndim))

    def observe(self, x: Array, codes: Array, batch: BatchFacts) -> Stats:
        """Returns the statistics of a training batch, as means over the examples of this device, for `learn`.

        x: the encoder's outputs [B, ..., size]; codes: their codes, int32 [B, ...]. The results are:

        "uses" [codes]: number of positions of an example that have each code.
        "sums" [codes, size]: sum of the vectors of an example that have each code.
        "square" []: mean square of the elements of x.
        "candidates" [codes, size]: for each code, the vector with which it may be revived, divided by B. The vector is
            at a random position of a random example of the global batch. On devices without this example it is 0, so
            the mean over devices is the vector divided by the global batch size.
        """
        whole = jnp.promote_types(x.dtype, jnp.float32)
        b, flat = len(x), x.reshape(len(x), -1, self.size).astype(whole)
        uses, sums = sum_by_code(flat.reshape(-1, self.size), codes.reshape(-1), self.codes)
        # All devices draw the same rows of the global batch. Only the device that holds a row has its vector.
        row_key, place_key, _ = jax.random.split(batch.key, 3)
        row = jax.random.randint(row_key, (self.codes,), 0, batch.size)
        place = jax.random.randint(place_key, (self.codes,), 0, flat.shape[1])
        here = row[:, None] == batch.row[None]
        candidates = jnp.where(here.any(1)[:, None], flat[here.argmax(1), place], 0)
        square = jnp.square(flat).mean()
        return {"uses": uses / b, "sums": sums / b, "square": square, "candidates": candidates / b}

    def learn(self, stats: Stats, seen: Stats, batch: BatchFacts) -> Stats:
        """Returns the statistics with updated moving averages, in which hardly used codes are revived.

        "codebook" [codes, size]: the vector of each code, m / N in van den Oord et al. 2017, equations 6 to 8. "uses"
        [codes]: average number of positions of an example that have each code, N. seen: mean of `observe` over devices.
        """
        e, before = stats["codebook"], stats["uses"]
        uses = self.decay * before + (1 - self.decay) * seen["uses"]
        # The paper's moving sum m equals N e, so it need not be stored.
        sums = self.decay * before[:, None] * e + (1 - self.decay) * seen["sums"]
        moved = jnp.where(uses[:, None] > 0, sums / jnp.maximum(uses, jnp.finfo(uses.dtype).tiny)[:, None], e)
        # A revived code starts with the mean number of uses. So it has many steps to attract vectors before it is
        # revived again.
        mean_use = seen["uses"].mean()
        dead = uses < self.revive * mean_use
        # Many positions of a batch may have equal vectors, such as positions of a background. Without noise, codes
        # revived from them would be equal, and rounding, which depends on the number of devices, would choose among
        # these codes.
        # `observe` uses the first two of these keys.
        _, _, noise_key = jax.random.split(batch.key, 3)
        noise = jax.random.normal(noise_key, e.shape, e.dtype)
        revived = seen["candidates"] * batch.size + REVIVAL_NOISE * jnp.sqrt(seen["square"]) * noise
        return {
            "codebook": jnp.where(dead[:, None], revived, moved),
            "uses": jnp.where(dead, mean_use, uses),
        }

    def tiny(self) -> VQ:
        return replace(self, codes=8, size=2)


def sum_by_code(x: Array, codes: Array, n: int) -> tuple[Array, Array]:
    """Returns how often each of n codes is used, [n], and the sum of the vectors with each code, [n, D], in x's dtype.

    x: vectors [N, D]; codes: int32 [N] in [0, n). The result has the same bits in every run, and memory is bounded by
        MAX_ONE_HOT.
    """

    def add(x: Array, codes: Array) -> tuple[Array, Array]:
        # A product and not a scatter: on a GPU, a scatter adds in a different order in each run, so its bits differ.
        chosen = jax.nn.one_hot(codes, n, dtype=x.dtype)
        return chosen.sum(0), jnp.tensordot(chosen, x, ((0,), (0,)), precision="highest")

    # The rows are divided into parts, so that the one-hot matrix of a part stays below MAX_ONE_HOT.
    parts = min(len(x), math.ceil(len(x) * n / MAX_ONE_HOT))
    if parts == 1:
        return add(x, codes)
    # Padding gets the code n, which is out of range, so its one-hot vector is 0.
    padding = -len(x) % parts
    x, codes = jnp.pad(x, ((0, padding), (0, 0))), jnp.pad(codes, (0, padding), constant_values=n)

    def step(sums: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, sums, add(*part)), None

    # Part i has the rows i, i + parts, ...: neighbours stay on their device when the rows are sharded.
    divided = x.reshape(-1, parts, x.shape[1]).swapaxes(0, 1), codes.reshape(-1, parts).swapaxes(0, 1)
    zero = jnp.zeros(n, x.dtype), jnp.zeros((n, x.shape[1]), x.dtype)
    return jax.lax.scan(step, zero, divided)[0]
