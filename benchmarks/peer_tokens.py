"""PyTorch versions of gen's tokenizer of images and of its transformer over grids of codes: training steps, and decoding."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peer import (
    CLASSES,
    DEVICE,
    Attention,
    Residual,
    RMSNorm,
    Step,
    convert_kernel,
    convert_names,
    descend,
    draw_images,
    drop_labels,
    moving_average,
)

VOCAB, SIDE = 1024, 7
DECAY = 0.1
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def make_encoder() -> nn.Module:
    """Returns the encoder of fsq_fashion, [B, 1, 28, 28] -> [B, 5, 7, 7]."""
    layers = {
        "Conv_0": nn.Conv2d(1, 32, 4, 2, 1),
        "Block_0": Residual(nn.Conv2d, 32),
        "Conv_1": nn.Conv2d(32, 96, 4, 2, 1),
    }
    return nn.Sequential(
        OrderedDict(layers, Block_1=Residual(nn.Conv2d, 96), silu=nn.SiLU(), Conv_2=nn.Conv2d(96, 5, 1))
    )


def make_decoder() -> nn.Module:
    """Returns the decoder of fsq_fashion."""
    layers = {"Conv_0": nn.Conv2d(5, 96, 3, padding=1), "Block_0": Residual(nn.Conv2d, 96), "silu_0": nn.SiLU()}
    layers |= {"Conv_1": nn.ConvTranspose2d(96, 32, 4, 2, 1), "Block_1": Residual(nn.Conv2d, 32), "silu_1": nn.SiLU()}
    return nn.Sequential(OrderedDict(layers, Conv_2=nn.ConvTranspose2d(32, 1, 4, 2, 1)))


class Classifier(nn.Module):
    """The classifier whose features compare images with reconstructions. Returns logits and features."""

    def __init__(self):
        super().__init__()
        self.Dense_0, self.Dense_1 = nn.Conv2d(1, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
        self.Dense_2, self.Dense_3 = nn.Linear(32 * SIDE * SIDE, 128), nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.Dense_1(F.relu(self.Dense_0(x)))).flatten(1)
        x = F.relu(self.Dense_2(x))
        return self.Dense_3(x), x


TOKENIZER = {"encoder": make_encoder, "decoder": make_decoder, "classifier": Classifier}


def quantize(h: Tensor) -> Tensor:
    """Rounds each number to one of four levels, with the gradient of tanh. Mentzer et al. 2023."""
    x = torch.tanh(h)
    levels = ((x + 1) * 1.5).round().clamp(0, 3) / 1.5 - 1
    return x + (levels - x).detach()


def tokenizer(encoder: nn.Module, decoder: nn.Module, classifier: nn.Module, adam: Any) -> Step:
    """Returns a step of the classifier, then of the tokenizer on the distance of pixels and of the classifier's features."""
    matrices = [p for p in classifier.parameters() if p.ndim > 1]
    biases = [p for p in classifier.parameters() if p.ndim == 1]
    classifier_adam = adam([{"params": matrices, "weight_decay": DECAY}, {"params": biases}], lr=1e-3)
    params = [*encoder.parameters(), *decoder.parameters()]
    optimizer, average = adam(params, lr=1e-3), moving_average(params)

    def step(x: Tensor, label: Tensor) -> list[Tensor]:
        classifier_loss = F.cross_entropy(classifier(x)[0], label)
        descend(classifier_loss, [classifier_adam], [])
        classifier.requires_grad_(False)
        with torch.no_grad():
            real = classifier(x)[1]
        y = decoder(quantize(encoder(x)))
        cosine = (unit(real) * unit(classifier(y)[1])).sum(1)
        loss = F.mse_loss(y, x) + 0.02 * (1 - cosine).mean()
        descend(loss, [optimizer], params, clip=1.0)
        classifier.requires_grad_(True)
        average()
        return [loss, classifier_loss]

    return step


def unit(v: Tensor) -> Tensor:
    return v * (v.square().sum(1, keepdim=True) + 1e-6).rsqrt()


