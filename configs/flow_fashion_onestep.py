"""MeanFlow on Fashion-MNIST (Geng et al. 2025): samples by one evaluation of the network. Not scored yet.

It starts from the flow of flow_fashion, whose network it takes. Train that one first:
python train.py flow_fashion && python train.py flow_fashion_onestep
"""

from dataclasses import replace

from gen.config import load
from gen.families.flow import MeanFlow
from gen.optim import Optimizer, WarmupCosine

flow = load("flow_fashion")
config = replace(
    flow,
    model=replace(flow.model, objective=MeanFlow(), optim=Optimizer(lr=WarmupCosine(5e-4, warmup=200), clip=1.0)),
    steps=8000,
    init_from="runs/flow_fashion",
)
