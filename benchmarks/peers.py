"""The side of PyTorch in the benchmarks: the same networks, losses and optimizers as in gen, written as is usual in PyTorch.

`python -m benchmarks` starts it in a separate process: python -m benchmarks.peers JOB DTYPE SETTING. A setting is "eager", or
some of these names joined by +: compile, channels_last, fused (Adam) and static (cache for decoding).

If a strided convolution has odd padding, PyTorch and JAX put the extra row on opposite sides. So this file mirrors images and
kernels. Then both compute the same.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peer_flow, peer_sound, peer_tokens, turns
from benchmarks.peer import DEVICE, Step, convert_names
from benchmarks.turns import Side

CUDA = torch.cuda.is_available()
PIXELS, LEVELS = (28, 28), 17
TOLERANCE = 1e-6

Arrays = Mapping[str, np.ndarray]


class Generator(nn.Module):
    """The generator of a DCGAN, latents [B, 100] -> images [B, 1, 28, 28]."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(100, 7 * 7 * 256, bias=False)
        up = lambda i, o, stride, bias: nn.ConvTranspose2d(i, o, 5, stride, 2, stride - 1, bias=bias)
        self.convs = nn.ModuleList([up(256, 128, 1, False), up(128, 64, 2, False), up(64, 1, 2, True)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in (256, 128, 64)])

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z).view(-1, 256, 7, 7)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(F.leaky_relu(norm(x), 0.2))
        return torch.tanh(x)


class Discriminator(nn.Module):
    """The discriminator of a DCGAN, images [B, 1, 28, 28] -> scores [B]."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 64, 5, 2, 2), nn.Conv2d(64, 128, 5, 2, 2)])
        self.score = nn.Linear(128 * 7 * 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        return self.score(x.flatten(1))[:, 0]


class Perceptron(nn.Module):
    """The VAE of PyTorch's example."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        self.decode = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, *PIXELS)))


class Convolutional(nn.Module):
    """A convolutional VAE."""

    def __init__(self):
        super().__init__()
        down = [nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU()]
        up = [nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1)]
        self.encode = nn.Sequential(*down, nn.Flatten(), nn.Linear(64 * 7 * 7, 40))
        self.decode = nn.Sequential(nn.Linear(20, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)), *up)


