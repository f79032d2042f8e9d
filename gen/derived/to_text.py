"""Data sets for captioning: a model reads a picture or a recording (the source), and writes its caption."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from gen import core
from gen.core import Batch, Dataset, Key
from gen.data.audio.frames import frames_feature, to_frames
from gen.data.cache import Arrays, load_or_make
from gen.data.digest import sha256
from gen.data.images.captions import Captioned
from gen.data.text import tokenizers
from gen.derived.described import DESCRIBED
from gen.errors import UserError
from gen.networks.spectra import Mel

FORMAT = "to text 1"
"""Part of the data's digest and of the cache key. Raise its number if sources or tokens are computed differently."""
SOURCES = ("tokens", "latent", "image", "audio")
"""Features that can become the source. The first of them that the data have is used."""
KEPT = ("row", "index", "weight")
"""Entries that every batch has (gen.core.Batch)."""
CHUNK = 1000
"""Largest number of captions that are read at once for the baseline."""


@dataclass(frozen=True, kw_only=True)
class ToText(core.Data):
    """Captions as texts that a model writes, and their pictures or recordings as sources, which it reads. Batches have:

    "source": pictures float32 [B, H, W, C] in [-1, 1]; log-mel frames float32 [B, frames, bands] of recordings; for
    Encoded data, their tokens or latents. "tokens": int32 [B, L + 2], where captions are padded to L: an end token, the
    caption, and end tokens. "counted": uint8 [B, L + 2], 1 for tokens that count for the loss (the caption and one end
    token after it). "bytes": int32 [B], length of the caption.
    """

    data: core.Data = Captioned()
    """Data with captions: Captioned, Transcribed, or Encoded data of one of them. Their batch_size is not used."""
    mel: Mel = Mel()
    """Settings of the log-mel frames. Only recordings use them."""

    def resolve(self) -> ToText:
        return replace(self, data=self.data.resolve())

    def medium(self) -> core.Medium:
        return DESCRIBED

    def build(self) -> Dataset:
        """Returns the data set of sources and captions. Raises: UserError if the data can't be used, or have no captions."""
        data = replace(self.data, batch_size=self.batch_size).build()
        name = next((name for name in SOURCES if name in data.spec), None)
        if name is None or "caption" not in data.spec:
            raise UserError(
                f"captions are the texts to write, and the data have {', '.join(data.spec)}; choose data with captions, such as "
                "Captioned or Transcribed"
            )
        caption, source = data.spec["caption"], data.spec[name]
        exchange = Exchange(data, name, self.mel, tokenizers.load(data.files[tokenizers.FILE]))
        settings = ""
        if name == "audio":
            source, settings = frames_feature(source, self.mel), repr(self.mel)
        if name == "image":
            # Named axes mark a grid, as in pairs of images. A source without axes counts as a sequence, such as text.
            source = replace(source, axes=("row", "column", "color"))
        return data._replace(
            spec={"source": source, "tokens": replace(caption, shape=(caption.shape[0] + 2,))},
            digest=sha256(FORMAT, data.digest, settings),
            preprocess=exchange.preprocess,
            baselines=exchange.baselines,
            # The samples are texts, so they are not compared with images.
            images=None,
        )


@dataclass(frozen=True)
class Exchange:
    """The functions `preprocess` and `baselines` of a data set for captioning. See `gen.core.Dataset` and `ToText`."""

    data: Dataset
    """The data set of pictures or recordings with captions."""
    name: str
    """Name of the feature that becomes the source."""
    mel: Mel
    tokenizer: tokenizers.Tokenizer

    @property
    def end(self) -> int:
        """The token before and after each caption."""
        return tokenizers.end(self.tokenizer)

    def preprocess(self, batch: Batch, key: Key, training: bool) -> Batch:
        """Converts a batch with captions to the arrays that `ToText` describes, and "row", "index" and "weight"."""
        source = self.data.preprocess(batch, key, training)[self.name]
        if self.name == "audio":
            source = to_frames(source, self.data.spec["audio"].sample_rate or 1, self.mel)
        caption = jnp.asarray(batch["caption"], jnp.int32)
        length = (caption != self.end).sum(1)
        # The end token after a caption is also predicted, so that the model learns where captions stop.
        index = jnp.arange(caption.shape[1] + 2)[None]
        widths = jnp.asarray(tokenizers.widths(self.tokenizer))
        return {name: batch[name] for name in KEPT} | {
            "source": source,
            "tokens": jnp.pad(caption, ((0, 0), (1, 1)), constant_values=self.end),
            "counted": ((index > 0) & (index <= length[:, None] + 1)).astype(jnp.uint8),
            # The end token has no bytes, so padding adds nothing.
            "bytes": widths[caption].sum(1),
        }

    def baselines(self) -> dict[str, float]:
        """Returns {"kneser_ney": nats per token} of an n-gram model, which does not see the sources, on the test captions."""

        def make() -> Arrays:
            # Imported here, because it is only needed if the score is not in the cache.
            from gen.data.text import ngram

            train, test = (self.stream(split) for split in ("train", "test"))
            return {"kneser_ney": np.array(ngram.kneser_ney(train, test, tokenizers.size(self.tokenizer)).nats)}

        kept = load_or_make(sha256(FORMAT, "n-grams", self.data.digest), make, "a score of n-grams")
        return {name: float(number) for name, number in kept.items()}

    def stream(self, split: str) -> np.ndarray:
        """Returns all captions of a split as one sequence int32 [N], with an end token before each caption and after the last."""
        rows = [np.array([self.end], np.int32)]
        for batch in self.data.evaluation(split, min(CHUNK, self.data.sizes[split])):
            captions = batch["caption"][batch["weight"] > 0]
            rows += [np.append(row[row != self.end], np.int32(self.end)) for row in captions]
        return np.concatenate(rows)
