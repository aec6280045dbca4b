"""A plan as Python that makes it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp.workbench.treatment import positions_of

if TYPE_CHECKING:
    from interp.sites.units import Units
    from interp.workbench.workspace import Workspace

_KINDS = {"zero": "Zero", "scale": "Scale", "mean": "Mean", "add": "Add"}


def as_code(space: Workspace) -> str:
    """Returns Python that makes the plan of a workspace: see `Workspace.code`."""
    if not len(space.units):
        return "plan = []  # no unit is selected"
    treatment = space.state.treatment
    lines = ["import interp", ""]
    given = {"zero": "", "scale": f", factor={treatment.factor!r}"}.get(treatment.kind)
    if given is None:
        sites = [str(site) for site in space.units.sites]
        count = {name: len(space.data[name]) for name in treatment.needs_means}
        lines.append(f"sites = {sites!r}")
        lines += [
            f'{name}_means = interp.record(subject, {name}[:{count[name]}], sites, reduce="mean")'
            for name in treatment.needs_means
        ]
        if treatment.kind == "mean":
            lines.append("values = control_means")
        else:
            lines += [
                "values = {",
                f"    site: {treatment.factor!r} * (control_means[site] - memorized_means[site])",
                "    for site in control_means",
                "}",
            ]
        given = ", values=values"

    parts: list[str] = []
    at_positions = positions_of(space.subject, space.data["memorized"], treatment, space.units)
    for number, (positions, units) in enumerate(at_positions.items()):
        name = "units" if len(at_positions) == 1 else f"units_{number}"
        lines += [f"{name} = subject.units({{", *_by_site(units), "})"]
        options = ""
        if positions is not None:
            lines.append(f"positions = {_tuple(positions)}  # where those tokens are predicted")
            options = ", positions=positions"
        if treatment.when != "all":
            options += f', when="{treatment.when}"'
        parts.append(f"interp.{_KINDS[treatment.kind]}({name}{options}{given})")
    lines.append(f"plan = [{', '.join(parts)}]")
    lines.append("# with subject.intervened(plan): all that runs here runs under the plan")
    return "\n".join(lines)


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
