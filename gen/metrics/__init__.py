"""Metrics of generated images, texts, sound and scores: functions that map arrays to numbers."""