def tokenizer_weights(w: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the parameters of `gen` to PyTorch."""
    named = convert_names(w)
    for i in (1, 2):
        named[f"decoder/Conv_{i}.weight"] = convert_kernel(w[f"decoder/Conv_{i}/kernel"], transposed=True)
    # The classifier's convolutions are products of patches, and its first dense layer reads channels last.
    for i, shape in enumerate([(4, 4, 1, 16), (4, 4, 16, 32)]):
        named[f"classifier/Dense_{i}.weight"] = convert_kernel(w[f"classifier/Dense_{i}/kernel"].reshape(shape))
    hidden = w["classifier/Dense_2/kernel"].reshape(SIDE, SIDE, 32, 128).transpose(3, 2, 0, 1)
    return named | {"classifier/Dense_2.weight": hidden.reshape(128, -1)}


class Layer(nn.Module):
    """A layer with RMS norms and SwiGLU."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention_norm, self.feed_forward_norm = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, heads, bias=False, causal=True)
        linear = {"up": (width, hidden), "gate": (width, hidden), "down": (hidden, width)}
        self.feed_forward = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in linear.items()})
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(x + self.dropout(self.attention(self.attention_norm(x))))

    def feed(self, x: Tensor) -> Tensor:
        h, layers = self.feed_forward_norm(x), self.feed_forward
        return x + self.dropout(layers["down"](F.silu(layers["gate"](h)) * layers["up"](h)))

    def read(self, x: Tensor, keys: Tensor, values: Tensor, place: int) -> Tensor:
        """Reads one token [B, 1, D] into the cache [B, N, T, H]."""
        q, keys[:, :, place : place + 1], values[:, :, place : place + 1] = self.attention.project(
            self.attention_norm(x)
        )
        y = F.scaled_dot_product_attention(q, keys[:, :, : place + 1], values[:, :, : place + 1])
        return self.feed(x + self.attention.out(y.transpose(1, 2).flatten(2)))


