"""What is said to people when a run cannot start or go on: what was found, where, and what to do. (ShardError is the data's.)"""


class ConfigError(ValueError):
    """A setting is unknown, impossible, or does not fit the data or the machine: which one, and what to write instead."""


class TrainingError(RuntimeError):
    """The training itself went wrong: what, at which step, with which images."""


class LostProcessError(TrainingError):
    """A process is gone or silent, or waits in vain for its disk. Nothing is wrong with the run, which can go on."""
