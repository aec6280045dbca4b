"""Which LIBERO tasks cannot be scored, and why: a gate in front of every evaluation.

LIBERO-PRO offers goals that cannot be read, and a success says nothing about a policy where the
goal holds before it moves (arXiv 2510.03827). Nor does a failure where the basket that the goal
names was sent 10 m away, as in five of the tasks that it ships.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from interp.data.bddl import Fact, Problem, Region, Tree, parse, problem, to_text
from interp.errors import closest

__all__ = ["DEFECTS", "Defect", "Validation", "find_defects", "validate"]

DEFECTS = (
    "unbalanced",
    "malformed",
    "undeclared in init",
    "undeclared in goal",
    "goal holds at reset",
    "inverted region",
    "out of reach",
)

# Metres from the middle of a surface, along x or y. No surface is as large, and of the places in
# the files only those of things that were sent away are further.
_FAR = 1.0


@dataclass(frozen=True, slots=True)
class Defect:
    """One reason why a task cannot be scored.

    Attributes:
        kind: one of DEFECTS.
        detail: what is wrong and where.
    """

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Validation:
    """The result of checking a suite of tasks.

    Attributes:
        defects: for every task that was checked its defects, none for a valid task.
    """

    defects: Mapping[str, tuple[Defect, ...]]

    @property
    def valid(self) -> tuple[str, ...]:
        """Names of the tasks without defects."""
        return tuple(task for task, found in self.defects.items() if not found)

    @property
    def counts(self) -> dict[str, int]:
        """Number of tasks with each kind of defect; a task with two kinds counts in both."""
        tasks: Counter[str] = Counter()
        for found in self.defects.values():
            tasks.update({defect.kind for defect in found})
        return {kind: tasks[kind] for kind in DEFECTS if tasks[kind]}

    def __str__(self) -> str:
        n_invalid = len(self.defects) - len(self.valid)
        reasons = [f"{kind}: {count}" for kind, count in self.counts.items()]
        because = f" ({', '.join(reasons)})" if reasons else ""
        return f"{n_invalid} of {len(self.defects)} tasks are invalid{because}"


def find_defects(task: str | Tree) -> tuple[Defect, ...]:
    """Returns the reasons why a task cannot be scored.

    A success means nothing where the goal holds before the robot moves. That is judged by the facts
    of init alone: every fact of the goal is listed there. What the simulator does at reset (a
    drawer that is closed by default, an object that falls) is not known here. A failure means
    nothing where a thing that the goal is about lies more than 1 m from the middle of its surface,
    or where LIBERO cannot load the scene because a region ends before it begins.

    Args:
        task: the text of a task file or its tree.

    Returns:
        No defects for a valid task. Nothing more is checked in a task that is unbalanced or
        malformed.

    Example:
        >>> from interp.data import bddl_validation
        >>> bddl_validation.find_defects("(define (problem LIBERO_Floor_Manipulation)")[0].kind
        'unbalanced'
    """
    try:
        tree = parse(task) if isinstance(task, str) else task
    except ValueError as error:
        return (Defect("unbalanced", str(error)),)
    try:
        declared = problem(tree)
    except ValueError as error:
        return (Defect("malformed", str(error)),)

    found = [
        *_undeclared(declared.init, declared.names, "undeclared in init"),
        *_undeclared(declared.goal, declared.names, "undeclared in goal"),
    ]
    at_reset = {_lower(fact) for fact in declared.init}
    missing = [fact for fact in declared.goal if _lower(fact) not in at_reset]
    if not missing:
        goal = " ".join(to_text(fact) for fact in declared.goal) or "an empty goal"
        found.append(Defect("goal holds at reset", f"{goal}: nothing is left to do"))
    found += _misplaced(declared)
    return tuple(found)


def _misplaced(declared: Problem) -> Iterator[Defect]:
    """Regions that LIBERO refuses to load, and things of the goal that no robot can reach."""
    far: dict[str, Region] = {}
    owners: dict[str, str] = {}
    for region in declared.regions:
        owners[region.full_name.lower()] = region.target.lower()
        for x0, y0, x1, y1 in region.ranges:
            if x0 > x1 or y0 > y1:
                detail = f"region {region.name}: ({x0} {y0} {x1} {y1}) ends before it begins"
                yield Defect("inverted region", detail)
            if max(abs(x0), abs(y0), abs(x1), abs(y1)) > _FAR:
                far[region.full_name.lower()] = region

    of_goal: set[str] = set()
    for fact in declared.goal:
        for name in _lower(fact)[1:]:
            # A region of the goal, and the thing that it belongs to.
            of_goal |= {name, owners.get(name, name)}
    for fact in declared.init:
        match _lower(fact):
            case ("on", name, place) if name in of_goal and place in far:
                region = far[place]
                detail = f"{name}, which the goal is about, is at {region.ranges[0]} m"
                yield Defect("out of reach", detail)
            case _:
                pass


def _undeclared(facts: Sequence[Fact], names: Sequence[str], kind: str) -> Iterator[Defect]:
    known = {name.lower() for name in names}
    for fact in facts:
        for name in fact[1:]:
            if name.lower() not in known:
                nearest = closest(name, names)
                detail = f"{to_text(fact)}: {name!r} is not declared; nearest: {nearest}"
                yield Defect(kind, detail)


def _lower(fact: Fact) -> Fact:
    return tuple(word.lower() for word in fact)


def validate(tasks: Mapping[str, str | Tree]) -> Validation:
    """Checks the tasks of a suite, so that invalid ones are counted and not scored.

    Args:
        tasks: texts or trees of task files, by name.

    Example:
        >>> from interp.data import bddl_validation
        >>> unfinished = "(define (problem LIBERO_Floor_Manipulation)"
        >>> print(bddl_validation.validate({"open the drawer": unfinished}))
        1 of 1 tasks are invalid (unbalanced: 1)
    """
    return Validation({name: find_defects(task) for name, task in tasks.items()})
