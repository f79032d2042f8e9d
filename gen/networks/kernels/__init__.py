"""Forms that only make XLA's CPU backend fast, each with the plain form that it equals."""
