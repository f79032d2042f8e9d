"""Forms of a computation that exist only because XLA's CPU backend runs them faster.

Each fast form is written next to a plain form. The two are equal up to rounding, and tests compare their values and gradients
(tests/test_kernels.py, tests/test_kernels_convolution.py). Other backends run the plain form: `jax.lax.platform_dependent`
chooses the form when a program is compiled. Both forms have the same gradient rules, so training is the same algorithm everywhere.
`axes` is an exception: its products of matrices are fast on every backend, so there is one form.
"""
