"""Converts weights of Inception-v3 for `gen`: python -m benchmarks.inception_weights SOURCE.pth OUT.safetensors

SOURCE is pt_inception-2015-12-05-6726825d.pth, the PyTorch port of TensorFlow's network that pytorch-fid and torch-fidelity
use. Only tensors are unpickled, so the file can't run code. The command needs PyTorch: pip install -e '.[benchmark]'
"""

from __future__ import annotations

from pathlib import Path

import tyro
from safetensors.numpy import save

from gen.errors import UserError, run_command
from gen.metrics.inception import check_tensors, digest


def main(source: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Checks the tensors of a state dict, copies them to a .safetensors file, and prints the SHA-256 that protocols contain."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("reading a .pth needs PyTorch; the fix: pip install -e '.[benchmark]'") from error
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: the output is a .safetensors file; the fix: give it that suffix")
    if not source.is_file():
        raise UserError(f"{source}: there is no such file; check the path")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
        tensors = {name: tensor.contiguous().numpy() for name, tensor in state.items()}
    except Exception as error:  # torch raises almost any exception if the file is not its own
        raise UserError(
            f"{source}: is not a PyTorch file that holds only tensors by name; download it again"
        ) from error
    weights = check_tensors(tensors, str(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(save(tensors))
    print(f"{out}: weights {digest(weights)}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
