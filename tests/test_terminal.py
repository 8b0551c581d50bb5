import errno
import json
from typing import Any

import numpy as np
import pytest

from sciJEPA.errors import UserError
from sciJEPA.terminal import REPORT, explain, outline, to_json


def caught(*errors: BaseException) -> BaseException:
    """The last of the errors, each raised from the one before."""
    previous: BaseException | None = None
    for error in errors:
        error.__cause__ = previous
        previous = error
    assert previous is not None
    return previous


def test_a_mistake_of_the_user_is_its_own_sentence() -> None:
    assert explain(UserError("a.zarr does not exist.")) == (2, "a.zarr does not exist.")


def test_an_unknown_exception_is_our_failure() -> None:
    assert explain(RuntimeError("?")) == (1, REPORT)
    assert explain(KeyError("x")) == (1, REPORT)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_found_behind_what_libraries_raise(number: int) -> None:
    full = OSError(number, "full", "run/last.ckpt")
    code, sentence = explain(
        caught(full, RuntimeError("cannot save"), ValueError("batch 3")), goes_on="--resume goes on"
    )
    assert code == 2
    assert sentence is not None
    assert "run/last.ckpt" in sentence
    assert "--resume" in sentence


def test_full_disk_in_the_context_and_in_groups() -> None:
    outer = RuntimeError("cannot save")
    outer.__context__ = OSError(errno.ENOSPC, "full")
    assert explain(outer, out="latents.zarr")[0] == 2
    code, sentence = explain(ExceptionGroup("several", [ValueError("x"), OSError(errno.ENOSPC, "full", b"a.zarr")]))
    assert code == 2
    assert sentence is not None
    assert sentence.startswith("the disk is full while writing a.zarr: ")
    assert "--resume" not in sentence


def test_full_disk_behind_a_copy_names_the_place_that_is_full() -> None:
    # shutil.move copies between file systems: from the temporary folder to the full one.
    sentence = explain(OSError(errno.ENOSPC, "full", "/tmp/a", None, "run/last.ckpt"))[1]
    assert sentence is not None
    assert "while writing run/last.ckpt:" in sentence


def test_full_disk_in_words_alone() -> None:
    # safetensors and zarr's codecs pass on the words of the system without its number.
    error = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert explain(error, out="model") == explain(OSError(errno.ENOSPC, "", "model"))


def test_what_the_user_is_told_goes_before_its_cause() -> None:
    error = caught(OSError(errno.ENOSPC, "full"), UserError("There is no room for the cache; set it elsewhere."))
    assert explain(error) == (2, "There is no room for the cache; set it elsewhere.")


def test_mistake_behind_what_a_library_raises() -> None:
    assert explain(caught(UserError("q is damaged."), RuntimeError("worker died"))) == (2, "q is damaged.")


@pytest.mark.parametrize(
    ("error", "phrase"),
    [
        (PermissionError(errno.EACCES, "denied", "/root/run"), "/root/run: permission is denied"),
        (OSError(errno.EROFS, "read-only", "/mnt/run"), "/mnt/run: its file system is read-only"),
    ],
)
def test_permissions(error: OSError, phrase: str) -> None:
    code, sentence = explain(error)
    assert code == 2
    assert sentence is not None
    assert phrase in sentence


def test_interruptions() -> None:
    assert explain(KeyboardInterrupt())[0] == 130
    # Lightning answers an interruption with exit(1).
    stopped = SystemExit(1)
    stopped.__context__ = KeyboardInterrupt()
    code, sentence = explain(stopped, out="runs/a", goes_on="--resume goes on")
    assert code == 130
    assert sentence is not None
    assert "--resume" in sentence


def test_a_job_that_was_ended_is_no_success() -> None:
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    code, sentence = explain(SIGTERMException(), goes_on="--resume goes on")
    assert (code, sentence) == (143, "terminated from outside; --resume goes on.")


def test_exits_have_said_everything() -> None:
    assert explain(SystemExit(0)) == (0, None)
    assert explain(SystemExit()) == (0, None)
    assert explain(SystemExit(3)) == (3, None)
    assert explain(SystemExit("broken"))[0] == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (-np.inf, None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1.0, np.nan]), [1.0, None]),
        ((1, "a", None), [1, "a", None]),
        ({1: {"x": np.nan}}, {"1": {"x": None}}),
        (np.datetime64("2001-01-01"), "2001-01-01"),
        ("é", "é"),
    ],
)
def test_json_is_valid(value: Any, expected: Any) -> None:
    assert json.loads(to_json({"value": value}), parse_constant=pytest.fail) == {"value": expected}


def test_outline_is_one_line_a_key() -> None:
    text = outline({"channels": ["z", "q"], "windows": {"train": 1234}, "flops_total": 3.1234567e13, "share": 0.25})
    assert text.splitlines() == [
        "channels     z, q",
        "windows      train 1,234",
        "flops total  3.123e+13",
        "share        0.25",
    ]
