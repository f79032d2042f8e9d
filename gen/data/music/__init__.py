"""Music: scores on a fixed grid of time steps and voices, from MIDI files, from lists of notes, or made by rule."""

from gen.data.music.dataset import Music

__all__ = ["Music"]
