"""The state of a workbench, without a screen: which units are selected, what is done to them, and
what that changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.recording import record
from interp.errors import closest
from interp.interventions.kinds import Intervention
from interp.localization.registry import localize, methods
from interp.memorization.halves import halve
from interp.mitigation.controls import as_active
from interp.reporting.looks import in_words
from interp.reporting.stats import Interval, clustered_interval
from interp.sites.site import Site
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batch
from interp.subject.subject import Subject
from interp.workbench import measurements
from interp.workbench.measurements import (
    Measurements,
    Measures,
    Piece,
    TokenValues,
    Windows,
    first_windows,
)
from interp.workbench.treatment import Treatment, positions_of

CONTROLS = ("random", "lowest", "as active")
# Work that measures nothing.
_SCORES: Piece = ("scores", 0)
_MODEL: Piece = ("model", 0)
_ACTIVITY = "activation"  # the localization method whose scores say how active a unit is

Where = Literal["before", "now"]
Picture = Float[Tensor, "channels height width"]


@dataclass(frozen=True)
class State:
    """What is selected, and what is done to it: what undo goes back to.

    Attributes:
        units: the selected units.
        point: the kind of unit that is shown.
        treatment: what is done to them.
        origin: how they were chosen, for the table of tries.
    """

    units: Units
    point: str
    treatment: Treatment = field(default_factory=Treatment)
    origin: str = "by hand"

    @property
    def is_complete(self) -> bool:
        """Whether it says what to do: tokens may not be chosen yet."""
        return self.treatment.where != "chosen" or bool(self.treatment.tokens)

    @cached_property
    def key(self) -> str:
        """What decides what is measured: equal for equal interventions, "" without any."""
        if not len(self.units):
            return ""
        treatment = self.treatment
        if treatment.kind in ("zero", "mean"):
            treatment = replace(treatment, factor=0.0)  # not used
        if treatment.where != "chosen":
            treatment = replace(treatment, tokens=())
        digest = hashlib.sha256(str(treatment).encode())
        for site in self.units.sites:
            digest.update(str(site).encode())
            digest.update(self.units[site].tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Change:
    """A measure of a set of windows before and under the intervention.

    Attributes:
        data: name of the set.
        measure: "exact", "accuracy" or "loss" (nats per token).
        before, now: means over the windows.
        change: the mean change, with its 95% interval over texts, `n` of them; with one text it
            has no width, which says nothing.
    """

    data: str
    measure: str
    before: float
    now: float
    change: Interval


@dataclass(frozen=True)
class Progress:
    """What is computed next.

    Attributes:
        next: the next piece in words; "" if all is done.
        done, total: pieces of this state that are computed, and all of them.
    """

    next: str
    done: int
    total: int


class Workspace:
    """What a workbench shows and does; it needs no browser, so that scripts and tests can drive it.

    Args:
        subject: the model.
        memorized: windows that it has memorized: rows of a scan, or a Batch. They are also the
            passages that can be looked at.
        control: windows that resemble them and are not memorized.
        held_out: other windows, to see what the ablation costs.
        scores: scores of units to begin with; by default the first method is asked for some.
        scored: (memorized, control) windows to score units on. By default those that are measured,
            and then an effect can be luck in the choice of units: see `of_scan`.
        reference: a model with the same tokenizer that was not trained on the passages; it adds
            membership scores to the tokens.
        windows: how many windows of each set are measured after every change, the first ones.
        pictures: what the tokens of whole images look like, [n, length] -> [n, channels, side,
            side] in [0, 1]; by default what the model itself says, if it generates images.
        film: returns pictures [time, channels, height, width] in [0, 1] of what the model does,
            such as an episode of a policy; it is run before and under the interventions.

    `notice` says what a user should know, such as that the model has changed and is measured anew;
    "" for nothing.

    Raises:
        ValueError: an empty set, windows of different prefixes, scores of another model, or
            something else than a Subject.

    Example:
        >>> from interp.workbench.workspace import Workspace
        >>> space = Workspace(subject, memorized, control[:6], control[6:])
        >>> space.use_method("gradient_x_activation")
        >>> space.finish()
        >>> space.take_top(20)
        >>> space.finish()
        >>> extraction = space.changes()[0]
        >>> extraction.measure, extraction.before, extraction.now < 1
        ('exact', 1.0, True)
        >>> space.units == space.scores.top(20)
        True
    """

    def __init__(
        self,
        subject: Subject,
        memorized: Windows,
        control: Windows,
        held_out: Windows | None = None,
        *,
        scores: UnitScores | None = None,
        scored: tuple[Windows, Windows] | None = None,
        reference: Subject | None = None,
        windows: int = 16,
        pictures: Callable[[Tensor], Tensor] | None = None,
        film: Callable[[], Tensor] | None = None,
    ) -> None:
        if not isinstance(subject, Subject):
            kind = type(subject).__name__
            raise ValueError(f"expected a Subject, got {kind}: make one with interp.load(...)")
        if windows < 1:
            raise ValueError(f"windows={windows}: expected at least 1")
        given = {"memorized": memorized, "control": control, "held_out": held_out}
        self.subject = subject
        self.data: dict[str, Batch] = {}
        self.is_batch = {name: isinstance(source, Batch) for name, source in given.items()}
        self._texts: dict[str, np.ndarray] = {}
        for name, source in given.items():
            if source is not None:
                self.data[name], self._texts[name] = first_windows(name, source, windows)
        prompts = {name: batch.prompt for name, batch in self.data.items()}
        if len(set(prompts.values())) != 1:
            raise ValueError(f"expected windows with prefixes of one length, got {prompts}")
        self.scored_apart = scored is not None
        self._scored = (memorized, control) if scored is None else scored
        # Models that implement Stepwise may say what their tokens look like.
        self._pictures = pictures or getattr(subject.stepwise, "decode", None)
        self._measurements = Measurements(subject, self.data, reference, film)
        self._fingerprint: str | None = None  # of the model that was measured
        self._is_same_model = False  # whether that was checked since the last change

        self.passage = 0
        point = _first_point(subject, scores)
        self.method = "gradient_x_activation" if scores is None else scores.method
        self._scores: dict[tuple[str, str], UnitScores] = {}
        self._wants_scores = False
        if scores is not None:
            for site, values in scores.values.items():
                if subject.anatomy.place(site).units != len(values):
                    raise ValueError(
                        f"the scores have {len(values)} units at {site}, and this model "
                        f"{subject.anatomy.place(site).units}: scores of another model"
                    )
            self._scores[self.method, point] = scores
        self._activity: dict[str, UnitScores] = {}
        self._means: dict[tuple[str, Site], np.ndarray] = {}
        self._plans: dict[str, tuple[Intervention, ...]] = {}  # of the last state alone
        self._decoded: dict[tuple[int, ...], Picture] = {}
        self._tries: dict[tuple[int, str], dict[str, Any]] = {}
        self._models = 1  # as many as were measured: somebody may train it meanwhile
        self.notice = ""
        self.of_halves = False  # whether the sets are those of `halve`
        self.state = State(Units({}, subject.anatomy.widths(point)), point)
        self._past: list[State] = []
        self._future: list[State] = []

    @classmethod
    def of_scan(cls, subject: Subject, frame: pd.DataFrame, **options: Any) -> Workspace:
        """Returns a workspace of a scan, whose units are scored on other windows than those that
        are measured: see `halve`.

        Args:
            subject: the model.
            frame: what `scan` returned.
            **options: see `Workspace`.

        Raises:
            ValueError: nothing was extracted, or too little text to hold any out.
        """
        halves = halve(frame)
        scored = halves.scored if halves.apart else None
        space = cls(subject, *halves.judged, halves.held_out, scored=scored, **options)
        space.of_halves = True
        return space

    # What is selected.

    @property
    def units(self) -> Units:
        """The selected units."""
        return self.state.units

    @property
    def plan(self) -> tuple[Intervention, ...]:
        """What is done to the model: a plan for `subject.intervened`; empty without units.

        Raises:
            ValueError: see `positions_of`.
        """
        return self._plan_of(self.state)

    def _plan_of(self, state: State) -> tuple[Intervention, ...]:
        if not len(state.units):
            return ()
        # To find the positions takes a backward pass, and every piece asks for the plan.
        if state.key not in self._plans:
            self._plans = {state.key: self._new_plan(state)}
        return self._plans[state.key]

    def _new_plan(self, state: State) -> tuple[Intervention, ...]:
        at_positions = positions_of(
            self.subject, self.data["memorized"], state.treatment, state.units
        )
        values = self._values(state)
        return tuple(
            state.treatment.intervention(units, positions, values)
            for positions, units in at_positions.items()
        )

    def _values(self, state: State) -> dict[Site, np.ndarray] | None:
        """What "mean" and "add" need: recorded once."""
        needed = state.treatment.needs_means
        if not needed:
            return None
        for name in needed:
            missing = [site for site in state.units.sites if (name, site) not in self._means]
            if missing:
                recorded = record(self.subject, self.data[name], missing, reduce="mean")
                for site in missing:
                    self._means[name, site] = recorded[site]
        values: dict[Site, np.ndarray] = {}
        for site in state.units.sites:
            control = self._means["control", site]
            if state.treatment.kind == "mean":
                values[site] = control
            else:
                values[site] = state.treatment.factor * (control - self._means["memorized", site])
        return values

    @property
    def point(self) -> str:
        """The kind of unit that is shown: "neurons", "heads" or "block_out"."""
        return self.state.point

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites whose units are shown."""
        return self.subject.anatomy.expand(self.point)

    @property
    def points(self) -> tuple[str, ...]:
        """The kinds of unit that this model has."""
        return _points(self.subject)

    @property
    def scores(self) -> UnitScores | None:
        """The scores that are shown; None before they are computed."""
        return self._scores.get((self.method, self.point))

    def _no_units(self) -> Units:
        return Units({}, self.subject.anatomy.widths(self.sites))

    def select(self, units: Units, origin: str = "by hand") -> None:
        """Selects units in the place of those that are selected.

        Raises:
            SiteError, ValueError: units that this model does not have.
        """
        widths = self.subject.anatomy.widths(self.sites)
        fitted = self.subject.anatomy.fit(units)
        # With the widths of all sites that are shown: a control for whole blocks is drawn from the
        # others.
        indices = {site: fitted[site] for site in fitted.sites}
        self._go(replace(self.state, units=Units(indices, widths | fitted.widths), origin=origin))

    def paint(self, units: Units, *, on: bool) -> None:
        """Adds units to the selection, or takes them away."""
        changed = self.units | units if on else self.units - units
        self.select(changed)

    def toggle(self, units: Units) -> None:
        """Adds units to the selection; takes them away where all of them are selected."""
        self.paint(units, on=len(units & self.units) < len(units))

    def clear(self) -> None:
        """Selects nothing."""
        self.select(self._no_units())

    def take_top(self, k: int) -> None:
        """Selects the k units with the highest scores.

        Raises:
            ValueError: there are no scores yet, or not so many units.
        """
        scores = self._known_scores()
        self._check_count(k)
        if k == 0:
            self.clear()
        else:
            self.select(scores.top(k), f"top {k:,} by {in_words(self.method)}")

    def take_control(self, name: str, seed: int = 0) -> None:
        """Selects a control of the selection, of the same size and with the same treatment.

        Args:
            name: "random", the same number of other units at each site; "lowest", the other units
                with the lowest scores; or "as active", other units of the same sites that are about
                as active on the memorized windows.
            seed: seed of the draw.

        Raises:
            ValueError: nothing is selected, an unknown control, too few other units, or no scores.
        """
        if name not in CONTROLS:
            raise ValueError(
                f"unknown control {name!r}: expected one of {', '.join(CONTROLS)}; "
                f"nearest: {closest(name, CONTROLS)}"
            )
        units = self.units
        if not len(units):
            raise ValueError("nothing is selected: select the units whose control is wanted")
        k = len(units)
        if name == "lowest":
            lowest = self._known_scores().lowest(k, other_than=units)
            self.select(lowest, f"lowest {k:,} by {in_words(self.method)}")
            return
        if name == "random":
            control = units.draw_matched(seed)
            if len(control) < k:
                raise ValueError(
                    f"there are {len(control):,} other units at the sites of these {k:,}: select "
                    "fewer to compare with as many random ones"
                )
        else:
            control = as_active(units, self._activity_of(units), seed)
        self.select(control, f"{len(control):,} {name}, seed {seed}")

    def _activity_of(self, units: Units) -> UnitScores:
        found: dict[Site, np.ndarray] = {}
        for point in {site.point for site in units.sites}:
            if point not in self._activity:
                self._activity[point] = localize(
                    self.subject, self._scored[0], None, _ACTIVITY, site=point
                )
            found |= self._activity[point].values
        return UnitScores(found, _ACTIVITY)

    def _known_scores(self) -> UnitScores:
        if self.scores is None:
            raise ValueError(f"the units are not scored by {in_words(self.method)} yet")
        return self.scores

    def _check_count(self, k: int) -> None:
        total = sum(self.subject.anatomy.widths(self.sites).values())
        if not isinstance(k, Integral) or not 0 <= k <= total:
            raise ValueError(f"{k} units: expected a whole number, 0 to {total}")

    def treat(self, **changes: Any) -> None:
        """Changes what is done to the units: see `Treatment`.

        Raises:
            ValueError: see `Treatment` and `positions_of`; nothing is changed then.
        """
        unknown = changes.keys() - Treatment.__dataclass_fields__.keys()
        if unknown:
            raise ValueError(
                f"unknown {', '.join(sorted(unknown))}: "
                f"expected {', '.join(Treatment.__dataclass_fields__)}"
            )
        state = replace(self.state, treatment=replace(self.state.treatment, **changes))
        if state.is_complete:
            self._plan_of(state)  # refuses what cannot be done
        self._go(state)

    def undo(self) -> None:
        """Goes back to what was selected before the last change; nothing at the first state."""
        if self._past:
            self._future.append(self.state)
            self.state = self._past.pop()
            self._is_same_model = False

    def redo(self) -> None:
        """Takes an undo back."""
        if self._future:
            self._past.append(self.state)
            self.state = self._future.pop()
            self._is_same_model = False

    @property
    def can_undo(self) -> bool:
        """Whether there is a state to go back to."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether there is an undo to take back."""
        return bool(self._future)

    def _go(self, state: State) -> None:
        self._is_same_model = False
        here = self.state
        if (state.key, state.point, state.treatment) == (here.key, here.point, here.treatment):
            self.state = state  # the same under another name is no change
            return
        self._past.append(self.state)
        self._future.clear()
        self.state = state

    # What is shown.

    def show(self, passage: int) -> None:
        """Shows another passage.

        Raises:
            ValueError: there is no such passage.
        """
        count = len(self.data["memorized"])
        if not 0 <= passage < count:
            raise ValueError(f"passage {passage}: expected 0 to {count - 1}")
        self.passage = passage
        self._is_same_model = False

    def use_method(self, method: str, point: str | None = None) -> None:
        """Shows the scores of another localization method, or of other units, which `measure_next`
        computes.

        The selection stays as it is, unless other units are shown.

        Args:
            method: name of a localization method.
            point: "neurons", "heads" or "block_out"; as it was by default.

        Raises:
            ValueError: an unknown method, or units that this model does not have.
        """
        if method not in self.methods:
            raise ValueError(
                f"method={method!r}: expected one of {', '.join(self.methods)}; "
                f"nearest: {closest(method, self.methods)}"
            )
        point = self.point if point is None else point
        if point not in self.points:
            raise ValueError(
                f"units {point!r}: this model has {', '.join(self.points)}; "
                f"nearest: {closest(point, self.points)}"
            )
        self.method = method
        self._wants_scores = True
        self._is_same_model = False
        if point != self.point:
            none = Units({}, self.subject.anatomy.widths(point))
            self._go(replace(self.state, units=none, point=point, origin="by hand"))

    @property
    def methods(self) -> tuple[str, ...]:
        """The localization methods that can be chosen: the registered ones, and that of the scores
        that were given."""
        given = [method for method, _ in self._scores]
        return tuple(dict.fromkeys([*given, *methods()]))

    # What is computed.

    @property
    def progress(self) -> Progress:
        """What `measure_next` would do next, and how much is left."""
        work = self._work()
        needed = self._needed()
        left = len(self._missing(needed))
        following = ""
        if work:
            (name, _), _ = work[0]
            following = {
                _SCORES[0]: f"scoring units by {in_words(self.method)}",
                _MODEL[0]: "whether the model is still the same",
            }.get(name) or measurements.in_words(work[0][0])
        return Progress(following, len(needed) - left, len(needed))

    @property
    def _must_score(self) -> bool:
        return self._wants_scores and self.scores is None

    def _states(self) -> list[State]:
        """The unchanged model, and what is done to it."""
        # Without units its key is empty, which stands for the unchanged model.
        before = State(self._no_units(), self.point)
        changes_anything = len(self.units) > 0 and self.state.is_complete
        return [before, self.state] if changes_anything else [before]

    def _needed(self) -> list[tuple[Piece, State]]:
        """All that is measured of what is shown, the most wanted first."""
        before, *under = self._states()
        needed: list[tuple[Piece, State]] = []
        for piece in self._measurements.pieces(self.passage):
            needed.append((piece, before))
            # Membership is asked of the unchanged model alone.
            if piece[0] != "membership":
                needed += [(piece, state) for state in under]
        return needed

    def _missing(self, needed: list[tuple[Piece, State]]) -> list[tuple[Piece, State]]:
        return [
            (piece, state)
            for piece, state in needed
            if not self._measurements.has(state.key, piece)
        ]

    def _work(self) -> list[tuple[Piece, State]]:
        """What is left to do, the most wanted first."""
        work = self._missing(self._needed())
        # To hash the weights takes as long as a passage: the first answer does not wait for it.
        if not self._is_same_model:
            of_passage = sum(name == "tokens" for (name, _), _ in work)
            work.insert(of_passage, (_MODEL, self.state))
        if self._must_score:
            work.insert(0, (_SCORES, self.state))
        return work

    def measure_next(self) -> bool:
        """Does the next piece of work.

        Returns:
            Whether more is left.

        Raises:
            ValueError: see `plan` and `localize`; a method that cannot score these units is given
                up, so that the next call goes on.
        """
        work = self._work()
        if not work:
            return False
        piece, state = work[0]
        if piece == _SCORES:
            # Before the attempt: a method that fails is not tried again at the next piece.
            self._wants_scores = False
            self._scores[self.method, self.point] = localize(
                self.subject, *self._scored, self.method, site=self.point
            )
        elif piece == _MODEL:
            self._check_model()
        else:
            self._measurements.measure(state.key, piece, self._plan_of(state))
            self._measurements.forget_old({"", self.state.key})
            self._note_try()
        return bool(self._work())

    def _check_model(self) -> None:
        """Drops what was measured on another model: somebody trained or edited it meanwhile."""
        now = self.subject.fingerprint
        before, self._fingerprint = self._fingerprint, now
        self._is_same_model = True
        if before is None:
            self._note_foreign_scores(now)
        if before in (None, now):
            return
        self._measurements.forget_all()
        for kept in (self._activity, self._means, self._plans, self._scores):
            kept.clear()
        self._wants_scores = True
        self._models += 1
        self.notice = (
            "The model was trained, edited or hooked meanwhile: it is scored and measured anew. "
            f"Tries from here on are of model {self._models}."
        )

    def _note_foreign_scores(self, fingerprint: str) -> None:
        """Says so where the scores that were given are of another model than this one."""
        for scores in self._scores.values():
            if scores.about.get("model", fingerprint) != fingerprint:
                self.notice = (
                    f"The scores by {in_words(scores.method)} were made on another model, or on "
                    "this one before it was trained, edited or hooked."
                )

    def finish(self) -> None:
        """Computes all that is shown: for scripts, where nothing has to be answered between."""
        while self.progress.next:
            self.measure_next()

    def _get(self, where: Where, piece: Piece) -> Any:
        """A piece, or None where it is not computed yet."""
        return self._measurements.get(self._key(where), piece)

    def _key(self, where: Where) -> str:
        return self.state.key if where == "now" else ""

    def tokens(self, where: Where = "now") -> TokenValues | None:
        """Returns the values of the shown passage's tokens; None before they are computed."""
        return self._get(where, ("tokens", self.passage))

    def continuation(self, where: Where = "now") -> list[int] | None:
        """Returns what the model generates after the passage's prefix, greedily, as token ids; None
        before it is computed."""
        return self._get(where, ("continuation", self.passage))

    def film(self, where: Where = "now") -> Tensor | None:
        """Returns the pictures of what the model does; None before they are computed, or without
        `film`."""
        return self._get(where, ("film", 0))

    def pictures(self) -> dict[str, Picture]:
        """Returns what the passage's tokens look like: the original, and what is generated before
        and now, as far as it is computed; empty for a model without pictures."""
        if not self.has_pictures:
            return {}
        window = self._measurements.passage(self.passage)
        prefix = window.tokens[0, : window.prompt].tolist()
        rows = {"original": window.tokens[0].tolist()}
        wheres: tuple[Where, ...] = ("before", "now")
        for where in wheres:
            continued = self.continuation(where)
            if continued is not None and (where == "before" or len(self.units)):
                rows[f"generated {where}"] = prefix + continued
        return {name: self._picture(tuple(ids)) for name, ids in rows.items()}

    @property
    def has_pictures(self) -> bool:
        """Whether tokens look like something."""
        return self._pictures is not None

    def _picture(self, ids: tuple[int, ...]) -> Picture:
        # A page asks after every answer.
        if ids not in self._decoded:
            assert self._pictures is not None
            with torch.no_grad():
                self._decoded[ids] = self._pictures(torch.tensor([ids]))[0]
        return self._decoded[ids]

    def membership(self) -> np.ndarray | None:
        """Returns the token-level membership score (InfoRMIA, in nats) of each of the passage's
        tokens under the unchanged model; None before it is computed, or without a reference
        model."""
        return self._get("before", ("membership", self.passage))

    def measured(self, where: Where = "now") -> Measures:
        """Returns the measures of every window of the sets that are complete: {set: {measure:
        [windows]}}."""
        return self._measurements.windows(self._key(where))

    def changes(self) -> list[Change]:
        """Returns extraction and accuracy of the memorized windows and the loss of all sets, before
        and now, as far as they are computed."""
        before = self.measured("before")
        now = self.measured("now")
        rows: list[Change] = []
        for name in self.data:
            if name not in before or name not in now:
                continue
            shown = ("exact", "accuracy", "loss") if name == "memorized" else ("loss",)
            for measure in shown:
                old = before[name][measure]
                new = now[name][measure]
                change = clustered_interval(new - old, self._texts[name])
                rows.append(Change(name, measure, float(old.mean()), float(new.mean()), change))
        return rows

    def tries(self) -> pd.DataFrame:
        """Returns one row per selection that was measured to the end, in the order in which they
        were."""
        return pd.DataFrame(list(self._tries.values()))

    def _note_try(self) -> None:
        key = (self._models, self.state.key)
        if key in self._tries or not len(self.units):
            return
        changes = self.changes()
        if {change.data for change in changes} != set(self.data):
            return
        row: dict[str, Any] = {
            "selection": self.state.origin,
            "units": len(self.units),
            "treatment": self.state.treatment.in_words,
            "model": self._models,
        }
        for change in changes:
            row[f"{change.data} {change.measure}"] = change.now
        self._tries[key] = row

    def code(self) -> str:
        """Returns Python that makes the plan again, with the names `subject`, `memorized` and
        `control` as they were given to the workbench, or `subject` and `frame` for `of_scan`.

        Example:
            >>> from interp.workbench.workspace import Workspace
            >>> space = Workspace(subject, memorized, control)
            >>> space.select(subject.units("blocks.1.neurons", [0, 3, 5]))
            >>> print(space.code())
            import interp
            <BLANKLINE>
            units = subject.units({
                "blocks.1.neurons": [0, 3, 5],
            })
            plan = [interp.Zero(units)]
            # with subject.intervened(plan): all that runs here runs under the plan
        """
        from interp.workbench.code import as_code

        return as_code(self)


def _first_point(subject: Subject, scores: UnitScores | None) -> str:
    known = _points(subject)
    if scores is None:
        return known[0]
    points = {site.point for site in scores.values}
    # Any of them: where there are several, they are refused below.
    point = min(points)
    if (
        len(points) > 1
        or point not in known
        or set(scores.values) != set(subject.anatomy.expand(point))
    ):
        raise ValueError(
            f"scores of {len(scores.values)} sites, of {', '.join(sorted(points))}: expected those "
            f"of one kind of unit, {' or '.join(known)}, in every block"
        )
    return point


def _points(subject: Subject) -> tuple[str, ...]:
    present = {site.point for site in subject.sites}
    found = tuple(point for point in ("neurons", "heads", "block_out") if point in present)
    if not found:
        raise ValueError(f"{subject.name} has neither neurons nor heads nor blocks to switch off")
    return found
