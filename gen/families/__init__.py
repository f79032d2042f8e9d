"""Families of generative models, one folder per paradigm."""
