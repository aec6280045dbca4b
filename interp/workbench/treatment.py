"""What a workbench does to the selected units, as a choice that a menu can offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from interp.errors import closest
from interp.interventions.edit import When
from interp.interventions.kinds import Add, Intervention, Mean, Scale, Zero
from interp.localization.predicting_positions import predicting_positions, stack_of
from interp.sites.site import Site
from interp.sites.units import Units
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Kind = Literal["zero", "mean", "scale", "add"]
Where = Literal["all", "suffix", "chosen"]
Values = Mapping[Site, np.ndarray]


@dataclass(frozen=True)
class Treatment:
    """What is done to units, at which positions and when.

    Attributes:
        kind: "zero"; "mean", their mean over the control windows; "scale" by `factor`; or "add",
            `factor` times the difference between their mean over control and memorized windows.
        factor: of "scale" and "add".
        where: "all" positions; "suffix", those that predict the suffix or come after it; or
            "chosen", those that predict the tokens in `tokens`.
        tokens: numbers of tokens of a window, start tokens included.
        when: see `Intervention`.

    Raises:
        ValueError: a choice that there is none of, with the nearest one; or a factor that is not
            finite.

    Example:
        >>> from interp.workbench.treatment import Treatment
        >>> Treatment(kind="scale", factor=0.5).in_words
        'scale by 0.5'
        >>> Treatment(where="chosen", tokens=(9, 10), when="prompt").in_words
        'zero where tokens 9, 10 are predicted, in the prompt alone'
    """

    kind: Kind = "zero"
    factor: float = 0.5
    where: Where = "all"
    tokens: tuple[int, ...] = ()
    when: When = "all"

    def __post_init__(self) -> None:
        for name, choices in (("kind", Kind), ("where", Where), ("when", When)):
            value = getattr(self, name)
            known = get_args(choices)
            if value not in known:
                raise ValueError(
                    f"{name}={value!r}: expected one of {', '.join(known)}; "
                    f"nearest: {closest(str(value), known)}"
                )
        if not np.isfinite(self.factor):
            raise ValueError(f"factor={self.factor}: expected a finite number")

    @property
    def in_words(self) -> str:
        """The treatment as a reader would say it."""
        what = {
            "zero": "zero",
            "mean": "mean of the control",
            "scale": f"scale by {self.factor:g}",
            "add": f"add {self.factor:g} x (control - memorized)",
        }[self.kind]
        numbers = ", ".join(map(str, self.tokens)) or "(none chosen yet)"
        where = {
            "all": "",
            "suffix": " where the suffix is predicted",
            "chosen": f" where tokens {numbers} are predicted",
        }[self.where]
        when = {
            "all": "",
            "prompt": ", in the prompt alone",
            "decode": ", after the prompt alone",
        }[self.when]
        return what + where + when

    def intervention(
        self, units: Units, positions: tuple[int, ...] | None, values: Values | None
    ) -> Intervention:
        """Returns the treatment of some units.

        Args:
            units: the units.
            positions: absolute positions of the blocks; None for all.
            values: what "mean" sets them to or "add" adds, by site; None for the other kinds.
        """
        if self.kind == "scale":
            return Scale(units, positions, self.when, factor=self.factor)
        if self.kind == "zero":
            return Zero(units, positions, self.when)
        assert values is not None  # the workspace records them before
        at_units = {site: values[site] for site in units.sites}
        kind = Mean if self.kind == "mean" else Add
        return kind(units, positions, self.when, values=at_units)

    @property
    def needs_means(self) -> tuple[str, ...]:
        """Of which windows the mean activations are needed."""
        return {"mean": ("control",), "add": ("control", "memorized")}.get(self.kind, ())


def positions_of(
    subject: Subject, windows: Batch, treatment: Treatment, units: Units
) -> dict[tuple[int, ...] | None, Units]:
    """Returns the units by the positions at which they are treated.

    These may differ between the stacks of a model.

    Args:
        subject: the model.
        windows: the windows, of one prompt length.
        treatment: what is done.
        units: the units.

    Raises:
        ValueError: no token was chosen, or one outside the windows, or one that nothing predicts;
            or a stack predicts the tokens at no positions of their own, such as an encoder of
            images.

    Example:
        >>> from interp.workbench.treatment import Treatment, positions_of
        >>> units = subject.units("blocks.0.neurons", [3])
        >>> positions_of(subject, batch, Treatment(where="chosen", tokens=(8, 9)), units)
        {(7, 8): Units(1 of 48: blocks.0.neurons 1)}
    """
    if treatment.where == "all":
        return {None: units}
    if treatment.where == "chosen" and not treatment.tokens:
        raise ValueError("no token is chosen: choose tokens of the passage, or all positions")
    if treatment.where == "chosen" and not set(treatment.tokens) <= set(range(windows.length)):
        raise ValueError(f"tokens {treatment.tokens}: expected 0 to {windows.length - 1}")

    firsts = predicting_positions(subject, windows, units.sites)
    found: dict[tuple[int, ...] | None, Units] = {}
    for stack, first in firsts.items():
        of_stack = {site: units[site] for site in units.sites if stack_of(subject, site) == stack}
        if first is None:
            raise ValueError(
                f"the stack {stack!r} predicts each token at all its positions: "
                "choose all positions, or units of another stack"
            )
        if treatment.where == "suffix":
            tokens = tuple(range(windows.prompt, windows.length))
        else:
            tokens = treatment.tokens
        # The position that predicts the first token after the prompt is `first`.
        positions = tuple(sorted({first + token - windows.prompt for token in tokens}))
        if positions[0] < 0:
            raise ValueError("nothing predicts the first token: choose one after it")
        chosen = Units(of_stack, units.widths)
        found[positions] = found[positions] | chosen if positions in found else chosen
    return found
