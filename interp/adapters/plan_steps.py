"""A plan as plain data, in the order in which a model computes the values that it changes: what can
be run on a server that does not have our classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import HookError
from interp.hooks.hooks import lower_plans
from interp.interventions.edit import Edit
from interp.interventions.plan import Plan
from interp.sites.anatomy import Anatomy
from interp.sites.site import BLOCK_POINTS, Site
from interp.subject.batch import Batch

Change = tuple[Tensor | None, Tensor, float, Tensor | None, Tensor | None]
PlanStep = tuple[str, str, str, int, list[Change]]
Time = tuple[float, ...]
TimedStep = tuple[Time, Site | None, PlanStep]


def align(following: Float[Tensor, "batch position vocabulary"]) -> Tensor:
    """Aligned logits, which predict the token at their own position, from a peer's logits, which
    predict the token that follows. Position 0 is all zeros: nothing precedes it."""
    nothing = torch.zeros_like(following[:, :1])
    without_last = following[:, :-1]
    return torch.cat([nothing, without_last], dim=1)


def plan_steps(anatomy: Anatomy, plan: Plan, batch: Batch) -> list[PlanStep]:
    """Returns a plan as steps, in the order of execution.

    A step is (module path, "in" or "out", path of another value or "", the sign with which that
    value is added, changes). A step without changes is there because a later one needs its value.

    A change is (positions, columns, multiply, add, basis):

    - positions: [position, 1], or None for all;
    - columns: [1, columns];
    - multiply: a factor;
    - add: [1 or position, columns], or [batch, position, columns] if each row has its own, or None;
    - basis: [rank, columns] of a subspace that is removed, or None.

    Args:
        anatomy: anatomy of the model that the plan will run on.
        plan: the plan.
        batch: the batch that it will run on.

    Raises:
        HookError: none of the positions of an edit is in the batch, a site is made of more than
            two tensors of the model, or the plan adds to a weight.
    """
    steps, _ = reading_steps(anatomy, plan, batch, ())
    return steps


def reading_steps(
    anatomy: Anatomy, plan: Plan | None, batch: Batch, sites: Iterable[Site]
) -> tuple[list[PlanStep], dict[Site, int]]:
    """Returns the steps of a plan with those that read some sites, as the plan leaves them.

    Args:
        anatomy, plan, batch: see `plan_steps`; None for no plan.
        sites: the sites that are read.

    Returns:
        The steps, and for each of the sites which of them computes its value.

    Raises:
        HookError: see `plan_steps`.
    """
    by_site: dict[Site, list[Change]] = {}
    for edit in [] if plan is None else lower_plans(anatomy, plan):
        site = anatomy.resolve(edit.site)
        changes = by_site.setdefault(site, [])
        changes.append(_change(edit, batch))

    timed: list[TimedStep] = []
    for site, changes in by_site.items():
        timed += [(time, None, step) for time, _, step in _timed_steps(anatomy, site, changes)]

    # One module may hold several sites: what attention adds, and the sum of that with the residual.
    # A site is read when all edits of its module are done, as a hook would that was set after them.
    last_edit: dict[tuple[str, str], Time] = {}
    for time, _, (path, side, _, _, changes) in timed:
        if changes:
            last_edit[path, side] = max(time, last_edit.get((path, side), time))
    for site in sites:
        for time, of_site, step in _timed_steps(anatomy, site, []):
            path, side, *_ = step
            last = max(time, last_edit.get((path, side), time))
            *slot, own = last
            # Behind every edit of the module, whose own places in the order are numbers of points.
            at = time if of_site is None else (*slot, own + len(BLOCK_POINTS))
            timed.append((at, of_site, step))

    timed.sort(key=_time)
    numbers = {site: number for number, (_, site, _) in enumerate(timed) if site is not None}
    return [step for _, _, step in timed], numbers


def _time(timed: TimedStep) -> Time:
    return timed[0]


def _timed_steps(anatomy: Anatomy, site: Site, changes: list[Change]) -> Iterator[TimedStep]:
    """The steps at a site, each with a tuple that sorts like the time of its execution: the number
    of the stack, of the block, and of the point in the block; and with the site, if it computes its
    value."""
    place = anatomy.place(site)
    if not place.is_plain:
        raise HookError(
            f"{site} is {place}: a peer runs plans on one tensor, or on one plus or minus another; "
            "run this plan by hooks (subject.intervened)"
        )
    stack = list(anatomy.stacks).index(site.stack)
    if site.block is None:
        before_or_after_blocks = -1.0 if site.point == "embed" else float("inf")
        time = (stack, before_or_after_blocks, 0.0, 0.0)
        yield time, site, (place.path, place.side, "", 1, changes)
        return

    # The sum of the residual and of what attention or another mixer adds has no module of its own:
    # it is edited where its second term leaves, and after that term.
    point = "mixer_out" if place.onto else site.point
    own = float(BLOCK_POINTS.index(site.point))
    time = (stack, site.block, float(BLOCK_POINTS.index(point)), own)
    if place.base is None:
        yield time, site, (place.path, place.side, "", 1, changes)
        return

    # The other term is read after the edits at its own place (point 0, what enters the block) and
    # before anything that follows.
    other, sign = place.base
    after_point_0 = (stack, site.block, 0.5, 0.0)
    yield after_point_0, None, (other.path, other.side, "", 1, [])
    yield time, site, (place.path, place.side, other.path, sign, changes)


def _change(edit: Edit, batch: Batch) -> Change:
    if edit.weight is not None:
        raise HookError(
            f"{edit.site}: this plan adds to a weight, and a peer changes activations alone; "
            "run it by hooks (subject.intervened)"
        )
    positions = edit.active(0, batch.length, batch.prompt or batch.length)
    if not len(positions):
        raise HookError(
            f"{edit.site}: positions={edit.positions} with when={edit.when!r} "
            f"selects none of the {batch.length} tokens"
        )
    # One change for all positions says so by None, which is right for a value of any length: some
    # modules, such as a vision encoder, do not see one position per token.
    one_row = (1,)
    adds_the_same = edit.add is None or edit.add.shape[:-1] == one_row
    everywhere = len(positions) == batch.length and adds_the_same
    columns = edit.columns[None, :]
    if everywhere:
        return None, columns, edit.multiply, edit.add, edit.basis
    add = None
    if edit.add is not None:
        add = edit.addend(len(batch), positions)
    return positions[:, None], columns, edit.multiply, add, edit.basis
