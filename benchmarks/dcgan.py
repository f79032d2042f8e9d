"""The DCGAN of the benchmarks, as a config for train.py."""

from benchmarks.ours import TRAINED

config = TRAINED["dcgan_64"]()
