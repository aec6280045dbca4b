"""Plans: interventions in order, and their JSON."""

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
    kind.__name__: kind for kind in (Zero, Scale, Mean, Add, Patch, Interchange, Resample, Project)
}


def interventions(plan: Plan) -> tuple[Intervention, ...]:
    """A plan as a tuple: applied in this order where two meet at one site."""
    return (plan,) if isinstance(plan, Intervention) else tuple(plan)


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan as JSON."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps([i.to_json() for i in interventions(plan)]))


def load_plan(path: str | Path) -> tuple[Intervention, ...]:
    """Reads what `save_plan` wrote. Raises ValueError for an unknown kind."""
    return tuple(_decode_intervention(item) for item in json.loads(Path(path).read_text()))


def _decode_intervention(item: dict[str, Any]) -> Intervention:
    kind = str(item.get("kind"))
    if kind not in KINDS:
        raise ValueError(
            f"unknown intervention {kind!r}: expected one of {', '.join(KINDS)}; nearest: {closest(kind, KINDS)}"
        )
    known = {f.name: f.default is MISSING for f in fields(KINDS[kind])}
    wrong = sorted(
        (item.keys() - {"kind", *known})
        | {name for name, needed in known.items() if needed and name not in item}
    )
    if wrong:
        raise ValueError(f"{kind} takes {', '.join(known)}; missing or unknown: {', '.join(wrong)}")
    given: dict[str, Any] = {k: v for k, v in item.items() if k != "kind"} | {
        "units": Units.from_json(item["units"])
    }
    if item.get("positions") is not None:
        given["positions"] = tuple(item["positions"])
    for name in {"values", "center"} & {k for k, v in item.items() if v is not None}:
        given[name] = {Site.parse(s): np.asarray(v) for s, v in item[name].items()}
    return KINDS[kind](**given)
