"""Weights of Inception-v3 for `gen`: python -m benchmarks.inception_weights SOURCE.pth OUT.safetensors

SOURCE is the PyTorch port of TensorFlow's graph, pt_inception-2015-12-05-6726825d.pth (pytorch-fid, torch-fidelity). Only
tensors are unpickled. Needs PyTorch, of the extra [benchmark].
"""

from __future__ import annotations

from pathlib import Path

import tyro
from safetensors.numpy import save

from gen.errors import UserError, run_command
from gen.metrics.inception import checked, digest


def main(source: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Copy the tensors of a state dict, checked, into a .safetensors file, and print the SHA-256 that protocols carry."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("reading a .pth needs PyTorch; the fix: pip install -e '.[benchmark]'") from error
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: what is written is .safetensors")
    if not source.is_file():
        raise UserError(f"{source}: there is no such file")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
        tensors = {name: tensor.contiguous().numpy() for name, tensor in state.items()}
    except Exception as error:  # torch raises nearly anything for a file that isn't its own
        raise UserError(f"{source}: is no PyTorch file that holds tensors by name, and nothing else") from error
    weights = checked(tensors, str(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(save(tensors))
    print(f"{out}: weights {digest(weights)}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
