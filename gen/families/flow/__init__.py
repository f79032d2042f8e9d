"""Flow matching: exports the family, and the networks, objectives, masks and requests that a config can name."""

from gen.families.flow.family import Flow
from gen.families.flow.masks import AnyOf, Brightness, Coarse, Half, Known, Mask, Rectangle, Scattered
from gen.families.flow.objectives import FlowMatching, MeanFlow, Objective
from gen.families.flow.sampling import OneStepRequest, Request
from gen.networks.dit import DiT
from gen.networks.unet import UNet

__all__ = [
    "AnyOf",
    "Brightness",
    "Coarse",
    "DiT",
    "Flow",
    "FlowMatching",
    "Half",
    "Known",
    "Mask",
    "MeanFlow",
    "Objective",
    "OneStepRequest",
    "Rectangle",
    "Request",
    "Scattered",
    "UNet",
]
