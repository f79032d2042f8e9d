"""Forms of a computation that exist only because XLA's CPU backend runs them faster.

Each fast form is written next to the plain form that other backends run. Both have the same values and gradients up to
rounding, so training is the same algorithm everywhere. Tests compare them (tests/test_kernels.py,
tests/test_kernels_convolution.py). `jax.lax.platform_dependent` chooses the form when a program is compiled. Attention
is chosen earlier, in gen.networks.attention. Three modules have one form for every backend: `axes`, `forward`, and
`normalization`, whose sums alone have two forms.
"""
