"""What reaches the terminal: results on stdout, our own warnings and one sentence for a failure on stderr.

Arrives: the result of a verb, or whatever it raised. Leaves: text or JSON on stdout; or an exit code and a sentence: 2
where the user or the machine is at fault, 130 or 143 for an interruption, 1 where we are. Exceptions are looked at with
their causes, since libraries wrap what the system said. We decided against guessing: an exception that we do not know
is our failure, and is shown whole.
"""

import contextlib
import errno
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from sciJEPA.errors import UserError

REPORT = (
    "this is a failure of sciJEPA and not of your input; please report it with the lines above and what "
    "'scijepa doctor' prints."
)
# Libraries in Rust and C++ pass on the words of the system, and lose its number.
WORDS = {"no space left on device": errno.ENOSPC, "disk quota exceeded": errno.EDQUOT, "file too large": errno.EFBIG}
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "a file has reached the size limit (see ulimit -f)",
}


def to_json(value: Any) -> str:
    r"""Valid JSON of nested mappings, sequences and numbers; NaN and infinity, which JSON lacks, become null.

    >>> to_json({"skill": float("nan")})
    '{\n  "skill": null\n}'
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):  # a NumPy number or array
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def outline(description: Mapping[str, Any]) -> str:
    """One line a key: `windows  train 133, validation 13, test 33`."""

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {words(part)}" for key, part in value.items())
        if isinstance(value, list | tuple):
            return ", ".join(map(words, value))
        if isinstance(value, float) or (isinstance(value, int) and value >= 1e9):
            return f"{value:.4g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    width = max(map(len, description))
    return "\n".join(f"{key.replace('_', ' '):<{width}}  {words(value)}" for key, value in description.items())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Show our own warnings, each in one line, and not those of the libraries (unless Python was started with -W)."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category.__module__.startswith("sciJEPA"):
            print(f"scijepa: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.showwarning = show
        yield


def write(text: str) -> int:
    """Print the result; a reader that has seen enough (`| head`) is no failure."""
    try:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # an old terminal must not lose a whole table over one letter
        if text:
            print(text)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail again when Python flushes it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 128 + 13  # what a shell reports for a program that the closed pipe has ended
        raise OSError(error.errno, error.strerror, "the standard output") from error
    return 0


def complain(error: BaseException, *, out: str | os.PathLike | None = None, goes_on: str = "") -> int:
    """Print what went wrong on stderr, and return the exit code; see `explain`."""
    code, sentence = explain(error, out=out, goes_on=goes_on)
    if sentence is None:  # --help and --version leave this way
        return code or write("")
    if code == 1:
        traceback.print_exception(error)
    print(f"scijepa: {sentence}", file=sys.stderr)
    return code


def explain(error: BaseException, *, out: str | os.PathLike | None = None, goes_on: str = "") -> tuple[int, str | None]:
    """Exit code and sentence for an exception that ended a command.

    Parameters
    ----------
    error
        The exception; its causes and contexts are looked at too.
    out
        What the command was writing, for exceptions that do not say.
    goes_on
        How the command can be continued, as in "--resume goes on from the last checkpoint".

    Returns
    -------
    The code, and a sentence in one line; None for a `SystemExit`, which has said everything.

    Examples
    --------
    >>> explain(UserError("a.zarr does not exist."))
    (2, 'a.zarr does not exist.')
    >>> explain(OSError(28, "No space left on device", "latents.zarr"))[1].partition(":")[0]
    'the disk is full while writing latents.zarr'
    """
    chain = list(_chain(error))
    if any(isinstance(link, KeyboardInterrupt) for link in chain):
        return 130, f"interrupted; {goes_on or 'nothing that existed before was changed'}."
    # So Lightning calls what it raises when a scheduler ends the job; it is a SystemExit, and would read as a success.
    if any(type(link).__name__ == "SIGTERMException" for link in chain):
        return 143, f"terminated from outside; {goes_on or 'nothing that existed before was changed'}."
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return error.code or 0, None
    if isinstance(error, UserError):
        return 2, _one_line(error)
    for link in chain:
        sentence = _refusal(link, out, goes_on)
        if sentence:
            return 2, sentence
    for link in chain:
        if isinstance(link, UserError):
            return 2, _one_line(link)
    return 1, REPORT


def _refusal(error: BaseException, out: str | os.PathLike | None, goes_on: str) -> str | None:
    """A sentence for a machine that does not let us write or read, None for any other exception."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in REASONS:
        number = next((code for words, code in WORDS.items() if words in str(error).lower()), number)
    # A failed copy names its source and then the place that did not take it.
    named = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    if isinstance(named, bytes):
        named = os.fsdecode(named)
    place = named if isinstance(named, str) else out
    if number in REASONS:
        where = f" while writing {place}" if place else ""
        remedy = "free some space or choose another folder; what was written before stays valid"
        return f"{REASONS[number]}{where}: {remedy}{', and ' if goes_on else ''}{goes_on}."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = "its file system is read-only" if number == errno.EROFS else "permission is denied"
        return f"cannot use {place or 'a file'}: {why}; change its permissions or choose another path."
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, what caused it and what was being handled, nearest first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop(0)
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting += [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            waiting += link.exceptions


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n")).strip() or f"{type(error).__name__} without a message."
