"""Plans: one or more interventions in order, and their JSON files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import closest
from interp.files import replaced
from interp.interventions.kinds import (
    Add,
    AddWeights,
    Interchange,
    Intervention,
    Mean,
    Patch,
    Project,
    Resample,
    Scale,
    Zero,
)
from interp.sites.site import Site
from interp.sites.units import Units

Plan = Intervention | Sequence[Intervention]


KINDS: dict[str, type[Intervention]] = {
    kind.__name__: kind
    for kind in (Zero, Scale, Mean, Add, AddWeights, Patch, Interchange, Resample, Project)
}


def interventions(plan: Plan) -> tuple[Intervention, ...]:
    """Returns a plan as a tuple, in the order in which its interventions are applied.

    Args:
        plan: an intervention, or a sequence of interventions.
    """
    return (plan,) if isinstance(plan, Intervention) else tuple(plan)


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan to a JSON file.

    Args:
        plan: an intervention, or a sequence of interventions.
        path: the file to write; missing folders are made.

    Raises:
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> neurons = subject.anatomy.units("neurons")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     interp.save_plan(interp.Scale(neurons, factor=0.5), f"{folder}/plan.json")
        ...     [loaded] = interp.load_plan(f"{folder}/plan.json")
        >>> loaded.factor, loaded.units == neurons
        (0.5, True)
    """
    items = [intervention.to_json() for intervention in interventions(plan)]
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(items))


def load_plan(path: str | Path) -> tuple[Intervention, ...]:
    """Reads a plan that `save_plan` wrote.

    Args:
        path: the file to read.

    Returns:
        The interventions, in the order in which they are applied.

    Raises:
        OSError: the file cannot be read.
        ValueError: an unknown kind of intervention, or missing or unknown fields.

    Example:
        >>> import tempfile
        >>> neurons = subject.anatomy.units("neurons")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     interp.save_plan(interp.Zero(neurons, when="decode"), f"{folder}/plan.json")
        ...     plan = interp.load_plan(f"{folder}/plan.json")
        >>> type(plan[0]).__name__, plan[0].when
        ('Zero', 'decode')
    """
    items = json.loads(Path(path).read_text())
    return tuple(_decode_intervention(item) for item in items)


def _decode_intervention(item: dict[str, Any]) -> Intervention:
    kind_name = str(item.get("kind"))
    if kind_name not in KINDS:
        raise ValueError(
            f"unknown intervention {kind_name!r}: expected one of {', '.join(KINDS)}; "
            f"nearest: {closest(kind_name, KINDS)}"
        )
    kind = KINDS[kind_name]
    _check_fields(kind, item)

    given = {key: value for key, value in item.items() if key != "kind"}
    given["units"] = Units.from_json(item["units"])
    if item.get("positions") is not None:
        given["positions"] = tuple(item["positions"])
    # JSON has neither tuples, sites nor arrays: these fields are turned back into them.
    for key in ("values", "center"):
        by_name = item.get(key)
        if by_name is not None:
            arrays: dict[Site, np.ndarray] = {}
            for name, rows in by_name.items():
                arrays[Site.parse(name)] = np.asarray(rows)
            given[key] = arrays
    return kind(**given)


def _check_fields(kind: type[Intervention], item: dict[str, Any]) -> None:
    # The fields of the dataclass are the only list of what a kind takes: a new kind is read and
    # checked without a line here.
    known = fields(kind)
    names = [field.name for field in known]
    unknown = item.keys() - {"kind", *names}
    needed = [field.name for field in known if field.default is MISSING]
    missing = [name for name in needed if name not in item]
    wrong = sorted({*unknown, *missing})
    if wrong:
        raise ValueError(
            f"{kind.__name__} takes {', '.join(names)}; missing or unknown: {', '.join(wrong)}"
        )
