"""Forms of a computation that exist only because XLA's CPU backend runs them faster.

Each is written next to the plain form that it equals up to rounding, and a test compares the two in values and gradients
(tests/test_kernels.py, tests/test_kernels_convolution.py). Other backends get the plain form: `jax.lax.platform_dependent`
chooses when a program is lowered. Both forms have the same gradient rules, so training is the same algorithm everywhere.
"""
