"""What is checked: the claims C1 to C8 of the paper, and the controls K1 to K7.

The claims were found in the paper's abstract or in summaries by others; no number of the paper was
found. The thresholds are from pilots, and were fixed before the seeds that are reported were run.
Both tasks are judged by the same thresholds.
"""

from __future__ import annotations

from experiments.reason_to_rote.case import Case
from experiments.reason_to_rote.checks_of_memory import of_memory
from experiments.reason_to_rote.checks_of_reasoning import of_reasoning
from experiments.reason_to_rote.presets import Preset
from experiments.reason_to_rote.study import TWO_HOPS, reasoning
from experiments.reason_to_rote.tasks import task
from interp.experiment.checks import Check


def checks(preset: Preset) -> list[Check]:
    """All checks of a preset."""
    # The first digit of the answer is the one that is read on every seed.
    of_sum = reasoning(task(preset.FDA.data, seed=0), target=0)
    addition = preset.FDA.model
    relations = preset.THR.model
    cases = [
        Case(
            name="FDA",
            reasoning=of_sum,
            blocks=addition.blocks,
            neurons=4 * addition.width,
            circuit_items=preset.circuit_items,
        ),
        Case(
            name="THR",
            reasoning=TWO_HOPS,
            blocks=relations.blocks,
            neurons=4 * relations.width,
            circuit_items=preset.circuit_items,
        ),
    ]
    return [*of_reasoning(*cases), *of_memory(*cases)]
