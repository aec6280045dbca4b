"""What every analysis looks at: items of three kinds at the read-out of one model, and what the
model says there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

import interp
from experiments.reason_to_rote.tasks import Task, exact
from interp.data.noisy import Items
from interp.interventions.plan import Plan
from interp.subject.batch import Batch
from interp.subject.subject import evaluating

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Reasoning:
    """Where a task's reasoning is looked for.

    Attributes:
        variable: the intermediate result that is removed, patched and probed; it is complete at
        `position`.
        group: the inputs that it is computed from.
        unrelated: a variable that has no part in it, whose subspace is the control: another digit;
            of relations the second, which the position has not seen yet.
        inputs: positions of the input tokens.
        probed: what else is probed, as (variable, position).
        result: the variable that is the first answer token, and what it is computed from.
    """

    variable: str
    position: int
    group: tuple[str, ...]
    unrelated: str
    inputs: tuple[int, ...]
    probed: tuple[tuple[str, int], ...]
    result: str
    result_group: tuple[str, ...]


def reasoning(task: Task, step: int) -> Reasoning:
    """For answer token number `step`."""
    question = task.train.question.shape[1]
    if task.name == "THR":
        return Reasoning(
            "bridge",
            1,
            ("head", "first"),
            "second",
            (0, 1, 2),
            (("bridge", 1), ("bridge", 2), ("tail", 2)),
            "tail",
            ("bridge", "second"),
        )
    digits, k = len(task.answer) - 1, int(task.answer[step].removeprefix("digit"))
    top, at = min(k, digits - 1), question - 1 + step
    group = (f"x{top}", f"y{top}") if top == 0 else (f"x{top}", f"y{top}", f"carry{top}")
    probed = tuple((name, at) for name in (f"digit{k}", f"raw{top}", *group))
    inputs = (*range(digits), *range(digits + 1, 2 * digits + 1))
    return Reasoning(
        f"digit{k}", at, group, f"digit{(k + 1) % digits}", inputs, probed, f"digit{k}", group
    )


@dataclass(frozen=True, eq=False)
class Studied:
    """Items of one kind. Their batch ends with the read-out, the first answer token on which truth
    and label differ, so that nothing wrong stands before it; for items without a wrong label it is
    the same token."""

    items: Items
    step: int

    def __len__(self) -> int:
        return len(self.items)

    @property
    def batch(self) -> Batch:
        given = self.items.question.shape[1] + self.step
        return replace(self.items.batch().until(given + 1), prompt=given)

    @property
    def true(self) -> Int[np.ndarray, " items"]:
        return self.items.truth[:, self.step]

    @property
    def label(self) -> Int[np.ndarray, " items"]:
        return self.items.label[:, self.step]

    def group(self, names: Iterable[str]) -> Int[np.ndarray, " items"]:
        """One number for each combination of some variables; variables stay below 100,000."""
        number = np.zeros(len(self), dtype=np.int64)
        for name in names:
            number = 100_000 * number + self.items.variables[name]
        return number

    def rows(self, chosen: np.ndarray) -> Studied:
        """Some items, by index or mask."""
        return replace(self, items=self.items.rows(chosen))

    def some(self, at_most: int) -> Studied:
        """The first items: their order is random."""
        return self.rows(np.arange(min(at_most, len(self))))


@dataclass(frozen=True, eq=False)
class Study:
    """One model: what it is of (`stage`), and its items. `memorized` are noisy items that the
    trained model says as trained, `test` items that it answers rightly, `clean` items trained with
    their right answer."""

    stage: str
    subject: interp.Subject
    task: Task
    reasoning: Reasoning
    clean: Studied
    test: Studied
    memorized: Studied

    @property
    def sets(self) -> Mapping[str, Studied]:
        return {"memorized": self.memorized, "test": self.test}

    @property
    def blocks(self) -> int:
        return len(self.subject.anatomy.blocks())

    def of(self, stage: str, subject: interp.Subject) -> Study:
        """The same items on another model."""
        return replace(self, stage=stage, subject=subject)

    def table(self, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
        """Rows with the task and the stage beside them."""
        frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
        return frame.assign(task=self.task.name, stage=self.stage)


def study(
    task: Task,
    subject: interp.Subject,
    stage: str,
    *,
    clean: int,
    at_most: int,
    memorized: np.ndarray | None = None,
) -> Study:
    """Chooses the items: at most so many `clean` ones, and `at_most` of the others; `memorized`
    says which noisy items are, by default those that the subject says as trained.

    Items that first differ at another answer token than most are left out, so that all are read at
    one position. Raises ValueError when nothing was memorized or no test passed.
    """
    noisy, held_out = task.noisy, task.tests["test"]
    said = exact(subject, noisy.batch()) if memorized is None else memorized
    right = exact(subject, held_out.batch())
    if not said.any() or not right.any():
        raise ValueError(
            f"{task.name}: {said.sum()} of {len(noisy)} noisy items memorized, {right.sum()} of {len(held_out)} tests passed"
        )
    first = (noisy.label != noisy.truth).argmax(1)
    step = int(np.bincount(first[said]).argmax())
    known = Studied(noisy.rows(said & (first == step)), step).some(at_most)
    others = (
        Studied(task.clean, step).some(clean),
        Studied(held_out.rows(right), step).some(at_most),
    )
    return Study(stage, subject, task, reasoning(task, step), *others, known)


def said(subject: interp.Subject, batch: Batch, *plans: Plan) -> Int[np.ndarray, " items"]:
    """The likeliest token at the read-out, under plans if any; all rows in one forward, so that
    donors meet their rows."""
    with evaluating(subject), subject.intervened(*plans):
        return subject.target_logits(batch)[:, 0].argmax(-1).cpu().numpy()


def outcomes(
    study: Study, plan: Callable[[str, Studied], Plan], **about: Any
) -> list[dict[str, Any]]:
    """What each item of both sets says under a plan made for its set: is it the `label` (the truth,
    for tests), or the `true` answer."""
    rows: list[dict[str, Any]] = []
    for name, items in study.sets.items():
        answers = said(study.subject, items.batch, plan(name, items))
        found = zip(answers == items.label, answers == items.true, strict=True)
        rows += [
            {**about, "set": name, "item": number, "kept": kept, "true": true}
            for number, (kept, true) in enumerate(found)
        ]
    return rows
