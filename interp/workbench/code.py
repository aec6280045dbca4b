"""A plan as Python that makes it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from interp.sites.units import Units
    from interp.workbench.workspace import Workspace


def as_code(space: Workspace) -> str:
    """Returns Python that makes the plan of a workspace: see `Workspace.code`."""
    plan = space.plan
    if not plan:
        return "plan = []  # no unit is selected"
    treatment = space.state.treatment
    lines = ["import interp", ""]
    values = ""
    if treatment.kind == "scale":
        values = f", factor={treatment.factor!r}"
    elif treatment.needs_means:
        lines += _means(space)
        values = ", values=values"

    parts: list[str] = []
    for number, intervention in enumerate(plan):
        # A model of several stacks has one part for each.
        end = "" if len(plan) == 1 else f"_{number}"
        lines += [f"units{end} = subject.units({{", *_by_site(intervention.units), "})"]
        options = ""
        if intervention.positions is not None:
            positions = _tuple(intervention.positions)
            lines.append(f"positions{end} = {positions}  # where those tokens are predicted")
            options = f", positions=positions{end}"
        if intervention.when != "all":
            options += f', when="{intervention.when}"'
        parts.append(f"interp.{type(intervention).__name__}(units{end}{options}{values})")
    lines.append(f"plan = [{', '.join(parts)}]")
    lines.append("# with subject.intervened(plan): all that runs here runs under the plan")
    return "\n".join(lines)


def _means(space: Workspace) -> list[str]:
    """Lines that record what "mean" and "add" set units to."""
    treatment = space.state.treatment
    lines: list[str] = []
    if space.of_halves:
        lines.append("from interp.memorization.halves import halve")
        lines.append("memorized, control = halve(frame).judged")
    lines.append(f"sites = {[str(site) for site in space.units.sites]!r}")
    for name in treatment.needs_means:
        count = len(space.data[name])
        some = f"{name}.rows(slice(0, {count}))" if space.is_batch[name] else f"{name}[:{count}]"
        lines.append(f'{name}_means = interp.record(subject, {some}, sites, reduce="mean")')
    if treatment.kind == "mean":
        return [*lines, "values = control_means"]
    return [
        *lines,
        "values = {",
        f"    site: {treatment.factor!r} * (control_means[site] - memorized_means[site])",
        "    for site in control_means",
        "}",
    ]


def _by_site(units: Units) -> list[str]:
    return [f'    "{site}": {_indices(units[site])},' for site in units.sites]


def _indices(indices: np.ndarray) -> str:
    """Indices as a range where they are one, else as a list."""
    first = int(indices[0])
    last = int(indices[-1])
    is_range = last - first + 1 == len(indices) and len(indices) > 3
    return f"range({first}, {last + 1})" if is_range else repr(indices.tolist())


def _tuple(positions: tuple[int, ...]) -> str:
    first, last = positions[0], positions[-1]
    is_range = last - first + 1 == len(positions) and len(positions) > 3
    return f"tuple(range({first}, {last + 1}))" if is_range else repr(positions)
