"""Activation patching: each row gets a donor's activations."""

from __future__ import annotations

from interp.interventions.kinds import Interchange
from interp.localization.unit_values import values_at
from interp.sites.anatomy import Sites
from interp.subject.batch import Batch
from interp.subject.subject import Subject


def donated(
    subject: Subject, sites: Sites, donors: Batch, positions: tuple[int, ...] | None = None
) -> Interchange:
    """The plan that gives each row, at some sites and positions (all by default), what is there in
    the donors' row of the same number."""
    chosen = subject.anatomy.expand(sites)
    values = {
        site: value.double().cpu().numpy()
        for site, value in values_at(subject, donors, chosen).items()
    }
    return Interchange(subject.anatomy.units(chosen), positions, values=values)
