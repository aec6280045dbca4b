"""Activation patching: every row of a batch is given the activations of a donor."""

from __future__ import annotations

from interp.interventions.kinds import Interchange
from interp.localization.unit_values import values_at
from interp.sites.anatomy import Sites
from interp.subject.batch import Batch
from interp.subject.subject import Subject


def donor_plan(
    subject: Subject, sites: Sites, donors: Batch, positions: tuple[int, ...] | None = None
) -> Interchange:
    """Returns the plan that gives row i of a batch the activations of row i of `donors`.

    Args:
        subject: the model.
        sites: where activations are replaced.
        donors: the donors, one for each row of the batch that the plan will be run on.
        positions: where in the sequence; everywhere by default.

    Example:
        >>> from interp.analysis.activation_patching import donor_plan
        >>> donors = interp.Batch.from_frame(control)
        >>> with subject.intervened(donor_plan(subject, "resid_post", donors)):
        ...     patched = subject.logits(batch)
        >>> torch.allclose(patched, subject.logits(donors))
        True
    """
    chosen = subject.anatomy.expand(sites)
    # [items, position, width] at each site.
    values = {
        site: value.double().cpu().numpy()
        for site, value in values_at(subject, donors, chosen).items()
    }
    return Interchange(subject.anatomy.units(chosen), positions, values=values)
