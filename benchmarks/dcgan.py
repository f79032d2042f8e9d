"""The DCGAN of the benchmarks as a config of train.py."""

from benchmarks.ours import TRAINED

config = TRAINED["dcgan_64"]()
