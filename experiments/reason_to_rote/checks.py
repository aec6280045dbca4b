"""What is checked: the claims C1 to C8 of the paper, and the controls K1 to K5.

The claims were found in the paper's abstract or in summaries by others; no number of the paper was
found. The thresholds are from pilots, and were fixed before the seeds that are reported were run.
"""

from __future__ import annotations

from experiments.reason_to_rote.checks_of_memory import of_memory
from experiments.reason_to_rote.checks_of_reasoning import of_reasoning
from experiments.reason_to_rote.presets import Preset
from experiments.reason_to_rote.study import reasoning
from experiments.reason_to_rote.tasks import task
from interp.experiment.checks import Check


def checks(preset: Preset) -> list[Check]:
    """All checks of a preset."""
    model = preset.FDA.model
    # The first digit of the answer is the one that is read on every seed.
    read = reasoning(task(preset.FDA.data, seed=0), target=0)
    return [
        *of_reasoning(digit=read.variable, position=read.position, blocks=model.blocks),
        *of_memory(
            digit=read.variable,
            position=read.position,
            blocks=model.blocks,
            neurons=4 * model.width,
        ),
    ]
