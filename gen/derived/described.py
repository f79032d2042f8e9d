"""The medium of captions: texts that a model writes about a given picture (--image) or recording (--audio)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen.core import Array, Feature, Given, Medium, Request, RunView, Shown
from gen.data.audio import to_float
from gen.data.audio.frames import to_frames
from gen.data.images import pixels
from gen.data.text import tokenizers
from gen.derived.code_images import read_kept_codec
from gen.derived.code_sounds import embed_sound, read_recording
from gen.derived.encoded import Encoded
from gen.errors import UserError
from gen.media.pictures import EMBEDDED, embed
from gen.media.text import RULE, join_texts

MAX_EXAMPLES = 16
"""Number of validation examples to describe if the user gives neither a picture nor a recording."""


@dataclass(frozen=True)
class DescribedOptions:
    """Options of samples that are captions: the picture or the recording to describe."""

    image: str | None = None
    """File of a picture to write captions for. It is resized and cropped like the training pictures. Default: validation
    examples."""
    audio: Path | None = None
    """File of a recording to write texts for. Default: validation examples."""
    content: tyro.conf.Suppress[str] = ""
    """Content of the recording, in base64, as a manifest keeps it."""


@dataclass(frozen=True)
class Described(Medium):
    """Shows captions, tokens int32 [n, T], as text. The tokens after the end of a caption are PADDING, -1."""

    options: ClassVar[type] = DescribedOptions

    def read_options(self, options: DescribedOptions) -> DescribedOptions:
        """Returns the options with the content of the given file instead of its name. Raises: UserError if it can't be read."""
        if options.image is not None and not options.image.startswith(EMBEDDED):
            options = replace(options, image=embed("image", options.image))
        if options.audio is not None:
            options = replace(options, audio=None, content=embed_sound(options.audio))
        return options

    def check(self, options: DescribedOptions, request: Request, run: RunView) -> None:
        """Raises: UserError if a picture is given to a run that describes recordings, or the other way round."""
        wrong, right = ("image", "audio") if find_source(run).sample_rate else ("audio", "image")
        given = {"image": bool(options.image), "audio": bool(options.content)}
        if given[wrong]:
            nouns = {"image": "pictures", "audio": "recordings"}
            raise UserError(f"--{wrong} is not used: the run describes {nouns[right]}; the fix: --{right} FILE")

    def give(self, options: DescribedOptions, run: RunView) -> Given:
        """Returns the given picture or recording as "source" [1, ...], in the form that the model reads.

        If no file is given: the sources of the first validation examples, [n, ...]. Raises: UserError if the file can't
        be used.
        """
        example = find_source(run)
        if options.image:
            return Given({"source": encode(read_picture(options.image, example), run)})
        if options.content:
            x = read_recording(base64.b64decode(options.content), example)
            padded = np.pad(x, ((0, example.shape[0] - len(x)), (0, 0)))
            return Given({"source": encode(to_float(padded)[None], run)})
        return Given({"source": run.reference()["source"][:MAX_EXAMPLES]})

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: DescribedOptions | None = None) -> Shown:
        """Returns samples.txt. Captions of a given file: one per line. Otherwise a block for each validation example.

        A block has the true caption in square brackets, and then the generated captions.
        """
        coder = tokenizers.load(run.read_file(tokenizers.FILE))
        texts = join_texts(samples, coder)
        if options is not None and (options.image or options.content):
            return Shown({"samples.txt": "".join(f"{text}\n" for text in texts).encode()})
        # During training (no options), samples are drawn for all reference examples. sample.py gives only the first ones.
        known = run.reference()["tokens"][: len(texts) if options is None else MAX_EXAMPLES]
        n = len(texts) // len(known)
        blocks = [
            "\n".join([f"[{tokenizers.decode(coder, row)}]", *texts[n * i : n * (i + 1)]])
            for i, row in enumerate(known.tolist())
        ]
        return Shown({"samples.txt": (RULE.join(blocks) + "\n").encode()})

    def describe(self, files: Mapping[str, bytes], options: DescribedOptions) -> str:
        """Returns the text of samples.txt, for sample.py to print."""
        return files["samples.txt"].decode().removesuffix("\n")


DESCRIBED = Described()
"""The medium of captions."""


def find_source(run: RunView) -> Feature:
    """Returns the feature of the pictures or recordings that a run describes, before they become codes or log-mel frames."""
    data: Any = run.data
    if isinstance(data.data, Encoded):
        return read_kept_codec(run).coder.example
    source = run.spec["source"]
    if source.sample_rate is None:
        return source
    # The spec describes the log-mel frames, but not the sound from which they are computed.
    sound = data.data.sound()
    return Feature((sound.samples, sound.channels), sample_rate=sound.rate)


def encode(x: Array, run: RunView) -> np.ndarray:
    """Converts pictures [B, H, W, C] or recordings [B, T, C], floats in [-1, 1], to the sources that the run's model reads.

    Pictures stay as they are, recordings become log-mel frames, and for Encoded data both become codes.
    """
    data: Any = run.data
    if not isinstance(data.data, Encoded):
        rate = run.spec["source"].sample_rate
        return np.asarray(x if rate is None else to_frames(x, rate, data.mel))
    codec = read_kept_codec(run)
    codes: Array = jax.jit(codec.encode)(x)
    return np.asarray(codes if codec.coder.codes.vocab else codes / codec.scale)


def read_picture(embedded: str, image: Feature) -> Array:
    """Decodes a picture to float32 [1, H, W, C] in [-1, 1], the shape of the feature `image`.

    embedded: the picture as text, as `gen.media.pictures.embed` returns it. If the feature is square, the picture is resized and cropped.

    Raises: UserError if the picture is damaged, or if the feature is not square and the picture has another size.
    """
    height, width, channels = image.shape
    content = base64.b64decode(embedded.removeprefix(EMBEDDED))
    try:
        found = pixels.decode(content, height if height == width else None, channels)
    except ValueError as error:
        raise UserError(f"the picture of --image is damaged: {error}") from None
    pixels.check_shape("the picture", found.shape, image.shape)
    return jnp.asarray(found[None], jnp.float32) / 127.5 - 1
