"""Scores of trained runs and of folders of images, their baselines and protocols, and the alarms of runs in training."""
