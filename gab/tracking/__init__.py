"""The record of a run, its W&B mirror, the progress display, figures, and where a run came from."""