class GPT(nn.Module):
    """A GPT as in nanoGPT. Returns the cross-entropy."""

    def __init__(self, layers: int, width: int, heads: int, length: int, vocab: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([GPTBlock(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class GPTBlock(nn.Module):
    """A transformer layer with normalization before attention and before the feed-forward part."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = lambda y: y.unflatten(2, (self.heads, -1)).transpose(1, 2)
        q, k, v = map(split, self.qkv(self.norms[0](x)).chunk(3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))


class Inception(nn.Module):
    """The layers of gen/networks/inception.py, with the normalizations that `gen` folds into the kernels."""

    def __init__(self):
        super().__init__()
        from gen.networks import inception  # not at the top: it imports JAX, whose memory would count

        self.parts = inception
        self.layers = nn.ModuleDict()
        self._add(inception.LAYERS, "", 3)

    def _add(self, layers: Any, scope: str, width: int) -> int:
        for layer in layers:
            match layer:
                case self.parts.Conv(name, out, kernel, stride, padding):
                    around: Any = tuple(side // 2 if padding == "SAME" else 0 for side in kernel)
                    made = [nn.Conv2d(width, out, kernel, stride, around, bias=False), nn.BatchNorm2d(out, eps=1e-3)]
                    self.layers[(scope + name).replace(".", "/")] = nn.Sequential(*made, nn.ReLU(inplace=True))
                    width = out
                case self.parts.Block(name, branches):
                    width = sum(self._add(branch, scope + name, width) for branch in branches)
        return width

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self.parts.LAYERS, "", x).mean((2, 3))

    def _run(self, layers: Any, scope: str, x: Tensor) -> Tensor:
        for layer in layers:
            match layer:
                case self.parts.Conv(name):
                    x = self.layers[(scope + name).replace(".", "/")](x)
                case self.parts.AVERAGE:
                    x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
                case self.parts.HALVE:
                    x = F.max_pool2d(x, 3, 2)
                case self.parts.MAXIMUM:
                    x = F.max_pool2d(x, 3, 1, 1)
                case self.parts.Block(name, branches):
                    x = torch.cat([self._run(branch, scope + name, x) for branch in branches], dim=1)
        return x


def dcgan(G: nn.Module, D: nn.Module, adam: Any) -> Step:
    """Returns a step that updates D, then G on new latents, then the running average of G."""
    g_adam, d_adam = (adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (G, D))
    g_params = list(G.parameters())
    average = [p.detach().clone() for p in g_params]
    steps = count()

    def step(x: Tensor, z_d: Tensor, z_g: Tensor) -> list[Tensor]:
        with torch.no_grad():
            fake = G(z_d)
        d_loss = F.softplus(-D(x)).mean() + F.softplus(D(fake)).mean()
        d_adam.zero_grad()
        d_loss.backward()
        d_adam.step()
        D.requires_grad_(False)
        g_loss = F.softplus(-D(G(z_g))).mean()
        g_adam.zero_grad()
        g_loss.backward()
        g_adam.step()
        D.requires_grad_(True)
        i = next(steps)
        with torch.no_grad():
            torch._foreach_lerp_(average, g_params, 1 - min(0.999, (1 + i) / (10 + i)))  # pyright: ignore
        return [d_loss, g_loss]

    return step


def vae(net: Any, adam: Any) -> Step:
    """Returns a step on the evidence lower bound."""
    optimizer = adam(net.parameters(), lr=1e-3)

    def step(x: Tensor, z: Tensor) -> list[Tensor]:
        mean, log_std = net.encode(x).chunk(2, dim=1)
        log_std = log_std.clamp(-8, 4)
        outputs = net.decode(mean + log_std.exp() * z)
        nats = F.binary_cross_entropy_with_logits(outputs, (x + 1) / 2, reduction="sum")
        kl = (mean.square() + (2 * log_std).exp() - 1).sum() / 2 - log_std.sum()
        loss = (nats + kl) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [loss]

    return step


def gpt(net: GPT, adam: Any) -> Step:
    """Returns a step on the cross-entropy, with weight decay on matrices and clipped gradients."""
    matrices = [p for name, p in net.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    others = [p for name, p in net.named_parameters() if not (name.startswith("blocks") and p.ndim == 2)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = adam(groups, lr=1e-3, betas=(0.9, 0.99))

    def step(tokens: Tensor) -> list[Tensor]:
        loss = net(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return [loss]

    return step


def dense(w: np.ndarray) -> np.ndarray:
    """[in, out] -> [out, in]."""
    return w.T


def conv(w: np.ndarray) -> np.ndarray:
    """[h, w, in, out] -> [out, in, h, w], mirrored."""
    return w[::-1, ::-1].transpose(3, 2, 0, 1)


def transposed(w: np.ndarray) -> np.ndarray:
    """[h, w, in, out] -> [in, out, h, w]. PyTorch mirrors this kernel itself, so mirroring twice changes nothing."""
    return w.transpose(2, 3, 0, 1)


def from_image(w: np.ndarray, channels: int) -> np.ndarray:
    """[h w c, out] -> [out, c h w], mirrored."""
    side = math.isqrt(w.shape[0] // channels)
    return w.reshape(side, side, channels, -1)[::-1, ::-1].transpose(3, 2, 0, 1).reshape(w.shape[1], -1)


def to_image(w: np.ndarray, channels: int) -> np.ndarray:
    """[in, h w c] or [h w c] -> [c h w, in] or [c h w], mirrored."""
    return from_image(w.T.reshape(w.shape[-1], -1), channels).T.reshape(w.shape[::-1])


def dcgan_weights(w: Arrays) -> dict[str, np.ndarray]:
    """Converts the parameters of `gen` to PyTorch."""
    g, d = "generator/", "discriminator/"
    named = {f"{g}project.weight": to_image(w[f"{g}Dense_0/kernel"], 256)}
    for i in range(3):
        named[f"{g}norms.{i}.weight"], named[f"{g}norms.{i}.bias"] = (w[f"{g}Norm_{i}/{x}"] for x in ("scale", "bias"))
        named[f"{g}convs.{i}.weight"] = transposed(w[f"{g}Conv_{i}/kernel"])
    named[f"{g}convs.2.bias"] = w[f"{g}Conv_2/bias"]
    for i in range(2):
        named[f"{d}convs.{i}.weight"] = conv(w[f"{d}Strided_0/Conv_{i}/kernel"])
        named[f"{d}convs.{i}.bias"] = w[f"{d}Strided_0/Conv_{i}/bias"]
    named[f"{d}score.weight"] = from_image(w[f"{d}Dense_0/kernel"], 128)
    return named | {f"{d}score.bias": w[f"{d}Dense_0/bias"]}


def perceptron_weights(w: Arrays) -> dict[str, np.ndarray]:
    """Converts the parameters of `gen` to PyTorch."""
    e, d = "encoder/", "decoder/trunk/"
    layers = {
        "encode.1": (f"{e}trunk/Hidden_0/Dense_0", lambda w: from_image(w, 1)),
        "encode.3": (f"{e}heads_0/Dense_0", dense),
        "decode.0": (f"{d}Hidden_0/Dense_0", dense),
        "decode.2": (f"{d}Dense_0", lambda w: to_image(w, 1)),
    }
    named = {f"{name}.weight": change(w[f"{path}/kernel"]) for name, (path, change) in layers.items()}
    named |= {f"{name}.bias": w[f"{path}/bias"] for name, (path, _) in layers.items()}
    return named | {"decode.2.bias": to_image(w[f"{d}Dense_0/bias"], 1)}


def convolutional_weights(w: Arrays) -> dict[str, np.ndarray]:
    """Converts the parameters of `gen` to PyTorch."""
    e, d = "encoder/trunk/", "decoder/trunk/"
    layers = {
        "encode.0": (f"{e}Conv_0", conv),
        "encode.2": (f"{e}Conv_1", conv),
        "encode.5": ("encoder/heads_0/Dense_0", lambda w: from_image(w, 64)),
        "decode.0": (f"{d}Dense_0", lambda w: to_image(w, 64)),
        "decode.3": (f"{d}Conv_0", transposed),
        "decode.5": (f"{d}Conv_1", transposed),
    }
    named = {f"{name}.weight": change(w[f"{path}/kernel"]) for name, (path, change) in layers.items()}
    named |= {f"{name}.bias": w[f"{path}/bias"] for name, (path, _) in layers.items()}
    return named | {"decode.0.bias": to_image(w[f"{d}Dense_0/bias"], 64)}


def gpt_weights(w: Arrays) -> dict[str, np.ndarray]:
    """Converts the parameters of `gen` to PyTorch."""
    w = {name.removeprefix("transformer/"): x for name, x in w.items()}
    named = {"tokens.weight": w["embedding/embedding"], "places.weight": w["position/embedding"]}
    named |= {"norm.weight": w["norm/scale"], "norm.bias": w["norm/bias"]}
    for i in range(len(w["layers/attention_norm/scale"])):
        at = lambda path, i=i: w[f"layers/{path}"][i]
        for j, part in enumerate(("attention_norm", "feed_forward_norm")):
            named[f"blocks.{i}.norms.{j}.weight"], named[f"blocks.{i}.norms.{j}.bias"] = (
                at(f"{part}/{x}") for x in ("scale", "bias")
            )
        linear = {"out": "attention/out", "up": "feed_forward/up", "down": "feed_forward/down"}
        named |= {f"blocks.{i}.{name}.weight": dense(at(f"{path}/kernel")) for name, path in linear.items()}
        named |= {f"blocks.{i}.{name}.bias": at(f"{path}/bias") for name, path in linear.items()}
        qkv = [f"attention/{x}" for x in ("query", "key", "value")]
        named[f"blocks.{i}.qkv.weight"] = np.concatenate([dense(at(f"{x}/kernel")) for x in qkv])
        named[f"blocks.{i}.qkv.bias"] = np.concatenate([at(f"{x}/bias") for x in qkv])
    return named


def images(batch: int, z: Mapping[str, int]) -> Callable[[], dict[str, Tensor]]:
    """Returns a function that makes batches: random uint8 pixels, moved to the device and scaled to [-1, 1], and noise.

    z: {name: size} of standard normal noise.
    """
    pixels = torch.randint(0, LEVELS, (batch, 1, *PIXELS), dtype=torch.uint8)

    def next_batch() -> dict[str, Tensor]:
        x = pixels.to(DEVICE, non_blocking=True).float() * (2 / (LEVELS - 1)) - 1
        return {"image": x} | {name: torch.randn(batch, size, device=DEVICE) for name, size in z.items()}

    return next_batch


def tokens(batch: int, length: int, vocab: int) -> Callable[[], dict[str, Tensor]]:
    """Returns a function that makes batches of tokens, the same random tokens each time."""
    drawn = torch.randint(0, vocab, (batch, length + 1))
    return lambda: {"tokens": drawn.to(DEVICE, non_blocking=True)}


VOCAB = 65  # characters of the text that our side reads, and the end token
GAN = {"generator": Generator, "discriminator": Discriminator}, dcgan, dcgan_weights, {"z_d": 100, "z_g": 100}
TRAINED: Mapping[str, tuple[Any, ...]] = {
    "dcgan_64": (*GAN, lambda z: images(64, z)),
    "dcgan_128": (*GAN, lambda z: images(128, z)),
    "vae_mlp": ({"": Perceptron}, vae, perceptron_weights, {"z": 20}, lambda z: images(128, z)),
    "vae_conv": ({"": Convolutional}, vae, convolutional_weights, {"z": 20}, lambda z: images(128, z)),
    "gpt_small": ({"": lambda: GPT(4, 128, 4, 64, VOCAB)}, gpt, gpt_weights, {}, lambda _: tokens(12, 64, VOCAB)),
    "gpt_medium": ({"": lambda: GPT(6, 384, 6, 256, VOCAB)}, gpt, gpt_weights, {}, lambda _: tokens(4, 256, VOCAB)),
    "tokenizer": (
        peer_tokens.TOKENIZER,
        peer_tokens.tokenizer,
        peer_tokens.tokenizer_weights,
        {},
        lambda _: peer_tokens.draw_tokenizer(),
    ),
    "grid": (
        {"grid": peer_tokens.Grid},
        peer_tokens.grid,
        peer_tokens.grid_weights,
        {},
        lambda _: peer_tokens.draw_grids(),
    ),
    "codec": (peer_sound.CODEC, peer_sound.codec, peer_sound.codec_weights, {}, lambda _: peer_sound.draw_sound()),
    "mel_flow": (
        {"velocity": peer_sound.make_mel_dit},
        peer_flow.flow,
        convert_names,
        {},
        lambda _: peer_sound.draw_mels(),
    ),
    "unet": ({"velocity": peer_flow.make_unet}, peer_flow.flow, convert_names, {}, lambda _: peer_flow.draw_flow(64)),
    "dit": ({"velocity": peer_flow.make_dit}, peer_flow.flow, convert_names, {}, lambda _: peer_flow.draw_flow(64)),
}
"""{job: (networks, function that makes the step, conversion of weights, noise, batches)}"""


MIRRORED = (dcgan_weights, perceptron_weights, convolutional_weights)
"""Conversions to networks that read mirrored images."""


def from_images(x: np.ndarray, mirrored: bool) -> np.ndarray:
    """[B, H, W, C] -> [B, C, H, W]."""
    return (x[:, ::-1, ::-1] if mirrored else x).transpose(0, 3, 1, 2).copy()


def training(job: str, dtype: str, setting: set[str]) -> Side:
    """Returns the side that trains, on batches from host memory."""
    made, train, convert, draws, batches = TRAINED[job]
    mirrored = convert in MIRRORED
    layout = torch.channels_last if "channels_last" in setting else torch.contiguous_format
    real = torch.float64 if dtype == "float64" else torch.float32
    cast = torch.autocast(DEVICE.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()

    def adam(params: Any, **how: Any) -> Any:
        return torch.optim.AdamW(params, **{"weight_decay": 0.0, **how}, fused="fused" in setting)

    def build(w: Arrays | None = None) -> tuple[dict[str, nn.Module], Step]:
        networks = {name: make() for name, make in made.items()}
        if w is not None:
            load_weights(networks, w)
        networks = {name: net.to(DEVICE, real, memory_format=layout) for name, net in networks.items()}
        for part in (part for net in networks.values() for part in net.modules() if isinstance(part, nn.Dropout)):
            # The two sides draw different noise, so they are compared without it.
            part.p = 0.0 if dtype == "float64" else part.p
        if "compile" in setting:
            for net in networks.values():
                for part in (net.encode, net.decode) if hasattr(net, "encode") else (net,):
                    part.compile()
        step = train(*networks.values(), adam)

        def cast_step(*given: Tensor) -> list[Tensor]:
            with cast:
                return step(*given)

        return networks, cast_step

    _, step = build()
    draw = batches(draws)

    def run(n: int) -> None:
        for _ in range(n):
            step(*draw().values())
        finish()

    def check(path: str) -> None:
        """Makes the same steps from the same weights. Raises: AssertionError if losses or weights differ."""
        file = np.load(path)
        part = lambda start: {k.removeprefix(start): file[k] for k in file.files if k.startswith(start)}
        before, after = convert(part("before/")), convert(part("after/"))
        networks, step = build(before)
        losses = []
        for i in range(sum(f"step{i}/{next(iter(draw()))}" in file.files for i in range(100))):
            given = part(f"step{i}/")
            given = {name: from_images(x, mirrored) if x.ndim == 4 else x for name, x in given.items()}
            taken = [torch.tensor(given[name], device=DEVICE) for name in draw()]
            taken = [x.to(real) if x.is_floating_point() else x.long() for x in taken]
            losses.append([float(x.detach()) for x in step(*taken)])
        theirs = np.stack([file[name] for name in file.files if name.startswith("loss")], axis=1)
        np.testing.assert_allclose(losses, theirs, rtol=TOLERANCE)
        moved = max(np.abs(after[name] - before[name]).max() for name in before)
        for name, net in networks.items():
            for k, value in net.state_dict().items():
                if (key := f"{name}/{k}" if name else k) in after:
                    error = np.abs(value.cpu().numpy() - after[key]).max()
                    assert error < TOLERANCE * moved, f"{key} differs by {error}; the weights moved by at most {moved}"

    return Side(run, check, lambda: facts(lambda: run(1)))


def load_weights(networks: Mapping[str, nn.Module], w: Arrays) -> None:
    """Loads converted weights into the networks, and makes them float64."""
    for name, net in networks.items():
        start = f"{name}/" if name else ""
        own = {k.removeprefix(start): torch.tensor(v.copy()) for k, v in w.items() if k.startswith(start)}
        net.double()
        missing, unexpected = net.load_state_dict(own, strict=False)
        # Batch statistics keep their initial values, which are the same on both sides.
        lacking = [m for m in missing if not m.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        assert not (lacking or unexpected), (lacking, unexpected)


def decoding(batch: int, dtype: str, setting: set[str]) -> Side:
    """Returns the side that continues one token greedily, with the GPT-2 of transformers and its cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    n = 256
    shape: dict[str, Any] = {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 2 * n, "vocab_size": 65}
    net = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None)).eval().to(DEVICE)
    if dtype == "bfloat16":
        net = net.to(torch.bfloat16)
    how: dict[str, Any] = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "pad_token_id": 0}
    if "static" in setting:
        how["cache_implementation"] = "static"
    if "compile" in setting:
        net.forward = torch.compile(net.forward, dynamic=False)
    prompt = torch.arange(1, batch + 1, device=DEVICE)[:, None]

    @torch.no_grad()
    def generate(prompt: Tensor) -> Tensor:
        return net.generate(prompt, attention_mask=torch.ones_like(prompt), **how)[:, 1:]

    def run(n: int) -> None:
        for _ in range(n):
            generate(prompt)
        finish()

    def check(path: str) -> None:
        """Raises: AssertionError if the same weights give another text or other log-probabilities."""
        file = np.load(path)
        tensors = {k.removeprefix("before/"): torch.tensor(file[k]) for k in file.files if k.startswith("before/")}
        double = GPT2LMHeadModel(net.config).double().eval()
        double.transformer.load_state_dict(tensors)
        given, written = torch.tensor(file["prompt"]).long(), torch.tensor(file["tokens"]).long()
        with torch.no_grad():
            logits = double(torch.cat([given, written], dim=1)).logits[:, :-1].log_softmax(-1)
        found = logits.gather(2, written[:, :, None])[:, :, 0].numpy()
        np.testing.assert_allclose(found, file["log_probs"], atol=1e-5)
        assert (logits.argmax(-1) == written).all()

    return Side(run, check, lambda: facts(lambda: run(1)))


def grid_decoding() -> Side:
    """Returns the side that draws 64 grids of 49 tokens, with a cache."""
    net = peer_tokens.Grid(dropout=0.0).eval().to(DEVICE)
    label = torch.arange(64, device=DEVICE) % 10

    def run(n: int) -> None:
        for _ in range(n):
            net.decode(label)
        finish()

    def check(path: str) -> None:
        """Raises: AssertionError if the same weights give the same tokens other log-probabilities."""
        file = np.load(path)
        before = {k.removeprefix("before/"): file[k] for k in file.files if k.startswith("before/")}
        load_weights({"grid": net}, peer_tokens.grid_weights(before))
        label, tokens = (torch.tensor(file[name], device=DEVICE).long() for name in ("labels", "tokens"))
        found = net.decode(label, tokens.flatten(1))[1].cpu().numpy()
        np.testing.assert_allclose(found, file["log_probs"].reshape(found.shape), atol=1e-5)

    return Side(run, check, lambda: facts(lambda: run(1)))


def sampling(dtype: str, setting: set[str]) -> Side:
    """Returns the side that samples 64 images from a flow, with 20 evaluations of a U-Net."""
    layout = torch.channels_last if "channels_last" in setting else torch.contiguous_format
    net = peer_flow.make_unet().eval().to(DEVICE, memory_format=layout)  # pyright: ignore[reportCallIssue]
    if "compile" in setting:
        net.compile()
    cast = torch.autocast(DEVICE.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
    label = torch.arange(64, device=DEVICE) % 10

    def run(n: int) -> None:
        for _ in range(n):
            with cast:
                peer_flow.sample(net, torch.randn(64, 1, *PIXELS, device=DEVICE), label)
        finish()

    def check(path: str) -> None:
        """Raises: AssertionError if the same weights and noise give other images."""
        file = np.load(path)
        w = convert_names({k.removeprefix("before/"): file[k] for k in file.files if k.startswith("before/")})
        load_weights({"velocity": net}, w)
        noise = torch.tensor(from_images(file["noise"], False), device=DEVICE)
        found = peer_flow.sample(net, noise, torch.tensor(file["labels"], device=DEVICE).long()).cpu().numpy()
        np.testing.assert_allclose(found, from_images(file["samples"], False), atol=1e-5)

    return Side(run, check, lambda: facts(lambda: run(1)))


def statistics(setting: set[str]) -> Side:
    """Returns the side that computes Inception's features of 32x32 images and their covariance."""
    net = Inception().eval()
    if "compile" in setting:
        net.compile()
    layout = torch.channels_last if "channels_last" in setting else torch.contiguous_format
    net = net.to(DEVICE, memory_format=layout)  # pyright: ignore[reportCallIssue]
    pixels = torch.rand(32, 3, 32, 32) * 2 - 1

    @torch.no_grad()
    def run(n: int) -> None:
        features = []
        for _ in range(n):
            levels = ((pixels.to(DEVICE) + 1) * 127.5).round()
            x = (F.interpolate(levels, (299, 299), mode="bilinear", align_corners=False) - 128) / 128
            features.append(net(x).cpu().double())
        torch.cov(torch.cat(features).T)

    @torch.no_grad()
    def check(path: str) -> None:
        """Raises: AssertionError if the same weights give other features of the same images."""
        file = np.load(path)
        w = {k.removeprefix("before/"): torch.tensor(file[k]) for k in file.files if k.startswith("before/")}
        for name, layer in net.layers.items():
            name = name.replace("/", ".")
            layer[0].weight.copy_(w[f"{name}.conv.weight"])
            for part in ("weight", "bias", "running_mean", "running_var"):
                getattr(layer[1], part).copy_(w[f"{name}.bn.{part}"])
        found = net(torch.tensor(file["input"].transpose(0, 3, 1, 2).copy(), device=DEVICE)).cpu().numpy()
        np.testing.assert_allclose(found, file["features"], rtol=1e-3, atol=1e-3 * np.abs(file["features"]).max())

    return Side(run, check, lambda: facts(lambda: run(1)))


def finish() -> None:
    """Waits for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def facts(step: Callable[[], None]) -> dict[str, Any]:
    """Returns the peak memory in bytes, the number of threads, and the operations of a step."""
    memory = torch.cuda.max_memory_allocated() if CUDA else turns.peak_memory()
    torch._dynamo.config.disable = True
    with FlopCounterMode(display=False) as counter:
        step()
    return {"memory": memory, "threads": torch.get_num_threads(), "operations": counter.get_total_flops()}


def peak(dtype: str) -> Side:
    """Returns a side without steps, whose facts are the device and the speed of matrix products in operations per second."""

    def facts() -> dict[str, Any]:
        size, repeats = turns.product_size(not CUDA, dtype)
        a = torch.randn(size, size, device=DEVICE, dtype=getattr(torch, dtype))

        def run(n: int) -> None:
            for _ in range(n):
                torch.mm(a, a)
            finish()

        run(2)
        rate = 2 * size**3 / min(turns.time_call(run, 2) for _ in range(repeats))
        name = torch.cuda.get_device_name() if CUDA else ""
        return {"device": name, "version": f"PyTorch {torch.__version__}", "rate": rate}

    return Side(_nothing, _nothing, facts)


def _nothing(argument: object) -> None:
    """Does nothing."""


def side(job: str, dtype: str, setting: str) -> Side:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as in JAX
    torch.backends.cudnn.benchmark = True
    on = set(setting.split("+"))
    if job in TRAINED:
        return training(job, dtype, on)
    if job == "fid_statistics":
        return statistics(on)
    if job == "grid_decode":
        return grid_decoding()
    if job == "flow_sample":
        return sampling(dtype, on)
    if job == "peak":
        return peak(dtype)
    return decoding(int(job.removeprefix("decode_")), dtype, on)


if __name__ == "__main__":
    turns.serve(lambda: side(*sys.argv[1:]))
