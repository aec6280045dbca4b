"""The terms that checks are written in: models, sets of items, and what the paper says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.reason_to_rote.measures import Measure, decoded, mean

END = {"stage": "end"}
FDA, THR = END | {"task": "FDA"}, END | {"task": "THR"}
LOOKUP = {"task": "FDA", "stage": "look-up"}
NOISE_FREE = {"task": "FDA", "stage": "without noise"}
MEM, TEST = {"set": "memorized"}, {"set": "test"}


PHASES = "generalize first, memorize later (summaries by others)"
BENIGN = "memorizing often leaves generalizable reasoning intact (abstract)"
COMPUTED = "intermediate results are still computed when the memorized label is said (abstract)"
LATE = "the noisy label is written in late layers (summaries by others)"
HARMS = "intervening on reasoning hurts memorization (abstract)"
CIRCUITS = "generalization and memorization circuits overlap strongly (summaries by others)"
SPREAD = "memory aggregates several inputs and intermediate results, not a look-up (abstract)"
SHIFTED = "existing neuron activation patterns are shifted slightly, to the right, to fit the noise (abstract; the first author's thread)"


def erasure(removed: str, of: Mapping[str, Any], items: Mapping[str, Any] = MEM) -> Measure:
    """What is still said after a removal behind the first block."""
    return mean("erasure", "kept", removed=removed, block=0, **of, **items)


def donor(donors: str, of: Mapping[str, Any], items: Mapping[str, Any] = MEM) -> dict[str, Any]:
    """Rows of items patched behind the first block at the intermediate result."""
    return {"place": "intermediate", "donor": donors, "block": 0, **of, **items}


def probe(
    variable: str,
    depth: float,
    reading: str = "true",
    *,
    position: int,
    of: Mapping[str, Any],
    column: str = "accuracy",
    **where: Any,
) -> Measure:
    """What a probe reads of memorized items, or of the set that is named; `apart` for inputs that
    it was not trained on."""
    rows = {
        **MEM,
        "apart": False,
        "variable": variable,
        "depth": depth,
        "reading": reading,
        "position": position,
    }
    return decoded(column, **{**rows, **of, **where})


def dose(selection: str, k: int, block: int) -> dict[str, Any]:
    """Rows of memorized items with neurons of a block reset."""
    return {"selection": selection, "k": k, "block": block, **FDA, **MEM}
