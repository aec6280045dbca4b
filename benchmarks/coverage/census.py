"""Runs the laws on every architecture, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

KINDS = ("causal", "image-text")
LIMIT = 300  # seconds of CPU time that one architecture may take


@dataclass
class Entry:
    """What the census found of one architecture.

    Attributes:
        name: its model type in transformers.
        kind: "causal" or "image-text" (which is read as text, without an image).
        outcome: "loaded", "refused" by `interp.load` with a reason, "not built" (no tiny model of
            it could be made here) or "crashed".
        why: the reason, unless it was loaded.
        points, reasons, laws, cached, decoding: as in `laws.Findings`.
    """

    name: str
    kind: str
    outcome: str = "crashed"
    why: str = ""
    points: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    reasons: list[str] = field(default_factory=list[str])
    laws: dict[str, bool] = field(default_factory=dict[str, bool])
    cached: bool = False
    decoding: str = ""

    def count(self, status: str) -> int:
        """Returns how many points of all blocks have a status."""
        return sum(statuses.get(status, 0) for statuses in self.points.values())

    def is_right_at(self, point: str) -> bool:
        """Returns whether a point is right in every block that has it."""
        return set(self.points.get(point, ())) == {"right"}

    @property
    def is_wrong(self) -> bool:
        """Whether any number or token of a loaded model is wrong, or could not be checked."""
        unproven = self.count("wrong") + self.count("unknown")
        return self.outcome == "crashed" or bool(unproven) or not all(self.laws.values())

    @property
    def has_all_sites(self) -> bool:
        """Whether every point that the architecture has is right in every block."""
        return self.outcome == "loaded" and all(map(self.is_right_at, self.points))


def examined(name: str, kind: str) -> Entry:
    """Returns what is found of one architecture, in this process."""
    import interp
    from benchmarks.coverage import architectures, laws

    entry = Entry(name, kind)
    try:
        model = architectures.build(name, kind)
    except Exception as error:  # noqa: BLE001 - a configuration fails in whatever way its class does
        entry.outcome, entry.why = "not built", _said(error)
        return entry
    try:
        subject = interp.load(model)
    except (interp.LoadError, interp.SiteError, interp.HookError) as error:
        entry.outcome, entry.why = "refused", _said(error)
        return entry
    found = laws.examine(subject)
    entry.outcome = "loaded"
    entry.points = {point: dict(statuses) for point, statuses in found.points.items()}
    entry.reasons = found.reasons
    entry.laws = found.laws
    entry.cached, entry.decoding = found.cached, found.decoding
    return entry


def census(names: Sequence[tuple[str, str]], jobs: int) -> Iterator[Entry]:
    """Gives what is found of each architecture as it ends.

    A process is forked for each, so that what one architecture does to the libraries, or a crash,
    reaches no other.

    Args:
        names: of architectures, with their kinds.
        jobs: how many processes run at once.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(names))
    running: dict[Connection, tuple[Any, Entry]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name, kind = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_examine_for, args=(name, kind, sender), daemon=True)
            process.start()
            # The child has a copy. With this end open, a child that dies would never end the pipe,
            # and `recv` would wait for ever.
            sender.close()
            running[receiver] = (process, Entry(name, kind, why="the process died"))
        for receiver in wait(list(running)):
            assert isinstance(receiver, Connection)
            process, entry = running.pop(receiver)
            with suppress(EOFError):  # the process died before it could say why
                entry = Entry(**receiver.recv())
            process.join()
            yield entry


def _examine_for(name: str, kind: str, sender: Connection) -> None:
    """Sends what is found of one architecture; runs in its own process."""
    import resource

    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # noqa: TID251 - a process of its own
    # The system kills a process that computes for longer: its entry then says that it died.
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    # What libraries print about single architectures would run into the progress bar.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        entry = examined(name, kind)
    except Exception as error:  # noqa: BLE001 - a crash is a finding
        entry = Entry(name, kind, why=_said(error))
    sender.send(asdict(entry))


def _said(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:400]
