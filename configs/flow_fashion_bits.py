"""The flow of flow_fashion, trained for a high likelihood: few bits per dimension of Fashion-MNIST's 256 grey levels. Not scored yet.

Fourier features let the network see differences of one grey level (Kingma et al. 2021, appendix C). More training examples have a
small t, where such differences matter. The final test takes long, because it solves a differential equation for each test image.
"""

from dataclasses import replace

from gen.config import load
from gen.families.flow import FlowMatching, UNet

flow = load("flow_fashion")
config = replace(
    flow,
    model=replace(
        flow.model,
        network=UNet(widths=(48, 96), attention=(2,), patch=2, fourier=(7, 8)),
        objective=FlowMatching(mean=-1.0, std=2.0),
    ),
    data=replace(flow.data, dequantize=True),
)
