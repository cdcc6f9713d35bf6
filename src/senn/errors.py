"""Errors that senn raises: one clear sentence each, naming what is wrong."""


class SennError(ValueError):
    """Bad input or an impossible request; the message is one sentence for the user.

    A command-line face turns it into that sentence on stderr and exit code 2.
    """


class UnsupportedError(SennError):
    """Something in a model, loss or optimizer that senn does not understand, by name."""


class DivergenceError(SennError):
    """A loss, gradient, step or output is NaN or infinite; nothing was changed."""


class SurgeryError(SennError):
    """A change of the network failed its verification and was rolled back whole."""