class Grid(nn.Module):
    """The transformer of tokens_fashion. A label comes before the 49 tokens."""

    def __init__(self, layers: int = 4, width: int = 192, heads: int = 6, hidden: int = 512, dropout: float = 0.1):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB + CLASSES + 2, width)
        self.position_0, self.position_1 = nn.Embedding(SIDE + 1, width), nn.Embedding(SIDE + 1, width)
        self.layers = nn.ModuleList([Layer(width, heads, hidden, dropout) for _ in range(layers)])
        self.norm, self.dropout = RMSNorm(width), nn.Dropout(dropout)
        row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        # The label is at the origin, and the tokens begin at (1, 1).
        for name, axis in (("row", row), ("column", column)):
            self.register_buffer(name, F.pad(axis.flatten() + 1, (1, 0)), persistent=False)

    def positions(self) -> Tensor:
        """Returns the embeddings of all positions, [1 + 49, D]."""
        return self.position_0(self.row) + self.position_1(self.column)

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.embedding.weight[:VOCAB])

    def forward(self, tokens: Tensor, label: Tensor) -> Tensor:
        """Returns the cross-entropy of tokens [B, 49]."""
        inputs = torch.cat([VOCAB + label[:, None], tokens[:, :-1]], dim=1)
        x = self.dropout(self.embedding(inputs) + self.positions()[:-1])
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.logits(x).flatten(0, 1), tokens.flatten())

    @torch.inference_mode()
    def decode(self, label: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draws grids of tokens, or reads given ones. Returns the tokens [B, 49] and their log-probabilities."""
        layers: Any = self.layers
        heads, positions = layers[0].attention.heads, self.positions()
        dtype = positions.dtype
        size = (2, len(layers), len(label), heads, SIDE**2, positions.shape[1] // heads)
        keys, values = torch.empty(size, dtype=dtype, device=label.device)
        token, found = VOCAB + label, []
        for i in range(SIDE**2):
            x = self.embedding(token)[:, None] + positions[i]
            for layer, key, value in zip(layers, keys, values, strict=True):
                x = layer.read(x, key, value, i)
            log_p = self.logits(x[:, 0]).log_softmax(-1)
            token = torch.multinomial(log_p.exp(), 1)[:, 0] if given is None else given[:, i]
            found.append((token, log_p.gather(1, token[:, None])[:, 0]))
        tokens, log_probs = zip(*found, strict=True)
        return torch.stack(tokens, 1), torch.stack(log_probs, 1)


def grid_weights(w: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the parameters of `gen` to PyTorch."""
    named: dict[str, np.ndarray] = {}
    for path, x in w.items():
        name = path.removeprefix("transformer/")
        if name.startswith("layers/"):
            # The layers are stacked.
            named |= {f"grid/layers/{i}/{name.removeprefix('layers/')}": part for i, part in enumerate(x)}
        else:
            named[f"grid/{name}"] = x
    return convert_names(named)


class Muon:
    """Muon (Jordan 2024) with bias correction, on all matrices of a shape at once."""

    def __init__(self, matrices: Iterable[Tensor], width: int, lr: float, decay: float = 0.95):
        self.width, self.lr, self.decay, self.steps = width, lr, decay, count(1)
        self.params = list(matrices)
        self.groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in self.params:
            for part in self.parts(p):
                self.groups[part.shape].append(part)
        self.momentum = {shape: torch.zeros_like(torch.stack(parts)) for shape, parts in self.groups.items()}

    def parts(self, p: Tensor) -> tuple[Tensor, ...]:
        """Returns the matrix as a view, or those of queries, keys and values, which are joined."""
        x = p.detach()
        return x.split(self.width) if x.shape[0] == 3 * self.width else (x,)

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        i, b = next(self.steps), self.decay
        grads: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in self.params:
            assert p.grad is not None
            for part in self.parts(p.grad):
                grads[part.shape].append(part)
        for shape, parts in self.groups.items():
            g = torch.stack(grads[shape])
            m = self.momentum[shape].lerp_(g, 1 - b)
            direction = orthogonalize(b / (1 - b ** (i + 1)) * m + (1 - b) / (1 - b**i) * g)
            torch._foreach_mul_(parts, 1 - self.lr * DECAY)  # pyright: ignore
            torch._foreach_add_(parts, list(direction), alpha=-self.lr * 0.2 * max(shape) ** 0.5)  # pyright: ignore


def orthogonalize(x: Tensor) -> Tensor:
    """Returns matrices [N, out, in] with their singular values moved towards 1, by five steps of Newton and Schulz."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-8)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def grid(net: nn.Module, adam: Any) -> Step:
    """Returns a step on the cross-entropy, by Muon for the matrices of the layers and Adam for all others."""
    params = list(net.parameters())
    matrices = [p for name, p in net.named_parameters() if name.startswith("layers") and p.ndim == 2]
    others = [p for name, p in net.named_parameters() if not (name.startswith("layers") and p.ndim == 2)]
    optimizers = [Muon(matrices, params[0].shape[1], lr=1e-3), adam(others, lr=1e-3, betas=(0.95, 0.999))]
    average = moving_average(params)

    def step(tokens: Tensor, label: Tensor) -> list[Tensor]:
        loss = net(tokens.flatten(1), label)
        descend(loss, optimizers, params, clip=1.0)
        average()
        return [loss]

    return step


def draw_tokenizer() -> Callable[[], dict[str, Tensor]]:
    return draw_images(64)


def draw_grids() -> Callable[[], dict[str, Tensor]]:
    """Returns a function that makes batches of grids and labels."""
    tokens, label = torch.randint(0, VOCAB, (64, SIDE, SIDE)), torch.randint(0, CLASSES, (64,))
    return lambda: {
        "tokens": tokens.to(DEVICE, non_blocking=True),
        "label": drop_labels(label.to(DEVICE, non_blocking=True)),
    }
