"""A process that pretrains and dies where it is told to; test_pretrain runs it.

Each line of stdin is a JSON object: config (YAML file), out (run folder), resume, and where to die. The answer is the
number of the child process, then, once that is gone, its exit status. Children are forked: torch is imported once, and
no work has been done before a fork.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sciJEPA.config import load_config

home = importlib.import_module("sciJEPA.pretrain")


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str) -> None:
    """Arrange for a SIGKILL.

    after row N          row N of metrics.csv has been written, no checkpoint of that step
    after step N         everything about step N has been done
    in checkpoint N      half of the Nth checkpoint has been written
    before NAME N        the Nth file or folder of that name is complete but has not got its name yet
    """
    *words, number = moment.split()
    what, count = " ".join(words), [int(number)]

    def passed() -> bool:
        count[0] -= 1
        return count[0] < 0

    if what == "after row":
        whole_row = home.Metrics.on_train_batch_end

        def row(self: Any, trainer: Any, *rest: Any) -> None:
            whole_row(self, trainer, *rest)
            if trainer.global_step == int(number):
                die()

        home.Metrics.on_train_batch_end = row  # type: ignore[method-assign]
    elif what == "after step":
        whole_step = home.Checkpoint.on_train_batch_end

        def step(self: Any, trainer: Any, *rest: Any) -> None:
            whole_step(self, trainer, *rest)
            if trainer.global_step == int(number):
                die()

        home.Checkpoint.on_train_batch_end = step  # type: ignore[method-assign]
    elif what == "in checkpoint":
        write = Path.write_bytes

        def half(path: Path, content: memoryview) -> int:
            if path.name == "last.partial" and passed():
                write(path, content[: len(content) // 2])
                die()
            return write(path, content)

        Path.write_bytes = half  # type: ignore[method-assign,assignment]
    else:
        replace, name = os.replace, words[1]

        def last_moment(source: Any, target: Any) -> None:
            if os.path.basename(target) == name and passed():
                die()
            replace(source, target)

        os.replace = last_moment  # type: ignore[assignment]


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            if task.get("die"):
                die_at(task["die"])
            home.pretrain(load_config(task["config"]), task["out"], resume=task.get("resume", False), progress=False)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
