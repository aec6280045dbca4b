"""The widget of a workbench: a page in the notebook, and the Python at its other end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from interp.interventions.kinds import Intervention
from interp.sites.units import Units
from interp.subject.subject import Subject
from interp.workbench.measurements import Windows
from interp.workbench.view import scores_of, selection_of, view
from interp.workbench.workspace import Workspace

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError("a workbench needs anywidget: pip install 'interp[workbench]'") from error

_HERE = Path(__file__).parent


class Workbench(anywidget.AnyWidget):
    """Ablates by hand, with the mouse or the keyboard: switch units off, and see what of a passage
    the model still generates and what that costs.

    The page sends what was clicked and asks for the next piece of work; each is answered by itself.
    So nothing runs while nobody looks, an answer never waits for more than one piece, and the model
    is without hooks whenever a cell runs.

    Args:
        subject, memorized, control, held_out: see `Workspace`; or a Workspace alone.
        **options: see `Workspace`.

    Raises:
        ValueError: see `Workspace`.

    Example:
        >>> from interp.workbench.widget import Workbench
        >>> bench = Workbench(subject, memorized, control)
        >>> bench.space.select(subject.units("blocks.1.neurons", [0, 3]))
        >>> bench.units
        Units(2 of 96: blocks.1.neurons 2)
        >>> [type(intervention).__name__ for intervention in bench.plan]
        ['Zero']
    """

    _esm = _HERE / "widget.js"
    _css = _HERE / "widget.css"
    view = traitlets.Dict().tag(sync=True)
    scores = traitlets.Bytes().tag(sync=True)
    selection = traitlets.Bytes().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)
    # Which message of which page was answered, and how many there were: every answer differs.
    answered = traitlets.List(default_value=["", 0, 0]).tag(sync=True)
    code_text = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        subject: Subject | Workspace,
        memorized: Windows | None = None,
        control: Windows | None = None,
        held_out: Windows | None = None,
        **options: Any,
    ) -> None:
        if isinstance(subject, Workspace):
            self.space = subject
        elif memorized is None or control is None:
            raise ValueError(
                "a workbench needs windows that are memorized and a control: "
                "Workbench(subject, memorized, control), or Workbench.of_scan(subject, frame)"
            )
        else:
            self.space = Workspace(subject, memorized, control, held_out, **options)
        if self.space.scores is None:
            self.space.use_method(self.space.method)
        # Complete from the beginning: a page may be drawn before later messages reach it.
        super().__init__(**self._shown())
        self.on_msg(self._on_message)

    @classmethod
    def of_scan(cls, subject: Subject, frame: pd.DataFrame, **options: Any) -> Workbench:
        """Returns a workbench of a scan: see `Workspace.of_scan`."""
        return cls(Workspace.of_scan(subject, frame, **options))

    @property
    def units(self) -> Units:
        """The selected units."""
        return self.space.units

    @property
    def plan(self) -> tuple[Intervention, ...]:
        """What is done to the model, as a plan for `subject.intervened`."""
        return self.space.plan

    @property
    def tries(self) -> pd.DataFrame:
        """One row per selection that was measured to the end."""
        return self.space.tries()

    def _on_message(self, _: Any, content: dict[str, Any], __: Any) -> None:
        self.answer(content)

    def answer(self, message: dict[str, Any]) -> None:
        """Does what the page asks for and sends what has changed.

        Args:
            message: `do`, the name of what to do, with its arguments, and `page` and `number`,
                which the page gets back once it is done.
        """
        problem = ""
        try:
            _do(self.space, message)
        except Exception as error:  # noqa: BLE001 - shown to the user, who goes on
            problem = f"{type(error).__name__}: {error}"
        except KeyboardInterrupt:
            # The interrupted piece is left undone, and the page stops asking for the next one.
            problem = "interrupted: change something, or press Measure, to go on"
        # All in one message, without the traits that are the same.
        try:
            shown = self._shown()
        except Exception as error:  # noqa: BLE001 - without an answer the page would wait for ever
            shown = {}
            problem = problem or f"{type(error).__name__}: {error}"
        with self.hold_sync():
            for name, value in shown.items():
                setattr(self, name, value)
            self.error = problem
            _, _, count = self.answered
            self.answered = [message.get("page", ""), int(message.get("number", 0)), count + 1]

    def _shown(self) -> dict[str, Any]:
        """The traits that follow from the workspace."""
        return {
            "view": view(self.space),
            "scores": scores_of(self.space),
            "selection": selection_of(self.space),
            "code_text": self._code(),
        }

    def _code(self) -> str:
        try:
            return self.space.code()
        except ValueError as error:
            return f"# no plan: {error}"


def _do(space: Workspace, message: dict[str, Any]) -> None:
    """Does one thing that the page asks for.

    Raises:
        ValueError: it asks for something that cannot be done.
    """
    what = message["do"]
    if what == "next":
        space.measure_next()
    elif what == "show":
        space.show(int(message["passage"]))
    elif what == "paint":
        space.paint(_units(space, message["ranges"]), on=bool(message["on"]))
    elif what == "toggle":
        space.toggle(_units(space, message["ranges"]))
    elif what == "top":
        space.take_top(int(message["k"]))
    elif what == "control":
        space.take_control(message["name"], int(message["seed"]))
    elif what == "treat":
        changes: dict[str, Any] = dict(message["changes"])
        if "tokens" in changes:
            changes["tokens"] = tuple(sorted(map(int, changes["tokens"])))
        space.treat(**changes)
    elif what == "method":
        space.use_method(message["method"], message["point"])
    elif what in ("undo", "redo", "clear"):
        getattr(space, what)()
    else:
        raise ValueError(f"unknown message {what!r}")


def _units(space: Workspace, ranges: list[list[int]]) -> Units:
    """Units by ranges of their numbers in the map: [first, after the last] of each."""
    widths = space.subject.anatomy.widths(space.sites)
    indices: dict[Any, list[int]] = {site: [] for site in widths}
    # The map numbers the units of all sites through; a site has those from `offset` on.
    offset = 0
    for site, width in widths.items():
        for first, stop in ranges:
            low = max(first, offset)
            high = min(stop, offset + width)
            indices[site] += range(low - offset, high - offset)
        offset += width
    return Units(indices, widths)
