"""What goes wrong at the edge of an experiment: input that the user can mend."""

__all__ = ["ExperimentError"]


class ExperimentError(Exception):
    """A config, a run directory or a file does not fit; the message says what to do."""
