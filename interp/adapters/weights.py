"""Runs a plan by its weights: rows of out-projections are zeroed or scaled, and matrices added, for
as long as a `with` block lasts.

No hook runs. That is the point of it: it works under torch.compile, and with kernels that never
call the projection as a module.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from interp.errors import SiteError
from interp.hooks.hooks import Hooked, lower_plans
from interp.interventions.edit import Edit
from interp.interventions.kinds import Intervention
from interp.interventions.plan import Plan, interventions
from interp.sites.anatomy import Anatomy, Place, as_rows, axes_are_known
from interp.sites.sharding import is_sharded_at
from interp.sites.site import Site

_USE_HOOKS = "run it with subject.intervened(plan)"


@contextmanager
def applied(subject: Hooked, *plans: Plan) -> Generator[None]:
    """Multiplies the out-projection rows of the plans' units, or adds matrices to weights, and puts
    exactly the same bits back on exit, however the block ends.

    It equals `subject.intervened(*plans)` up to rounding, as long as activations are finite. Blocks
    can be nested; the factors of two plans for one unit are multiplied. What a plan adds to a
    weight is multiplied by the other plans of its block and of inner blocks, and not by those of
    outer blocks.

    Args:
        subject: the model.
        plans: plans that zero or scale neurons or heads, or that are `AddWeights`.

    Raises:
        ValueError: before anything is written, for what weights cannot express: values that are
            added, subspaces, positions, `when`, sites other than `neurons` and `heads`; and weights
            that are shared, quantized, computed, offloaded or sharded over processes, or whose
            output is mapped on before it is added to the residual stream.

    Example:
        >>> from interp.adapters import weights
        >>> plan = interp.Zero(subject.units("blocks.0.neurons", [3, 5]))
        >>> with weights.applied(subject, plan):
        ...     edited = subject.logits(batch)
        >>> with subject.intervened(plan):
        ...     torch.allclose(subject.logits(batch), edited, atol=1e-5)
        True
    """
    # All edits are checked first: nothing is written if one of them cannot be.
    edits: list[Edit] = []
    for plan in plans:
        for intervention in interventions(plan):
            edits += _expressible(subject, intervention)
    # What is added comes first: a unit that is zeroed reaches no part of the new weight.
    edits.sort(key=lambda edit: edit.weight is None)
    targets = [(_rows(subject, edit), edit) for edit in edits]

    # Saved bits are put back, and not divided out, which would round. In reverse order: a row that
    # two edits change gets back what it was before the first.
    saved: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        for rows, edit in targets:
            columns = edit.columns.to(rows.device)
            before = rows[columns].clone()
            saved.append((rows, columns, before))
            rows[columns] = _changed(edit, before)
        yield
    finally:
        for rows, columns, before in reversed(saved):
            rows[columns] = before


def _expressible(subject: Hooked, intervention: Intervention) -> list[Edit]:
    """The edits of an intervention. Raises ValueError for one that is neither a plain factor at an
    out-projection nor added to a weight."""
    edits = lower_plans(subject.anatomy, intervention)
    for edit in edits:
        reason = _inexpressible(edit, subject.anatomy)
        if reason:
            raise ValueError(
                f"{type(intervention).__name__} at {edit.site} cannot be written into weights: "
                f"{reason}; {_USE_HOOKS}"
            )
    return edits


def _inexpressible(edit: Edit, anatomy: Anatomy) -> str | None:
    if edit.basis is not None:
        return "it removes a subspace, which mixes units, and weights only scale them one by one"
    if edit.add is not None:
        return (
            "it adds values to activations, and weights only multiply them "
            "(Zero and Scale can be written)"
        )
    if edit.positions is not None:
        return f"it is limited to positions {edit.positions}, and weights act at every position"
    if edit.when != "all":
        return f"it is limited to when={edit.when!r}, and weights act always"
    if edit.weight is None and not _is_projection_input(edit.site, anatomy.place(edit.site)):
        return "it is not the input of an out-projection, as neurons and heads are"
    return None


def _is_projection_input(site: Site, place: Place) -> bool:
    # resid_pre is an input as well, but of a whole block. What a raw path names is seen when its
    # weight is looked up.
    is_unit_site = site.point in ("neurons", "heads") or site.is_module_path
    return is_unit_site and place.side == "in" and place.base is None


def _changed(edit: Edit, rows: Tensor) -> Tensor:
    """What an edit makes of rows of a weight."""
    if edit.weight is not None:
        # In the higher of both precisions: a small change must not be rounded before it is added.
        precise = torch.promote_types(rows.dtype, edit.weight.dtype)
        added = rows.to(precise) + edit.weight.to(rows.device, precise)
        return added.to(rows.dtype)
    # Zeroing is not a product, which would keep infinities.
    return rows * edit.multiply if edit.multiply else torch.zeros_like(rows)


def _rows(subject: Hooked, edit: Edit) -> Tensor:
    """The weight that reads a site, [columns, d_model], or that an edit adds to, [columns, inputs];
    detached from autograd. Raises ValueError for a weight whose change would do more or less than
    the plan."""
    place = subject.anatomy.place(edit.site)
    projection = subject.module.get_submodule(place.path)
    own = dict(projection.named_parameters(recurse=False)).get("weight")
    reason = _unwritable(subject.module, own)
    if is_sharded_at(subject.module, place.path):
        reason = "is sharded over processes"
    if own is None or reason:
        raise ValueError(
            f"{edit.site}: the weight of {place.path} {reason}, "
            f"so it cannot be edited; {_USE_HOOKS}"
        )
    if edit.weight is not None:
        if not axes_are_known(projection):
            raise ValueError(
                f"{edit.site}: which axis of the square weight of a {type(projection).__name__} "
                f"is its inputs cannot be told; {_USE_HOOKS}"
            )
        return as_rows(projection, own).T.detach()
    try:
        return subject.anatomy.out_weight(subject.module, edit.site).detach()
    except SiteError as error:
        raise ValueError(f"{error}; {_USE_HOOKS}") from error


def _unwritable(module: nn.Module, weight: Tensor | None) -> str | None:
    if weight is None:
        return "is computed (a parametrization or an adapter wraps it), or there is none"
    if weight.is_meta:
        return "is offloaded"
    if weight.ndim != 2:
        return f"is not a matrix (its shape is {tuple(weight.shape)})"
    if not weight.is_floating_point():
        return f"is quantized ({weight.dtype})"
    # With its duplicates: a shared weight is listed once for each module that has it.
    named = module.named_parameters(remove_duplicate=False)
    owners = [name for name, parameter in named if parameter is weight]
    if len(owners) < 2:
        return None
    return f"is shared by {' and '.join(owners)}"
