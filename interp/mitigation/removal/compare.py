"""removal_report: whether something was removed from a model, what that cost, and whether it comes
back.

Relearning is always compared with the same training on never-seen data; the removal itself with
another removal where one is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from interp.interventions.kinds import Intervention
from interp.interventions.plan import Plan, interventions
from interp.memorization.membership.roc import roc
from interp.memorization.recitation import NGRAMS, levels, recitation
from interp.mitigation.removal.file_measures import (
    Values,
    completions_parse,
    context,
    recite_files,
)
from interp.mitigation.removal.report import SHARES, RemovalReport
from interp.mitigation.removal.stress import (
    Relearning,
    halves_without_common_secrets,
    relearn,
    round_weights,
    rows_of,
    shuffle_secrets,
)
from interp.progress import track
from interp.reporting.stats import Interval, bootstrap, paired_interval, unpaired_interval
from interp.subject.batch import Batch
from interp.subject.subject import Subject

_RELEARNING = Relearning()


class _Key(NamedTuple):
    """What a row of the report is about; `at` is a number of steps or of bits, else 0."""

    group: str
    data: str
    measure: str
    at: int = 0


_Measured = dict[_Key, Values | Interval]


@dataclass(frozen=True, eq=False)
class _Edited:
    """A model, and the plan under which it is studied."""

    subject: Subject
    plan: tuple[Intervention, ...] = ()


@dataclass(frozen=True, eq=False)
class _NeverSeen:
    """What relearning is compared with.

    Attributes:
        name: what it is.
        batch: the sequences.
        paired: whether each row has the same surroundings as that row of the forget set.
    """

    name: str
    batch: Batch
    paired: bool


@dataclass(frozen=True, eq=False)
class _Sets:
    """What the models are measured on; None for a set that was not given."""

    forget: Batch
    never_seen: _NeverSeen
    twins: Batch | None
    retain: Batch | None
    memorized: Batch | None
    others: Batch | None
    held_out: Batch | None


def removal_report(
    before: Subject,
    after: Subject | Plan,
    forget: Batch,
    *,
    control: Subject | Plan | None = None,
    twins: Batch | None = None,
    retain: Batch | None = None,
    memorized: Batch | None = None,
    others: Batch | None = None,
    held_out: Batch | None = None,
    unseen: Batch | None = None,
    thresholds: Mapping[str, float] | None = None,
    ngrams: Sequence[int] = NGRAMS,
    relearning: Relearning | None = _RELEARNING,
    bits: Sequence[int] = (8, 4),
    depths: Mapping[str, Interval] | None = None,
    tolerance: float = 0.05,
    batch_size: int = 16,
) -> RemovalReport:
    """Compares a model before and after something was removed from it.

    No model is changed: what is fine-tuned or rounded is a copy. A set that is not given is not
    measured, and its rows are absent.

    Args:
        before: the model that has memorized the forget set.
        after: the model after the removal, of the same shape; or a plan of interventions on
            `before`.
        forget: what was to be removed, one file per row; its `scored` marks secrets. Without
            `scored`, all tokens were to be removed.
        control: the same removal of something else, as a model or a plan: training on random
            units, or ablation of them. Better: one that does as much damage.
        twins: for each file of `forget`, the same file with secrets that no model has seen.
        retain: data that the removal was told to keep.
        memorized: other memorized data.
        others: files with other secrets, which were not to be removed.
        held_out: text that no model has seen, to measure perplexity on.
        unseen: data like the forget set that no model has seen: the levels of all of it under
            `before` are the thresholds. By default those of the twins are. Without twins,
            relearning may be compared with its first rows: see `relearning`.
        thresholds: the level of `ma`, and of any `el_<n>` of `ngrams`, at which the forget set
            counts as forgotten, if it is chosen beforehand.
        ngrams: the numbers n of EL_n; none for a model that predicts several tokens together.
        relearning: how copies are fine-tuned to bring the forget set back; None to leave that out,
            because with many steps it takes most of the time: each of `after` and `control` is
            trained twice.
            The control is the same training on never-seen data. That is the twins, if they are
            given. Else it is the first rows of `unseen`, as many as `forget` has, if both mark
            secrets (`scored`) or neither does. Else it is the forget set with its secrets shuffled,
            which are harder to learn than secrets with a form.
        bits: to how many bits weights are rounded.
        depths: the depth of the removal, from 0 to 1, by the name of the model: "after" and
            "control", such as the score of an unlearning depth.
        tolerance: how much a share may fall, and perplexity rise as a fraction, without counting
            as damage; and how much more of the forget set than of never-seen data may be recited
            after relearning.
        batch_size: batch size.

    Returns:
        A RemovalReport: `.frame`, `.table()`, `.verdict`, `.plot()`, `.save(folder)`.

    Raises:
        ValueError: a model of another shape, an empty plan, another number of twins than of files,
            a file of `forget` that is also in another set, no thresholds and no data for them, a
            threshold that is no fraction or of what is not measured, or a depth of another model.

    Example:
        >>> forget, retain, unseen = batch.rows(slice(0, 6)), batch.rows(slice(6, 12)), control[:6]
        >>> report = interp.removal_report(
        ...     subject,
        ...     interp.Zero(subject.units("blocks.1.heads")),
        ...     forget,
        ...     retain=retain,
        ...     unseen=interp.Batch.from_frame(unseen),
        ...     ngrams=(3,),
        ...     relearning=None,
        ...     bits=(4,),
        ... )
        >>> report.table().columns.tolist()
        ['before', 'after']
        >>> report.verdict
        'The removal ...'
    """
    never_seen = _never_seen(forget, twins, unseen)
    sets = _Sets(forget, never_seen, twins, retain, memorized, others, held_out)
    _check_sets(sets, unseen)
    models = {"before": _Edited(before), "after": _edited(before, after, "after")}
    if control is not None:
        models["control"] = _edited(before, control, "control")
    unknown = sorted((depths or {}).keys() - models.keys())
    if unknown:
        raise ValueError(f"depths of {unknown}: expected depths of {list(models)}")

    limits, source = _thresholds(before, sets, unseen, thresholds, ngrams, batch_size)

    measured: dict[str, _Measured] = {}
    for name, model in track(list(models.items()), "comparing"):
        found = _measure(model, sets, ngrams, batch_size)
        found |= _measure_rounded(model, forget, bits, batch_size)
        if relearning is not None and name != "before":
            found |= _relearned(model, sets, relearning, batch_size)
        if depths is not None and name in depths:
            found[_Key("depth", "forget", "depth")] = depths[name]
        measured[name] = found
    if control is not None:
        measured["after"] |= _against_control(measured)

    about: dict[str, Any] = {
        "model": before.name,
        "files": len(forget),
        "relearning lr": None if relearning is None else relearning.lr,
        "relearning compared with": sets.never_seen.name,
    }
    return RemovalReport(_tabulate(measured), limits, source, tolerance, about)


def _edited(before: Subject, given: Subject | Plan, name: str) -> _Edited:
    if not isinstance(given, Subject):
        plan = interventions(given)
        if not plan:
            raise ValueError(f"the plan of {name} is empty: expected at least one intervention")
        return _Edited(before, plan)
    shapes = [
        {name: tuple(value.shape) for name, value in subject.module.state_dict().items()}
        for subject in (before, given)
    ]
    # Pairs of name and shape that only one of the two has; as a dict, one entry per name.
    different = sorted(dict(shapes[0].items() ^ shapes[1].items()))
    if different:
        raise ValueError(
            f"{name} is a model of another shape than before: {len(different)} weights differ, the "
            f"first is {different[0]}; expected the same model after a removal, or a plan"
        )
    if given.tokenizer is None and before.tokenizer is not None:
        # A copy made of the module alone has none, and completed code is read as text.
        given = before.with_module(given.module)
    return _Edited(given)


def _check_sets(sets: _Sets, unseen: Batch | None) -> None:
    if sets.twins is not None and len(sets.twins) != len(sets.forget):
        raise ValueError(
            f"{len(sets.twins)} twins of {len(sets.forget)} files: expected for each file of "
            "forget, in their order, the same with secrets that no model has seen; pass other "
            "unseen data as unseen="
        )
    forgotten = {tuple(sequence) for sequence in sets.forget.sequences()}
    never_seen = "expected data that no model has seen"
    spared = "expected data that was not to be removed, or forgetting it would count as damage"
    given = (
        ("twins", sets.twins, never_seen),
        ("unseen", unseen, never_seen),
        ("held_out", sets.held_out, never_seen),
        ("retain", sets.retain, spared),
        ("memorized", sets.memorized, spared),
        ("others", sets.others, spared),
    )
    for name, batch, expected in given:
        if batch is None:
            continue
        for number, sequence in enumerate(batch.sequences()):
            if tuple(sequence) in forgotten:
                raise ValueError(
                    f"row {number} of {name} is also in forget: {expected}; leave it out"
                )


def _never_seen(forget: Batch, twins: Batch | None, unseen: Batch | None) -> _NeverSeen:
    if twins is not None:
        return _NeverSeen("never-seen twins", twins, paired=True)
    # With secrets marked in one of the two only, secrets would be compared with whole files.
    is_like = unseen is not None and (unseen.scored is None) == (forget.scored is None)
    if unseen is not None and is_like:
        # No more of them than are to be relearned: each step trains on all.
        same_number = unseen.rows(slice(0, len(forget)))
        return _NeverSeen("unseen data", same_number, paired=False)
    return _NeverSeen("the secrets shuffled", shuffle_secrets(forget), paired=True)


def _thresholds(
    before: Subject,
    sets: _Sets,
    unseen: Batch | None,
    given: Mapping[str, float] | None,
    ngrams: Sequence[int],
    batch_size: int,
) -> tuple[dict[str, float], str]:
    """The thresholds, and what they come from."""
    # An empty mapping is no choice of thresholds: they are then measured.
    if given:
        known = ["ma", *(f"el_{n}" for n in ngrams)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(
                f"a threshold of {unknown[0]!r}: expected one of what is measured: "
                f"{', '.join(known)}"
            )
        for name, most in given.items():
            if not 0 <= most <= 1:
                raise ValueError(f"the threshold of {name} is {most}: expected 0 to 1")
        return dict(given), "given"
    source = sets.twins if unseen is None else unseen
    if source is None:
        raise ValueError(
            "no thresholds: expected thresholds={'ma': ...}, or data that no model has seen to "
            "take them from, as unseen= or twins="
        )
    found = levels(recitation(before, source, ngrams, batch_size=batch_size))
    return found, "never-seen twins" if unseen is None else "unseen data"


def _measure(model: _Edited, sets: _Sets, ngrams: Sequence[int], batch_size: int) -> _Measured:
    """Forgetting, damage and membership of one model."""
    found: _Measured = {}
    subject = model.subject
    with subject.intervened(model.plan):
        own = recite_files(subject, sets.forget, ngrams, batch_size=batch_size)
        for name in ("ma", *(f"el_{n}" for n in ngrams), "exact", "discoverable"):
            found[_Key("forgetting", "forget", name)] = _column(own, name)
        if sets.twins is not None:
            of_twins = recite_files(subject, sets.twins, batch_size=batch_size)
            for name in ("ma", "exact"):
                found[_Key("forgetting", "twins", name)] = _column(of_twins, name)
            # Higher for members; the files of the forget set come first.
            scores = np.concatenate([-own["loss"], -of_twins["loss"]])
            is_member = np.arange(len(scores)) < len(own)
            auc = roc(scores, is_member).auc
            found[_Key("membership", "forget and twins", "auc")] = auc

        for data, measure, batch in _damaged_sets(sets):
            frame = recite_files(subject, batch, batch_size=batch_size)
            column = "loss" if measure == "perplexity" else measure
            found[_Key("damage", data, measure)] = _column(frame, column)
        if subject.tokenizer is not None and sets.forget.scored is not None:
            parsed = completions_parse(subject, sets.forget)
            # Where no file is Python that can be parsed, the row is absent.
            if len(parsed):
                found[_Key("damage", "completions", "parsed")] = parsed
    return found


def _damaged_sets(sets: _Sets) -> Iterator[tuple[str, str, Batch]]:
    """The sets that a removal should leave as they were, with what is measured of them."""
    given = (
        ("context", "accuracy", context(sets.forget)),
        ("retain", "ma", sets.retain),
        ("memorized", "ma", sets.memorized),
        ("others", "ma", sets.others),
        ("held_out", "perplexity", sets.held_out),
    )
    for data, measure, batch in given:
        if batch is not None:
            yield data, measure, batch


def _measure_rounded(
    model: _Edited, forget: Batch, bits: Sequence[int], batch_size: int
) -> _Measured:
    found: _Measured = {}
    for number in bits:
        rounded = round_weights(model.subject, number)
        with rounded.intervened(model.plan):
            frame = recite_files(rounded, forget, batch_size=batch_size)
        for name in ("ma", "exact"):
            found[_Key("rounding", "forget", name, number)] = _column(frame, name)
    return found


def _relearned(model: _Edited, sets: _Sets, recipe: Relearning, batch_size: int) -> _Measured:
    """What is recited after fine-tuning on every second file: of these files, and of the others
    that share no secret with them; with the same training on never-seen secrets as control."""

    def relearned(batch: Batch) -> dict[int, Values]:
        def measure(learner: Subject) -> Values:
            return _column(recite_files(learner, batch, batch_size=batch_size), "ma")

        trained, _ = halves_without_common_secrets(batch)
        return relearn(model.subject, rows_of(batch, trained), measure, recipe, model.plan)

    control = sets.never_seen
    of_forget = relearned(sets.forget)
    of_control = relearned(control.batch)
    found: _Measured = {}
    rows_of_forget = halves_without_common_secrets(sets.forget)
    # Pairs are compared file by file: both sides take the rows that the forget set leaves.
    if control.paired:
        rows_of_control = rows_of_forget
    else:
        rows_of_control = halves_without_common_secrets(control.batch)
    for number, part in enumerate(("trained on", "not trained on")):
        own_rows = rows_of_forget[number]
        control_rows = rows_of_control[number]
        for steps in sorted(of_forget):
            if not own_rows or not control_rows:
                continue
            own = of_forget[steps][own_rows]
            other = of_control[steps][control_rows]
            found[_Key("relearning", f"forget, {part}", "ma", steps)] = own
            found[_Key("relearning", f"never seen, {part}", "ma", steps)] = other
            advantage = _difference(own, other, paired=control.paired)
            found[_Key("relearning", f"forget minus never seen, {part}", "ma", steps)] = advantage
    return found


def _difference(own: Values, other: Values, *, paired: bool) -> Interval:
    if paired:
        return paired_interval(own, other)
    return unpaired_interval(own, other)


def _against_control(measured: Mapping[str, _Measured]) -> _Measured:
    key = _Key("forgetting", "forget", "ma")
    own = measured["after"][key]
    other = measured["control"][key]
    difference = paired_interval(np.asarray(own), np.asarray(other))
    return {_Key("forgetting", "after minus control", "ma"): difference}


def _tabulate(measured: Mapping[str, _Measured]) -> pd.DataFrame:
    """One row per key and model, group by group."""
    # A dict, as a set that keeps the order in which the rows were measured.
    keys: dict[_Key, None] = {}
    for found in measured.values():
        keys |= dict.fromkeys(found)
    groups = list(dict.fromkeys(key.group for key in keys))
    rows: list[dict[str, Any]] = []
    # `after minus control` is measured last and belongs to the first group. Within a group the
    # sort keeps the order.
    for key in sorted(keys, key=lambda key: groups.index(key.group)):
        before = measured["before"].get(key)
        for name, found in measured.items():
            if key not in found:
                continue
            level = _level(key.measure, found[key])
            change = None if name == "before" else _change(key.measure, found[key], before)
            rows.append(
                {
                    **key._asdict(),
                    "model": name,
                    "estimate": level.estimate,
                    "low": level.low,
                    "high": level.high,
                    "change": np.nan if change is None else change.estimate,
                    "change_low": np.nan if change is None else change.low,
                    "change_high": np.nan if change is None else change.high,
                    "files": level.n,
                }
            )
    return pd.DataFrame(rows)


def _level(measure: str, values: Values | Interval) -> Interval:
    if isinstance(values, Interval):
        return values
    mean = bootstrap(values)
    if measure == "perplexity":
        # e to the mean loss over files, and not the mean of their perplexities.
        with np.errstate(over="ignore"):  # above 709 nats it is infinite, which counts as damage
            low, estimate, high = np.exp([mean.low, mean.estimate, mean.high])
        return Interval(float(estimate), float(low), float(high), mean.n)
    if measure in SHARES and mean.estimate in (0, 1):
        return _of_agreeing_files(mean)
    return mean


def _of_agreeing_files(mean: Interval) -> Interval:
    """The interval where all files are at 0, or all at 1. A bootstrap has no width there, however
    few they are; this is that of Clopper and Pearson."""
    from scipy.stats import binomtest

    count = round(mean.estimate * mean.n)
    found = binomtest(count, mean.n).proportion_ci(0.95, "exact")
    return Interval(mean.estimate, float(found.low), float(found.high), mean.n)


def _change(
    measure: str, values: Values | Interval, before: Values | Interval | None
) -> Interval | None:
    """How much a measure changed, file by file; None where that is not known."""
    if before is None or isinstance(values, Interval) or isinstance(before, Interval):
        return None
    change = paired_interval(values, before)
    if measure != "perplexity":
        return change
    # Losses are paired, not perplexities: a rise of the loss by d multiplies perplexity by e^d.
    level = float(np.exp(before.mean()))
    with np.errstate(over="ignore"):
        rise = level * np.expm1([change.estimate, change.low, change.high])
    return Interval(*rise.tolist(), n=change.n)


def _column(frame: pd.DataFrame, name: str) -> Values:
    return frame[name].to_numpy(dtype=float)
