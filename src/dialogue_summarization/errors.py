"""Errors that a user can mend: their messages say what is wrong and what to do. `study` prints them alone."""


class UserError(Exception):
    """The base class. Any other exception is a bug, or a library's, and keeps its traceback."""


class ConfigurationError(UserError, ValueError):
    """A name or setting that is unknown, or that cannot be used as given."""


class DataError(UserError, ValueError):
    """Dialogues or summaries that cannot be used; the message names the file, row and column."""


class ModelError(UserError, RuntimeError):
    """A model that cannot be loaded or used here."""


class RecordError(UserError, ValueError):
    """The record of a run that cannot be read; the message names the file."""


class NotEnoughMemory(UserError, RuntimeError):
    """A model, a batch or a training that does not fit; the message says what is needed and what there is."""


class TrainingDiverged(UserError, ArithmeticError):
    """The loss stopped being a finite number; the message names the step."""
