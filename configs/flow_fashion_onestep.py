"""MeanFlow on Fashion-MNIST (Geng et al. 2025), which generates samples by one evaluation of the network. Not scored yet.

It has the network of flow_fashion, and starts from its weights. So train flow_fashion first:
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
