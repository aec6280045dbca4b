"""Runs a function in a copy of this process, which may be killed.

A fork has everything imported already; a new Python takes ten seconds to get there.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from joblib.externals.loky import reusable_executor


@dataclass(frozen=True)
class Fork:
    """A copy of this process, at work.

    Attributes:
        pid: its process id, and that of its process group.
        log: the folder that what it prints is written to, as the files `out` and `err`.
    """

    pid: int
    log: Path

    def end(self) -> tuple[int, str, str]:
        """Waits until it ends; its exit code (minus the signal's number where it was killed), and
        what it printed to stdout and to stderr."""
        _, status = os.waitpid(self.pid, 0)
        out, err = ((self.log / name).read_text() for name in ("out", "err"))
        return os.waitstatus_to_exitcode(status), out, err


def fork(run: Callable[[], object], log: Path) -> Fork:
    """Calls `run` in a copy of this process, and goes on without waiting for it."""
    log.mkdir(parents=True, exist_ok=True)
    # It may be killed before it has opened them.
    for name in ("out", "err"):
        (log / name).touch()
    child = os.fork()
    if not child:
        _be_a_child(run, log)
    return Fork(child, log)


def _be_a_child(run: Callable[[], object], log: Path) -> NoReturn:
    """Whatever happens, the copy ends here: it must never return into pytest."""
    code = 1
    # The processes that joblib keeps are those of the original, whose threads look after them.
    reusable_executor._executor = None
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        run()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
