"""The one way a person's mistake is reported: a sentence and an exit code.

Every package may import this module; it imports nothing of Sextet.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

USER_ERROR_EXIT_CODE = 2

# As in sysexits.h: something is missing for now, try again.
TRY_AGAIN_EXIT_CODE = 75


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one sentence that says what is wrong, where (file, column
    or flag), and what to do. Raise it at the edge where the mistake enters;
    a bug of ours must never become one.

    Attributes:
      exit_code: of a command that ends by it.
    """

    exit_code = USER_ERROR_EXIT_CODE


class TryAgain(UserError):
    """What may be over by the next trial, such as a fault of the network."""

    exit_code = TRY_AGAIN_EXIT_CODE


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
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
