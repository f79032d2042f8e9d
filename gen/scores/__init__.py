"""What is computed of a run that makes images, and of one that makes texts."""
