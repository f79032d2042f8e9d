"""Pictures or recordings as sources, and their captions as the texts that a model writes: text to image with its two sides exchanged."""

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
"""Part of the digest. Raise its number if sources or tokens are computed differently."""
SOURCES = ("tokens", "latent", "image", "audio")
"""Features that can be the source. The first one that the data have is taken."""
KEPT = ("row", "index", "weight")
"""Entries of a batch that every model reads."""
CHUNK = 1000
"""Captions that are read at a time for the baseline."""


@dataclass(frozen=True, kw_only=True)
class ToText(core.Data):
    """Captions to write, given their pictures or recordings: "source" [B, ...], and "tokens" int32 [B, L + 2].

    A source is a picture float32 [B, H, W, C] in [-1, 1]; for recordings, log-mel frames float32 [B, frames, bands]; for Encoded data,
    the codes or latents. The tokens are an end token, the caption, and end tokens. Batches also have "counted" uint8 [B, L + 2], which
    is 1 for the caption and the end token after it, and "bytes" int32 [B], of the caption.
    """

    data: core.Data = Captioned()
    """Data with captions: Captioned, Transcribed, or Encoded data of one of them. The batch_size of these data is not used."""
    mel: Mel = Mel()
    """Log-mel frames of recordings."""

    def resolve(self) -> ToText:
        return replace(self, data=self.data.resolve())

    def medium(self) -> core.Medium:
        return DESCRIBED

    def build(self) -> Dataset:
        """Exchanges pictures or recordings and their captions. Raises: UserError if the data can't be used, or have no captions."""
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
            # As the sources of pairs of images. Without axes it would be a text.
            source = replace(source, axes=("row", "column", "color"))
        return data._replace(
            spec={"source": source, "tokens": replace(caption, shape=(caption.shape[0] + 2,))},
            digest=sha256(FORMAT, data.digest, settings),
            preprocess=exchange.preprocess,
            baselines=exchange.baselines,
            # They are the source, and not what samples are compared with.
            images=None,
        )


@dataclass(frozen=True)
class Exchange:
    """The functions of a data set of texts to write."""

    data: Dataset
    """The data set with captions."""
    name: str
    """Name of the feature that becomes the source."""
    mel: Mel
    tokenizer: tokenizers.Tokenizer

    @property
    def end(self) -> int:
        """The token that ends captions."""
        return tokenizers.end(self.tokenizer)

    def preprocess(self, batch: Batch, key: Key, training: bool) -> Batch:
        """Turns a batch with captions into one with sources and tokens, as `ToText` describes it."""
        source = self.data.preprocess(batch, key, training)[self.name]
        if self.name == "audio":
            source = to_frames(source, self.data.spec["audio"].sample_rate or 1, self.mel)
        caption = jnp.asarray(batch["caption"], jnp.int32)
        length = (caption != self.end).sum(1)
        # The end token after a caption is predicted too: it says where the caption stops.
        index = jnp.arange(caption.shape[1] + 2)[None]
        widths = jnp.asarray(tokenizers.widths(self.tokenizer))
        return {name: batch[name] for name in KEPT} | {
            "source": source,
            "tokens": jnp.pad(caption, ((0, 0), (1, 1)), constant_values=self.end),
            "counted": ((index > 0) & (index <= length[:, None] + 1)).astype(jnp.uint8),
            "bytes": widths[caption].sum(1),
        }

    def baselines(self) -> dict[str, float]:
        """Returns {"kneser_ney": nats per token of n-grams}, which see no source, on the test captions."""

        def make() -> Arrays:
            # Imported only if the number is not in the cache.
            from gen.data.text import ngram

            train, test = (self.stream(split) for split in ("train", "test"))
            return {"kneser_ney": np.array(ngram.kneser_ney(train, test, tokenizers.size(self.tokenizer)).nats)}

        kept = load_or_make(sha256(FORMAT, "n-grams", self.data.digest), make, "a score of n-grams")
        return {name: float(number) for name, number in kept.items()}

    def stream(self, split: str) -> np.ndarray:
        """Returns the captions of a split one after the other, with an end token before each and after the last, int32 [N]."""
        rows = [np.array([self.end], np.int32)]
        for batch in self.data.evaluation(split, min(CHUNK, self.data.sizes[split])):
            captions = batch["caption"][batch["weight"] > 0]
            rows += [np.append(row[row != self.end], np.int32(self.end)) for row in captions]
        return np.concatenate(rows)
