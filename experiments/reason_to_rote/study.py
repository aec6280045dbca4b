"""What every analysis works on: three sets of items of one task, the token at which they are read,
and what a model answers there."""

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


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """Where in a question the reasoning of a task is looked for.

    Attributes:
        variable: the intermediate result that is removed, patched and probed.
        position: the position from which on `variable` is known.
        read: the position at which `variable` is probed: the first that has seen all inputs. Before
            it, an item cannot be told apart from other items that share its first inputs.
        group: the inputs that `variable` is computed from.
        unrelated: a variable that `variable` does not depend on, whose subspace is the control:
            another digit in FDA; in THR the second relation, which comes after `position`.
        inputs: positions of the input tokens.
        probed: everything that is probed, as (variable, position).
        result: the variable that the answer token shows.
        result_group: the variables that `result` is computed from.
    """

    variable: str
    position: int
    read: int
    group: tuple[str, ...]
    unrelated: str
    inputs: tuple[int, ...]
    probed: tuple[tuple[str, int], ...]
    result: str
    result_group: tuple[str, ...]


TWO_HOPS = Reasoning(
    variable="bridge",
    position=1,
    read=2,
    group=("head", "first"),
    unrelated="second",
    inputs=(0, 1, 2),
    probed=(("bridge", 2), ("tail", 2)),
    result="tail",
    result_group=("bridge", "second"),
)


def reasoning(task: Task, target: int) -> Reasoning:
    """The reasoning behind answer token number `target` of a task."""
    if task.name == "THR":
        return TWO_HOPS
    digits = len(task.answer) - 1
    k = int(task.answer[target].removeprefix("digit"))
    # The position before an answer token predicts it.
    position = task.train.question.shape[1] - 1 + target

    # The sum has one digit more than its operands: its first digit is the carry out of theirs.
    place = min(k, digits - 1)
    group = (f"x{place}", f"y{place}")
    if place > 0:
        group = (*group, f"carry{place}")

    first_operand = range(digits)
    second_operand = range(digits + 1, 2 * digits + 1)
    return Reasoning(
        variable=f"digit{k}",
        position=position,
        read=position,
        group=group,
        unrelated=f"digit{(k + 1) % digits}",
        inputs=(*first_operand, *second_operand),
        probed=tuple((name, position) for name in (f"digit{k}", f"raw{place}", *group)),
        result=f"digit{k}",
        result_group=group,
    )


@dataclass(frozen=True, eq=False)
class Studied:
    """A set of items, all of which are read at the same answer token.

    Attributes:
        items: the items.
        target: number of the answer token that is read: the first at which the truth and the wrong
            label differ, so that no wrong token precedes it. Items without a wrong label are read
            at the same token.
    """

    items: Items
    target: int

    def __len__(self) -> int:
        return len(self.items)

    @property
    def batch(self) -> Batch:
        """The items up to the token that is read, which is the only target."""
        given = self.items.question.shape[1] + self.target
        return replace(self.items.batch().until(given + 1), prompt=given)

    @property
    def true(self) -> Int[np.ndarray, " items"]:
        """The true answer at the token that is read."""
        return self.items.truth[:, self.target]

    @property
    def label(self) -> Int[np.ndarray, " items"]:
        """The answer that training shows at the token that is read."""
        return self.items.label[:, self.target]

    def group(self, names: Iterable[str]) -> Int[np.ndarray, " items"]:
        """One number for each combination of the values of some variables."""
        # The values are digits of a number in base 100,000: no variable reaches that.
        number = np.zeros(len(self), dtype=np.int64)
        for name in names:
            number = 100_000 * number + self.items.variables[name]
        return number

    def rows(self, chosen: np.ndarray) -> Studied:
        """Some of the items, by index or mask."""
        return replace(self, items=self.items.rows(chosen))

    def some(self, at_most: int) -> Studied:
        """The first items, which are random ones: items are in random order."""
        return self.rows(np.arange(min(at_most, len(self))))


