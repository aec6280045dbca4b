"""A plan as plain data in the order in which a model meets it: what can be run where our classes do
not exist."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from interp.errors import HookError
from interp.hooks.hooks import lowered
from interp.interventions.edit import Edit
from interp.interventions.plan import Plan
from interp.sites.anatomy import Anatomy
from interp.sites.site import BLOCK_POINTS, Site
from interp.subject.batch import Batch

Change = tuple[Tensor | None, Tensor, float, Tensor | None, Tensor | None]
Step = tuple[str, str, str, int, list[Change]]


def steps(anatomy: Anatomy, plan: Plan, batch: Batch) -> list[Step]:
    """A plan as steps (module path, "in" or "out", path of another value or "", the sign with which
    it enters, changes), by execution.

    A change is (positions [position, 1] or None, columns [1, columns], multiply, add [1 or
    position, columns] or, of each row its own, [batch, position, columns], basis [rank, columns]);
    None means all. A step without changes is there because a later one needs its value. Raises
    HookError for an edit none of whose positions lies in the batch.
    """
    by_site: dict[Site, list[Change]] = {}
    for edit in lowered(anatomy, plan):
        by_site.setdefault(anatomy.resolve(edit.site), []).append(_change(edit, batch))
    timed = [step for site, changes in by_site.items() for step in _timed(anatomy, site, changes)]
    return [step for _, step in sorted(timed, key=lambda timed: timed[0])]


def _timed(
    anatomy: Anatomy, site: Site, changes: list[Change]
) -> Iterator[tuple[tuple[float, ...], Step]]:
    place, stack = anatomy.place(site), list(anatomy.stacks).index(site.stack)
    if site.block is None:
        yield (
            (stack, -1.0 if site.point == "embed" else float("inf"), 0.0),
            (place.path, place.side, "", 1, changes),
        )
        return
    point = (
        "attn_out" if place.onto else site.point
    )  # the sum is edited where its second term leaves
    when = (stack, site.block, float(BLOCK_POINTS.index(point)))
    if place.base is None:
        yield when, (place.path, place.side, "", 1, changes)
        return
    other, sign = place.base
    yield (
        (stack, site.block, 0.5),
        (other.path, other.side, "", 1, []),
    )  # after the edits at that place
    yield when, (place.path, place.side, other.path, sign, changes)


def _change(edit: Edit, batch: Batch) -> Change:
    positions = edit.active(0, batch.length, batch.prompt or batch.length)
    if not len(positions):
        raise HookError(
            f"{edit.site}: none of positions {edit.positions}, when={edit.when!r}, lies in {batch.length} tokens"
        )
    everywhere = len(positions) == batch.length and (
        edit.add is None or edit.add.shape[:-1] == (1,)
    )
    add = edit.add if edit.add is None or everywhere else edit.added(len(batch), positions)
    return (
        None if everywhere else positions[:, None],
        edit.columns[None, :],
        edit.multiply,
        add,
        edit.basis,
    )
