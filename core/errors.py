"""Errors that a user can cause or fix: one sentence and an exit code.

Every package may import this module; it imports nothing of Sextet.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

USER_ERROR_EXIT_CODE = 2

# EX_TEMPFAIL of sysexits.h: a temporary failure, worth a retry.
TRANSIENT_ERROR_EXIT_CODE = 75


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one sentence that says what is wrong, where (file, column
    or flag), and what to do. Raise it at the edge where the mistake enters;
    a bug of ours must never become one.

    Attributes:
      exit_code: of the command that it ends.
    """

    exit_code = USER_ERROR_EXIT_CODE


class TransientError(UserError):
    """A failure that may be over at the next try, such as of the network."""

    exit_code = TRANSIENT_ERROR_EXIT_CODE


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into `error: <sentence>` on stderr and its exit code.

    For the outermost frame of a command line. Ctrl-C exits with 130 and no
    traceback. Any other exception passes through with its traceback: it is a
    bug, and must look like one.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
