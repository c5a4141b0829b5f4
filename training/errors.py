"""What can go wrong in a training that is not a bug: one sentence each."""


class TrainingError(Exception):
    """The model cannot be made; the sentence says why and what to do."""
