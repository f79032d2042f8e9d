"""Vector quantization: a bottleneck with a codebook of moving averages, which are taken over the global batch."""

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
"""Standard deviation of the noise on the vector of a revived code, as a fraction of the root mean square of all vectors."""
MAX_ONE_HOT = 2**24
"""Upper bound on the numbers of a matrix of one-hot codes: 64 MiB in float32."""


@dataclass(frozen=True)
class VQ(Quantizer):
    """Vector quantization by a codebook of moving averages. van den Oord et al. 2017, section 3.2 and appendix A.1.

    A code that is hardly used is replaced by a vector of a random example, with a little noise (Dhariwal et al. 2020, appendix
    B.1), so that the codebook does not collapse. At step 0 no code is in use, so the first batch fills the codebook.
    """

    codes: int = 1024
    """Number of codes."""
    size: int = 8
    """Length of a code's vector. With short vectors most codes stay in use (Yu et al. 2022)."""
    decay: float = 0.99
    """Decay of the moving averages: of the codes' vectors, and of how often each code is used."""
    commitment: float = 0.25
    """Weight of the squared distance between the encoder's vectors and their codes."""
    revive: float = 0.1
    """A code is replaced if it is used less than this fraction of the mean over all codes. 0: never."""

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
        """Returns means over the examples of this device, which the mean over devices makes the same everywhere.

        "uses" [codes]: how often each code is used. "sums" [codes, size]: sum of the vectors of each code. "square" []: mean square
        of a vector's numbers. "candidates" [codes, size]: for each code, the vector at a random place of a random example of the
        global batch, divided by the number of examples of this device. It is 0 on devices without that example, so the mean over
        devices is the vector divided by the size of the global batch.
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
        """Returns the codebook: each code is the moving average of its vectors, and dead codes are revived.

        van den Oord et al. 2017, equations 6 to 8. The mean m / N of each code is stored, and not the paper's sum m.
        """
        e, before = stats["codebook"], stats["uses"]
        uses = self.decay * before + (1 - self.decay) * seen["uses"]
        sums = self.decay * before[:, None] * e + (1 - self.decay) * seen["sums"]
        moved = jnp.where(uses[:, None] > 0, sums / jnp.maximum(uses, jnp.finfo(uses.dtype).tiny)[:, None], e)
        # A revived code starts as if it were used as often as the mean code. So it has many steps to find vectors before it counts
        # as dead again.
        mean_use = seen["uses"].mean()
        dead = uses < self.revive * mean_use
        # Many places of a batch may have equal vectors, such as a background. Without noise, codes that are revived from them would be
        # equal. Rounding would then choose among these codes, and it depends on the number of devices.
        # `observe` uses the other keys.
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
    """Returns how often each code is used [n], and the sum of the vectors of each code [n, D], in the dtype of x.

    x: [N, D]; codes: int32 [N] in [0, n). The bits are the same in each run, and memory is bounded by MAX_ONE_HOT.
    """

    def add(x: Array, codes: Array) -> tuple[Array, Array]:
        # A product and not a scatter: on a GPU, a scatter adds in a different order in each run, so its bits differ.
        chosen = jax.nn.one_hot(codes, n, dtype=x.dtype)
        return chosen.sum(0), jnp.tensordot(chosen, x, ((0,), (0,)), precision="highest")

    # A part has one row at least.
    parts = min(len(x), math.ceil(len(x) * n / MAX_ONE_HOT))
    if parts == 1:
        return add(x, codes)
    # The rows that fill up the last part have the code n, which is the zero vector as one-hot.
    padding = -len(x) % parts
    x, codes = jnp.pad(x, ((0, padding), (0, 0))), jnp.pad(codes, (0, padding), constant_values=n)

    def step(sums: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, sums, add(*part)), None

    # Part i has the rows i, i + parts, ...: neighbours stay on their device when the rows are sharded.
    divided = x.reshape(-1, parts, x.shape[1]).swapaxes(0, 1), codes.reshape(-1, parts).swapaxes(0, 1)
    zero = jnp.zeros(n, x.dtype), jnp.zeros((n, x.shape[1]), x.dtype)
    return jax.lax.scan(step, zero, divided)[0]
