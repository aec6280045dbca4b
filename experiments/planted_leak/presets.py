"""The presets: the number of fine-tuning seeds, and how each leak is made and measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from interp.cli.demo import Recipe


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        seeds: number of fine-tuning seeds.
        recipe: how each leak is made and measured.
    """

    seeds: int
    recipe: Recipe = field(default_factory=Recipe)


PRESETS = {
    "smoke": Preset(
        seeds=1, recipe=Recipe(records=4, copies=(8,), steps=2, others=8, fractions=(1e-3,))
    ),
    "small": Preset(seeds=3),
    "paper": Preset(seeds=10, recipe=Recipe(dtype="float32")),
}
