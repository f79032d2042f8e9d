"""The DCGAN of the job dcgan_64 of `python -m benchmarks`, as a config for train.py."""

from benchmarks.ours import TRAINED

config = TRAINED["dcgan_64"]()
