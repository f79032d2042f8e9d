"""Compares a codec or a vocoder with Griffin-Lim and Opus, which need no training: python -m benchmarks.sound RUN [--n 100]

Prints three numbers for the run, for Griffin-Lim (60 iterations from the log-mels of the original), and for Opus at the lowest
rate of libsndfile: the mel distance (nats) and the SI-SDR (dB) of the reconstructions of n test windows, and the kilobits per
second of the codes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen.core import Array, Dataset
from gen.data.audio.sound import load_soundfile
from gen.errors import UserError, run_command, show
from gen.families.tokenizer import Tokenizer
from gen.families.tokenizer.quality import measure_quality
from gen.families.tokenizer.spectral import measured_mel, mel_distance, si_sdr
from gen.networks.spectra import Mel, from_log_mels, griffin_lim, log_mels
from gen.networks.vocoder import SpectralNetwork
from gen.runs.trained import open_run

CHUNK = 50


class Score(NamedTuple):
    """Means over the windows."""

    mel_distance: float
    """In nats."""
    si_sdr: float
    """In dB."""
    bits_per_second: float | None


def main(workdir: tyro.conf.Positional[Path], n: int = 100) -> None:
    """Prints the scores of a run and of its baselines, a line each."""
    run = open_run(workdir)
    audio = run.spec.get("audio")
    if not isinstance(run.config.model, Tokenizer) or audio is None or audio.sample_rate is None:
        raise UserError(f"{workdir} is neither a codec nor a vocoder; name the run of a tokenizer of sound")
    x, rate = read_test(run.build_data(None), n), audio.sample_rate
    state, model = run.restore(run.choose_step(), None), run.model

    def reconstruct(x: Array) -> Array:
        pairs = model.generate(state, jax.random.key(0), {"audio": x}, model.request(n=len(x)))["samples"]
        return pairs[1::2].reshape(x.shape)

    network = run.config.model.network
    mel = network.mel if isinstance(network, SpectralNetwork) else measured_mel(rate)
    coder = run.config.model.coder(run.spec)
    made = by_chunks(reconstruct, x)
    quality = measure_quality(jnp.asarray(x[:1]), jnp.asarray(made[:1]), audio, coder.codes)
    bits = float(quality["bits_per_second"][0]) if "bits_per_second" in quality else None
    opus, opus_bits = by_opus(x, rate)
    rows = {
        str(workdir): score(x, made, rate, bits),
        "Griffin-Lim": score(x, by_chunks(lambda x: by_griffin_lim(x, rate, mel), x), rate, None),
        "Opus": score(x, opus, rate, opus_bits),
    }
    for name, found in rows.items():
        kbits = "" if found.bits_per_second is None else f", {found.bits_per_second / 1000:.2f} kbit/s"
        show(f"{name}: mel distance {found.mel_distance:.3f}, SI-SDR {found.si_sdr:.1f} dB{kbits}")


def read_test(data: Dataset, n: int) -> np.ndarray:
    """Returns the first n test windows, float32 [n, T, C]."""
    batch = next(iter(data.evaluation("test", min(n, data.sizes["test"]))))
    return np.asarray(data.preprocess(jax.device_put(batch), jax.random.key(0), False)["audio"])


def by_chunks(function: Callable[[Array], Array], x: np.ndarray) -> np.ndarray:
    """Returns the function of x [n, ...], computed for CHUNK examples at a time."""
    compiled = jax.jit(function)
    # The last chunk is filled up with the last example, so that all chunks have the same shape.
    starts = range(0, len(x), CHUNK)
    rows = [np.minimum(np.arange(start, start + CHUNK), len(x) - 1) for start in starts]
    return np.concatenate([np.asarray(compiled(x[row])) for row in rows])[: len(x)]


def by_griffin_lim(x: Array, rate: int, mel: Mel) -> Array:
    """Returns sound [n, T, C] from its log-mels alone, without any training."""
    waveforms = x.swapaxes(1, 2)
    magnitudes = from_log_mels(log_mels(waveforms, rate, mel), rate, mel)
    return griffin_lim(magnitudes, mel.hop, x.shape[1], jax.random.key(0)).swapaxes(1, 2)


def by_opus(x: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    """Returns sound [n, T, C] through Opus at its lowest rate, and the bits per second of one long file without its headers."""
    soundfile, whole = load_soundfile(), x.reshape(-1, x.shape[2])

    def encode(sound: np.ndarray) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, sound, rate, format="OGG", subtype="OPUS", compression_level=1.0)
        return file.getvalue()

    encoded = encode(whole)
    # A file of one sample consists of headers. They are subtracted, because they are not part of the rate.
    bits = 8 * (len(encoded) - len(encode(whole[:1]))) * rate / len(whole)
    decoded, _ = soundfile.read(io.BytesIO(encoded), dtype="float32", always_2d=True)
    decoded = np.pad(decoded, ((0, max(0, len(whole) - len(decoded))), (0, 0)))[: len(whole)]
    return decoded.reshape(x.shape), bits


def score(x: np.ndarray, y: np.ndarray, rate: int, bits: float | None) -> Score:
    """Returns the scores of reconstructions y of sound x, [n, T, C]."""
    a, b = jnp.asarray(x), jnp.asarray(y.clip(-1, 1))
    return Score(float(mel_distance(a, b, rate).mean()), float(si_sdr(a, b).mean()), bits)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
