"""What is checked: claims C1 to C8 of the paper, and the controls K.

What the paper claims was found in its abstract or in summaries by others; no number of it was. The thresholds are from pilots: they were
fixed before the seeds that are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.reason_to_rote.checks_of_memory import of_memory
from experiments.reason_to_rote.checks_of_reasoning import of_reasoning
from experiments.reason_to_rote.terms import Check


def checks(about: Mapping[str, Any]) -> list[Check]:
    """All checks of a run; `about` gives what depends on the preset: the read-out's variable and position, blocks, neurons and doses."""
    return [*of_reasoning(about), *of_memory(about)]
