"""Inception-v3 with random weights agrees with a numpy version, and with torch-fidelity where that is installed.

Also its input images, and the files of its weights."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax

from benchmarks import inception_weights
from gen.data.images import pixels
from gen.errors import UserError
from gen.metrics.inception import check_tensors, inception, network_input, resize, shapes
from gen.networks.inception import AVERAGE, MAXIMUM, Inception

Tensors = dict[str, np.ndarray]


def random_tensors() -> Tensors:
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith(("bn.weight", "running_var")):
            return rng.uniform(0.5, 1.5, shape)
        if len(shape) == 1:
            return rng.normal(0, 0.2, shape)
        return rng.normal(0, np.sqrt((2 if len(shape) == 4 else 0.02) / np.prod(shape[1:])), shape)

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes().items()}


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return random_tensors()


@pytest.fixture(scope="module")
def weights(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """uint8 [2, 20, 28, 3]: one of high and one of low contrast."""
    x = np.random.default_rng(1).integers(0, 256, (2, 20, 28, 3), np.uint8)
    return x // np.array([1, 4], np.uint8)[:, None, None, None]


@pytest.fixture(scope="module")
def extracted(weights: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features and log-probabilities from `gen`."""
    features, probabilities = inception(weights).extract(jnp.asarray(images, jnp.float32) / 127.5 - 1)
    return np.asarray(features), np.log(np.asarray(probabilities))


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Compares with a tolerance relative to the scale of the expected values."""
    scale = expected.std()
    assert scale > 1e-2, "nothing to compare"
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def windows(x: np.ndarray, height: int, width: int, stride: int, padding: tuple[int, int], fill: float) -> np.ndarray:
    """Returns the pixels under each position of the window: [height, width, B, H', W', C]."""
    rows, columns = padding
    x = np.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))[:, ::stride, ::stride]
    return view.transpose(4, 5, 0, 1, 2, 3)


def average(x: np.ndarray) -> np.ndarray:
    return np.nanmean(windows(x, 3, 3, 1, (1, 1), np.nan), axis=(0, 1))


def maximum(x: np.ndarray, stride: int = 1) -> np.ndarray:
    edge = 1 if stride == 1 else 0
    return windows(x, 3, 3, stride, (edge, edge), -np.inf).max(axis=(0, 1))


def plain(tensors: Tensors, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features [B, 2048] and logits [B, 1008] of x [B, 299, 299, 3].

    In the names of layers below, "/2" means stride 2 and "-" means no padding.
    """

    def conv(name: str, x: np.ndarray) -> np.ndarray:
        stride, padded = 2 if name.endswith("/2") else 1, not name.endswith(("/2", "-"))
        name = name.removesuffix("/2").removesuffix("-")
        kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        height, width = kernel.shape[:2]
        under = windows(x, height, width, stride, (height // 2, width // 2) if padded else (0, 0), 0.0)
        x = np.sum([np.tensordot(under[i, j], kernel[i, j], 1) for i, j in np.ndindex(height, width)], axis=0)
        g, b, m, v = (tensors[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        return np.maximum((x - m) / np.sqrt(v + 1e-3) * g + b, 0)

    def convs(block: str, names: str, x: np.ndarray) -> np.ndarray:
        for name in names.split():
            x = conv(block + name, x)
        return x

    def mixed(block: str, x: np.ndarray, pooled: np.ndarray, *branches: str) -> np.ndarray:
        return np.concatenate([*(convs(f"Mixed_{block}.branch", names, x) for names in branches), pooled], axis=-1)

    x = maximum(convs("Conv2d_", "1a_3x3/2 2a_3x3- 2b_3x3", x), 2)
    x = maximum(convs("Conv2d_", "3b_1x1 4a_3x3-", x), 2)
    for block in ("5b", "5c", "5d"):
        pooled = conv(f"Mixed_{block}.branch_pool", average(x))
        x = mixed(block, x, pooled, "1x1", "5x5_1 5x5_2", "3x3dbl_1 3x3dbl_2 3x3dbl_3")
    x = mixed("6a", x, maximum(x, 2), "3x3/2", "3x3dbl_1 3x3dbl_2 3x3dbl_3/2")
    for block in ("6b", "6c", "6d", "6e"):
        pooled = conv(f"Mixed_{block}.branch_pool", average(x))
        double = "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5"
        x = mixed(block, x, pooled, "1x1", "7x7_1 7x7_2 7x7_3", double)
    x = mixed("7a", x, maximum(x, 2), "3x3_1 3x3_2/2", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4/2")
    for block, pool in (("7b", average), ("7c", maximum)):
        pooled = conv(f"Mixed_{block}.branch_pool", pool(x))
        cross = ("3x3_1 3x3_2a", "3x3_1 3x3_2b", "3x3dbl_1 3x3dbl_2 3x3dbl_3a", "3x3dbl_1 3x3dbl_2 3x3dbl_3b")
        x = mixed(block, x, pooled, "1x1", *cross)
    features = x.mean(axis=(1, 2))
    return features, features @ tensors["fc.weight"].T


@pytest.mark.slow
def test_features_and_probabilities_agree_with_the_network_in_numpy(tensors, images, extracted):
    x = np.asarray(network_input(jnp.asarray(images, jnp.float32) / 127.5 - 1))
    features, logits = plain(tensors, x)
    assert_close(extracted[0], features, 1e-4)
    assert_close(extracted[1], log_softmax(logits, axis=-1), 1e-4)


@pytest.mark.slow
def test_features_and_probabilities_agree_with_torch_fidelity(tensors, images, extracted, monkeypatch):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    rest = {"fc.bias": np.zeros(1008, np.float32)}  # logits_unbiased leaves it out
    state = {name: torch.from_numpy(tensor) for name, tensor in (tensors | rest).items()}
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: state)
    theirs = module.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
    features, logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert_close(extracted[0], features.numpy(), 1e-4)
    assert_close(extracted[1], log_softmax(logits.numpy(), axis=-1), 1e-4)


def test_the_network_has_the_size_and_the_shapes_of_the_published_one():
    """In PyTorch it has 23 850 960 parameters with 1008 classes. The bias of the logits is 1008 of them."""
    sizes = {name: np.prod(shape) for name, shape in shapes().items()}
    assert sum(size for name, size in sizes.items() if "running" not in name) == 23_850_960 - 1008
    x = jax.ShapeDtypeStruct((5, 299, 299, 3), jnp.float32)
    (features, logits), _ = jax.eval_shape(Inception().init_with_output, jax.random.key(0), x)
    assert (features.shape, logits.shape) == ((5, 2048), (5, 1008))


def test_pools_do_not_see_their_padding():
    x = -jnp.ones((1, 5, 4, 2))
    np.testing.assert_array_equal(AVERAGE.apply(x), x)
    np.testing.assert_array_equal(MAXIMUM.apply(x), x)


def bilinear(x: np.ndarray, side: int) -> np.ndarray:
    """Resizes [H, W] to [side, side], one output at a time, in float64."""
    height, width = x.shape
    y = np.empty((side, side))
    for i, j in np.ndindex(side, side):
        row, column = i * height / side, j * width / side
        top, left = int(row), int(column)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        corners = x[np.ix_([top, below], [left, right])]
        y[i, j] = [1 - (row - top), row - top] @ corners @ [1 - (column - left), column - left]
    return y


@pytest.mark.parametrize("size", [(8, 8), (28, 45), (100, 61), (37, 37)])
def test_resizing_is_bilinear_without_half_pixels(size):
    x = np.random.default_rng(2).integers(0, 256, size)
    found = resize(jnp.asarray(x, jnp.float32)[None, :, :, None], 37)
    np.testing.assert_allclose(found[0, :, :, 0], bilinear(x, 37), rtol=0, atol=1e-5 * 255)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (28, 45), (400, 301)])
def test_resizing_agrees_with_torch_fidelity(size):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    x = np.random.default_rng(3).integers(0, 256, (2, *size, 3)).astype(np.float32)
    channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(channels_first, (299, 299), align_corners=False)
    found = resize(jnp.asarray(x), 299)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-5 * 255)


def test_the_network_sees_the_bytes_of_a_file_and_grey_as_three_equal_channels():
    x = np.random.default_rng(4).uniform(-1.1, 1.1, (2, 299, 299, 1)).astype(np.float32)
    expected = (pixels.to_bytes(x).astype(np.float32) - 128) / 128
    np.testing.assert_array_equal(network_input(jnp.asarray(x)), expected.repeat(3, axis=-1))


def test_images_of_another_number_of_channels_are_refused():
    with pytest.raises(UserError, match="these have 4"):
        network_input(jnp.zeros((1, 8, 8, 4)))


def test_the_protocol_names_the_weights_and_not_their_file(tensors, weights, tmp_path):
    unread = {"fc.bias": np.ones(1008, np.float32), "Mixed_7c.branch_pool.bn.num_batches_tracked": np.int64(0)}
    np.savez(tmp_path / "same.npz", **tensors, **unread)
    protocol = inception(weights).protocol
    assert set(protocol) >= {"features", "weights", "resize"}
    assert len(str(protocol["weights"])) == 64
    assert inception(tmp_path / "same.npz").protocol == protocol
    np.savez(tmp_path / "other.npz", **tensors | {"Mixed_5b.branch1x1.bn.bias": np.zeros(64, np.float32)})
    assert inception(tmp_path / "other.npz").protocol["weights"] != protocol["weights"]


def test_a_file_without_weights_is_refused(tmp_path):
    for name, content, message in (
        ("none.safetensors", None, "no such file"),
        ("weights.pth", b"", "python -m benchmarks.inception_weights"),
        ("broken.safetensors", b"\x08\0\0\0\0\0\0\0nonsense", "can't be read"),
        ("empty.safetensors", b"", "can't be read"),
        ("broken.npz", b"PK\x03\x04nonsense", "can't be read"),
        ("empty.npz", b"", "can't be read"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            inception(tmp_path / name)


def zeros(**changed: np.ndarray | None) -> Tensors:
    """Returns tensors of the right shapes that take no memory, with some changed or left out (None)."""
    right = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes().items()}
    return {name: tensor for name, tensor in (right | changed).items() if tensor is not None}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("Mixed_5b.branch1x1.conv.weight", None, r"Mixed_5b.branch1x1.conv.weight \(64, 192, 1, 1\) is missing"),
        ("fc.weight", np.zeros((1000, 2048), np.float32), r"fc.weight is \(1000, 2048\) and must be \(1008, 2048\)"),
        ("Conv2d_1a_3x3.bn.bias", np.zeros(32), r"Conv2d_1a_3x3.bn.bias \(32,\) is float64 and must be float32"),
        ("AuxLogits.fc.bias", np.zeros(7, np.float32), r"AuxLogits.fc.bias \(7,\) is not part"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_its_shape(name, tensor, message):
    with pytest.raises(UserError, match=f"^weights.npz: {message}"):
        check_tensors(zeros(**{name: tensor}), "weights.npz")


def test_converting_without_torch_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="needs PyTorch"):
        inception_weights.main(tmp_path / "a.pth", tmp_path / "b.safetensors")


def test_a_converted_state_dict_has_its_names_and_values(tensors, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    source, out = tmp_path / "state.pth", tmp_path / "state.safetensors"
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    state["fc.weight"] = state["fc.weight"].T.contiguous().T  # in another order in memory
    state["Mixed_7c.branch_pool.bn.num_batches_tracked"] = torch.tensor(3)
    torch.save(state, source)
    inception_weights.main(source, out)
    assert inception(out).protocol["weights"] in capsys.readouterr().out
    found = load_file(out)
    assert set(found) == set(state)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    source.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="is not a PyTorch file"):
        inception_weights.main(source, out)
