"""Scores of runs: which apply to which medium, baselines, protocols, alarms."""
