"""The one root of errors that a user can put right; everything else is a bug of ours and keeps its traceback."""

from __future__ import annotations


class FmwsssError(Exception):
    """A mistake in a file, a setting or a machine that its user can put right.

    The message is one line (of configurations: one for each mistake) that names the file, key or image and what to do.
    The command prints it and exits with `exit_code`.
    """

    exit_code = 2


class InputError(FmwsssError, ValueError):
    """A value, a file or an argument that can't be used."""


class UnexpectedError(RuntimeError):
    """An exception in a worker that is no user's mistake: the first cause in one line; its traceback is the cause."""
