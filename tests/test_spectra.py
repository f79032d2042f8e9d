"""Spectra, compared with their definition, their inverses, and numbers of librosa.

`python tests/test_spectra.py` prints librosa's numbers if librosa is installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.errors import UserError
from gen.networks import spectra
from gen.networks.spectra import Mel

RATE, MEL = 8000, Mel(window=256, hop=64, bands=6, low=50.0)
T = 640
LOG_MELS = jax.jit(lambda x: spectra.log_mels(x, RATE, MEL))
# log(max(1e-5, mels)) of `sound()`, frames 0, 5 and 10 of 11.
LIBROSA = [
    [-3.7136393, -5.6466157, -9.9846249, -11.4184257, -11.5129255, -11.5129255],
    [-9.0863691, -3.9597273, -1.3686098, -2.0976959, -7.162673, -11.5129255],
    [-4.4676306, -4.322119, -4.0349129, -2.9455159, -1.4038467, -3.1292503],
]


def sound() -> np.ndarray:
    """A chirp from 200 Hz that gets louder, float64 [T]."""
    t = np.arange(T) / RATE
    return np.sin(2 * np.pi * (200 * t + 12_000 * t**2)) * t / t[-1]


def stft_by_definition(x: np.ndarray, window: int, hop: int) -> np.ndarray:
    padded = np.pad(x, (window // 2, window))
    weights = np.sin(np.pi * np.arange(window) / window) ** 2
    basis = np.exp(-2j * np.pi * np.outer(np.arange(window), np.arange(window // 2 + 1)) / window)
    starts = range(0, len(x) + 1, hop)
    return np.stack([(padded[start : start + window] * weights) @ basis for start in starts])


def there_and_back(x, window, hop):
    found = spectra.stft(x, window, hop)
    return found, spectra.istft(found, hop, x.shape[-1])


@pytest.mark.parametrize(("t", "window", "hop"), [(640, 64, 16), (645, 64, 16), (50, 64, 64), (63, 32, 16)])
def test_a_transform_by_its_definition_and_its_inverse(t, window, hop):
    x = np.random.default_rng(0).normal(size=(2, t))
    with jax.enable_x64():
        found, back = jax.jit(there_and_back, static_argnums=(1, 2))(jnp.asarray(x), window, hop)
    np.testing.assert_allclose(found, [stft_by_definition(row, window, hop) for row in x], atol=1e-11)
    # With hop = window the Hann window is 0 between two frames, where nothing is known.
    known = t if hop < window else window // 2 - 1
    np.testing.assert_allclose(back[:, 1:known], x[:, 1:known], atol=1e-11 if hop < window else 1e-6)
    assert back.shape == x.shape


def test_log_mels_are_those_of_librosa():
    with jax.enable_x64():
        exact = np.asarray(LOG_MELS(jnp.asarray(sound())))
    np.testing.assert_allclose(exact[::5], LIBROSA, atol=1e-5)
    found = np.asarray(LOG_MELS(jnp.asarray(sound(), jnp.float32)))
    np.testing.assert_allclose(np.exp(found), np.exp(exact), atol=1e-5)
    np.testing.assert_allclose(found, exact, atol=1e-3)


def test_filters_have_the_area_of_slaneys():
    mel = Mel(window=8192, hop=64, bands=20, low=100, high=3800)
    area = spectra.mel_filters(RATE, mel).sum(0) * RATE / mel.window
    np.testing.assert_allclose(area, 1, rtol=1e-2)
    assert np.ptp(np.diff(spectra.mel_filters(RATE, mel).argmax(0))[:7]) <= 1  # equal steps below 1000 Hz


def test_griffin_lim_finds_a_waveform_of_the_given_magnitudes():
    x = jnp.asarray(sound(), jnp.float32)
    wanted = spectra.magnitude(spectra.stft(x, 128, 32))

    y = jax.jit(lambda key: spectra.griffin_lim(wanted, 32, T, key, 60))(jax.random.key(0))
    found = spectra.magnitude(spectra.stft(y, 128, 32))
    assert y.shape == x.shape
    assert float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted)) < 0.1


def test_magnitudes_of_mels_have_these_mels():
    x = jnp.asarray(sound(), jnp.float32)
    wanted = spectra.mels(x, RATE, MEL)
    found = spectra.from_log_mels(jnp.log(wanted + 1e-5), RATE, MEL) @ jnp.asarray(spectra.mel_filters(RATE, MEL))
    assert float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted)) < 0.15


def test_corrections_bring_log_mels_nearer():
    x, noise = jnp.asarray(sound(), jnp.float32), 0.1 * jax.random.normal(jax.random.key(0), (T,))
    wanted = spectra.log_mels(x, RATE, MEL)

    def distance(y):
        return float(jnp.abs(spectra.log_mels(y, RATE, MEL) - wanted).mean())

    correct = jax.jit(lambda y, rounds: spectra.correct_mels(y, wanted, RATE, MEL, rounds), static_argnums=1)
    distances = [distance(correct(noise, rounds)) for rounds in (0, 2, 4, 16)]
    assert distances[0] == distance(noise) and distances[1] < 0.5 * distances[0]
    assert distances == sorted(distances, reverse=True)
    np.testing.assert_allclose(correct(x, 4), x, atol=1e-4)  # nothing is missing


def test_the_gradient_of_silence_is_finite():
    gradient = jax.jit(jax.grad(lambda x: spectra.log_mels(x, RATE, MEL).sum()))(jnp.zeros(T))
    assert np.isfinite(gradient).all()
    correct = jax.jit(jax.grad(lambda x: spectra.correct_mels(x, jnp.zeros((1 + T // 64, 6)), RATE, MEL, 2).sum()))
    assert np.isfinite(correct(jnp.zeros(T))).all()


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="multiple of the hop, such as 128"):
        Mel(window=100, hop=64)
    with pytest.raises(UserError, match="do not lie in"):
        spectra.mel_filters(RATE, Mel(high=5000.0))


if __name__ == "__main__":
    import librosa  # pyright: ignore[reportMissingImports]

    options = {"n_fft": MEL.window, "hop_length": MEL.hop, "n_mels": MEL.bands, "fmin": MEL.low}
    mels = librosa.feature.melspectrogram(y=sound(), sr=RATE, power=1, dtype=np.float64, **options).T
    print(np.log(np.maximum(mels, MEL.floor))[::5].round(7).tolist())
