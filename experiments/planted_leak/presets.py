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
    # Single precision: processors without instructions for bfloat16 are ten times slower in it.
    "small": Preset(
        seeds=3,
        recipe=Recipe(dtype="float32", precision="float32", fractions=(1e-4, 1e-3, 1e-2)),
    ),
    "paper": Preset(seeds=10, recipe=Recipe(dtype="float32")),
}
