"""Vector quantization: a bottleneck with a codebook of moving averages, which are taken over the global batch."""

from __future__ import annotations

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


@dataclass(frozen=True)
class VQ(Quantizer):
    """Vector quantization by a codebook of moving averages. van den Oord et al. 2017, section 3.2 and appendix A.1.

    A code that is hardly used gets the vector of a random example, and a little noise (Dhariwal et al. 2020, appendix B.1), so that the codebook does not
    collapse. At step 0 no code is in use, so the first batch fills the codebook.
    """

    codes: int = 1024
    """Number of codes."""
    size: int = 8
    """Numbers in a vector. Few of them keep most codes in use (Yu et al. 2022)."""
    decay: float = 0.99
    """Decay of the moving averages of the codes and of their use."""
    commitment: float = 0.25
    """Weight of the squared distance between the encoder's vectors and their codes."""
    revive: float = 0.1
    """A code that is used less than this fraction of the mean use is replaced. 0: never."""

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
        """Returns the uses of each code [codes] and the sum of its vectors [codes, size], both per example, the mean "square" of a
        vector's numbers, and `candidates` to revive codes.

        The candidate of a code is the vector at a random place of a random example of the global batch, divided by the size of that
        batch. Other devices give 0 for it, so that the mean over all examples is the same on each device.
        """
        whole = jnp.promote_types(x.dtype, jnp.float32)
        b, flat = len(x), x.reshape(len(x), -1, self.size).astype(whole)
        # A product instead of a scatter, whose sum has another order, and so other bits, at each run on a GPU.
        chosen = jax.nn.one_hot(codes.reshape(-1), self.codes, dtype=flat.dtype)
        sums = jnp.tensordot(chosen, flat.reshape(-1, self.size), ((0,), (0,)), precision="highest")
        # All devices draw the same rows of the global batch. Only the device that holds a row has its vector.
        row_key, place_key = jax.random.split(batch.key)
        row = jax.random.randint(row_key, (self.codes,), 0, batch.size)
        place = jax.random.randint(place_key, (self.codes,), 0, flat.shape[1])
        here = row[:, None] == batch.row[None]
        candidates = jnp.where(here.any(1)[:, None], flat[here.argmax(1), place], 0)
        square = jnp.square(flat).mean()
        return {"uses": chosen.sum(0) / b, "sums": sums / b, "square": square, "candidates": candidates / b}

    def learn(self, stats: Stats, seen: Stats, batch: BatchFacts) -> Stats:
        """Returns the codebook with each code as the moving average of its vectors, and dead codes revived.

        van den Oord et al. 2017, equations 6 to 8, for the mean m / N of each code instead of its sum m.
        """
        e, before = stats["codebook"], stats["uses"]
        uses = self.decay * before + (1 - self.decay) * seen["uses"]
        sums = self.decay * before[:, None] * e + (1 - self.decay) * seen["sums"]
        moved = jnp.where(uses[:, None] > 0, sums / jnp.maximum(uses, jnp.finfo(uses.dtype).tiny)[:, None], e)
        # A code that was revived begins with the mean use. So it has many steps to find vectors before it is dead again.
        mean_use = seen["uses"].mean()
        dead = uses < self.revive * mean_use
        # Many places of a batch may be equal, such as those of a background. Without noise, codes that are revived there would be equal
        # too, and rounding would choose among them, differently on each number of devices.
        noise = jax.random.normal(jax.random.fold_in(batch.key, 1), e.shape, e.dtype)
        revived = seen["candidates"] * batch.size + REVIVAL_NOISE * jnp.sqrt(seen["square"]) * noise
        return {
            "codebook": jnp.where(dead[:, None], revived, moved),
            "uses": jnp.where(dead, mean_use, uses),
        }

    def tiny(self) -> VQ:
        return replace(self, codes=8, size=2)