@dataclass(frozen=True, eq=False)
class Study:
    """A model and the items that it is studied on.

    Attributes:
        stage: which model it is: "end" of training, "generalized" (when it first passed the test),
            "untrained", "without noise" or "look-up".
        subject: the model.
        task: the task.
        reasoning: where the reasoning is looked for.
        clean: items trained with their right label.
        test: held-out items that the trained model answers correctly.
        memorized: noisy items that the trained model answers with their wrong label.
    """

    stage: str
    subject: interp.Subject
    task: Task
    reasoning: Reasoning
    clean: Studied
    test: Studied
    memorized: Studied

    @property
    def sets(self) -> Mapping[str, Studied]:
        """The two sets that are compared, under the names "memorized" and "test"."""
        return {"memorized": self.memorized, "test": self.test}

    def outside(self, name: str) -> Items:
        """The items of the task that are not in a set: those that a claim about the set must not
        hold for by construction."""
        held_out = self.task.tests["test"]
        return self.task.train if name == "test" else Items.join([self.task.clean, held_out])

    @property
    def blocks(self) -> int:
        """Number of blocks of the model."""
        return len(self.subject.anatomy.blocks())

    def of(self, stage: str, subject: interp.Subject) -> Study:
        """The same items on another model."""
        return replace(self, stage=stage, subject=subject)

    def table(self, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
        """Rows as a table with the columns `task` and `stage`."""
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
    """Chooses the items that a model is studied on.

    All items are read at one position: at the answer token on which truth and label first differ in
    most of the memorized items. The other memorized items are left out.

    Args:
        task: the task.
        subject: the trained model.
        stage: the name of the model, see `Study`.
        clean: largest number of clean items.
        at_most: largest number of test items and of memorized items.
        memorized: [noisy items] which ones count as memorized; by default those that the subject
            answers with their wrong label.

    Raises:
        ValueError: no item is memorized, or no test item is answered correctly.
    """
    noisy = task.noisy
    held_out = task.tests["test"]
    if memorized is None:
        memorized = exact(subject, noisy.batch())
    correct = exact(subject, held_out.batch())
    if not memorized.any() or not correct.any():
        raise ValueError(
            f"{task.name}: {memorized.sum()} of {len(noisy)} noisy items memorized, "
            f"{correct.sum()} of {len(held_out)} tests passed"
        )

    # Before this token, truth and label agree: what the model is given there is right under both.
    # Behind it, a wrong token would be in the context, and a variable that is read worse would not
    # be a variable that is computed worse.
    first_difference = (noisy.label != noisy.truth).argmax(1)
    target = int(np.bincount(first_difference[memorized]).argmax())
    read_at_target = memorized & (first_difference == target)
    return Study(
        stage=stage,
        subject=subject,
        task=task,
        reasoning=reasoning(task, target),
        clean=Studied(task.clean, target).some(clean),
        test=Studied(held_out.rows(correct), target).some(at_most),
        memorized=Studied(noisy.rows(read_at_target), target).some(at_most),
    )


def answers_of(subject: interp.Subject, batch: Batch, *plans: Plan) -> Int[np.ndarray, " items"]:
    """The most probable token at the position that is read, under plans if any are given."""
    # One forward pass over the whole batch: plans that hold a donor for each row need all rows.
    with evaluating(subject), subject.intervened(*plans):
        return subject.target_logits(batch)[:, 0].argmax(-1).cpu().numpy()


def outcomes(
    study: Study, plan: Callable[[str, Studied], Plan], **about: Any
) -> list[dict[str, Any]]:
    """What the model answers to each item of both sets under a plan.

    Args:
        study: model and items.
        plan: maps the name of a set and its items to the plan for them.
        about: further columns.

    Returns:
        One row per item: `set`, `item` (its number in the set), `kept` (whether the answer is the
        label, which is the truth for test items), `true` (whether it is the true answer).
    """
    rows: list[dict[str, Any]] = []
    for name, items in study.sets.items():
        answers = answers_of(study.subject, items.batch, plan(name, items))
        kept = answers == items.label
        true = answers == items.true
        for number in range(len(items)):
            row = {"set": name, "item": number, "kept": kept[number], "true": true[number]}
            rows.append({**about, **row})
    return rows
