"""What a command prints, wherever that goes; every package may import this.

A terminal or log that is not UTF-8, a closed pipe (`| head`), a terminal that
was closed, a full disk, or no output at all must not cost a result. What is
lost is printed text, and what that means is decided here, once:

- A command whose result is in files (`train.py`, `python -m stacking`,
  `python -m input_pipeline`) goes on to its end; its exit code says how the
  work ended, and output that nobody can receive is dropped.
- A command whose result is what it prints (`predict.py`, `python -m
  jax_models`) ends: quietly, with 141, as a shell reports SIGPIPE, if its pipe
  was closed, and with one sentence and 2 if it cannot be written otherwise.

stderr never holds a result.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator

from core.errors import UserError

# What a shell reports of a process that SIGPIPE ended.
CLOSED_PIPE_EXIT_CODE = 141

# How to encode text (`errors`) that an encoding lacks, or that is no text:
# bytes of file names as they are, all else escaped.
ESCAPE = "sextet-escape"

# What we, a compiler or a library print, for encodings without it.
_ASCII = str.maketrans(
    {
        "…": "...",
        "→": "->",
        "×": "x",
        "–": "-",
        "—": "-",
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
    }
)


def install(*, results: bool = False) -> None:
    """Makes stdout and stderr safe to print to; call it first of all.

    Text that the encoding lacks is escaped; the bytes of a file name that is
    not UTF-8 are printed as they are. Every line is passed on at once, so a
    log shows it even if the process is killed.

    Args:
      results: whether the result of the command is what it prints to stdout.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # Closed: else the next file to be opened took its
            # number, and prints went into it. Nothing can be written to it.
            os.open(os.devnull, os.O_RDONLY)
    sys.stdout = _stream(sys.stdout, 1, results)
    sys.stderr = _stream(sys.stderr, 2, False)


@contextlib.contextmanager
def last_line_only() -> Iterator[None]:
    """Drops what is printed to stdout in this context, but for its last line.

    That is printed at the end, unless an error ends the context.
    """
    kept = _LastLine()
    try:
        with contextlib.redirect_stdout(kept):
            yield
    except SystemExit:  # A run that was stopped says so.
        print(kept.line)
        raise
    print(kept.line)


class _LastLine(io.TextIOBase):
    """A text stream of which the last line is kept."""

    def __init__(self):
        self.line, self._begun = "", ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        self.line = next(filter(None, reversed(lines)), self.line)
        return len(text)


def _stream(old: io.TextIOBase | None, descriptor: int, results: bool):
    errors = getattr(old, "errors", None)
    asked = errors in ("ignore", "replace", "xmlcharrefreplace", "namereplace")
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, results)),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors=errors if asked else ESCAPE,  # PYTHONIOENCODING may ask.
        line_buffering=True,
    )


class _Descriptor(io.RawIOBase):
    """A file descriptor; see the module for what a failed write means."""

    def __init__(self, descriptor: int, results: bool):
        self._descriptor, self._results = descriptor, results

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # Another process made it so.
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._lost(error)
                return len(data)

    def _lost(self, error: OSError) -> None:
        # From now on also for what C++ prints.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._descriptor)
        os.close(nowhere)
        if not self._results:
            return
        if isinstance(error, BrokenPipeError):
            raise SystemExit(CLOSED_PIPE_EXIT_CODE)
        raise UserError(
            f"cannot write to stdout ({error.strerror}); what it did not take "
            "is lost, so send it elsewhere and run the command again"
        ) from error


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encodes one character that an encoding lacks (`codecs`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    wide = error.encoding.lower().startswith(("utf-16", "utf-32"))
    if 0xDC80 <= code <= 0xDCFF and not wide:  # A byte of a file's name.
        return bytes([code - 0xDC00]), error.start + 1
    text = chr(code).translate(_ASCII)
    if ord(text[0]) > 127:
        text = text.encode("ascii", "backslashreplace").decode()
    return text, error.start + 1


codecs.register_error(ESCAPE, _escape)
