"""What is run on one seed: each training, removal from a standard model after it, and the search
for sinks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments.mem_sinks.corpus import Data, draw
from experiments.mem_sinks.presets import SINKS, Preset, Run
from experiments.mem_sinks.study import Trained, curves, measure, train
from interp.experiment.jobs import Job, job
from interp.interventions.kinds import Zero
from interp.interventions.plan import Plan
from interp.localization.benchmarks.known_answers import Choice
from interp.localization.benchmarks.sinks import sink_recall
from interp.localization.registry import localize, methods
from interp.memorization.evaluation import measure_under
from interp.mitigation.sinks import content_ids
from interp.progress import track
from interp.sites.units import UnitScores
from interp.subject.batch import Batch
from interp.subject.subject import Subject

TABLES = ("losses", "curves", "post_hoc", "recall")
Tables = dict[str, pd.DataFrame]

NOTHING = "nothing"
RANDOM = "random"
FOR_CANARIES = "integrated_gradients"  # finds neurons for canaries too
_MEASURED_ONCE = 64  # sequences that were presented once
_HELD_OUT = 128  # held-out sequences under each removal
# These score nothing without windows to compare with.
_COMPARES = ("unitmem", "z_score", "neuron_flipping")


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per training. Those whose models are searched do that too."""
    # The longest first: two of them that ended last would leave a core without work.
    for run in sorted(preset.runs, key=lambda run: -_cost(preset, run)):
        yield job(one_run, preset, run, seed)


def _cost(preset: Preset, run: Run) -> int:
    is_searched = run.name in (preset.post_hoc.run, SINKS)
    return run.neurons + 10_000 * is_searched


def one_run(preset: Preset, run: Run, seed: int) -> Tables:
    """Trains the model of a run and measures it."""
    data = draw(preset.corpus, seed)
    is_drawn = run.name in preset.drawn
    trained = train(preset, run, data, seed, curves=is_drawn)
    tables = {"losses": measure(trained, data, _MEASURED_ONCE)}
    if is_drawn:
        tables["curves"] = curves(trained)
    if run.name == preset.post_hoc.run:
        tables["post_hoc"] = post_hoc(preset, trained.subject, data, seed)
    if run.name == SINKS:
        tables["recall"] = recall(preset, trained, data, seed)
    return tables


def post_hoc(preset: Preset, subject: Subject, data: Data, seed: int) -> pd.DataFrame:
    """Removal by neurons that methods find for all repeated code together, or for all canaries, and
    by random ones.

    Returns:
        One row per `method`, `found_for`, `fraction`, `draw`, `data` and `window`: the measures of
        `window_measures`; the method "nothing" is the model as it is.
    """
    settings = preset.post_hoc
    repeated = {"repeated": Batch(data.repeated), "canaries": Batch(data.canaries)}
    searches = [("repeated", name) for name in settings.methods]
    searches.append(("canaries", FOR_CANARIES))
    found: list[tuple[dict[str, Any], UnitScores]] = []
    for kind, name in track(searches, "methods"):
        options = settings.options.get(name, {})
        scores = localize(subject, repeated[kind], None, name, "neurons", **options)
        found.append(({"method": name, "found_for": kind, "draw": 0}, scores))
    for number in range(settings.draws):
        windows = repeated["repeated"]
        scores = localize(subject, windows, None, RANDOM, "neurons", seed=seed + number)
        found.append(({"method": RANDOM, "found_for": "repeated", "draw": number}, scores))

    # Plan 0 changes nothing: the point at fraction 0 of every curve. Both lists have one order.
    about: list[dict[str, Any]] = [{"method": NOTHING, "found_for": "", "draw": 0, "fraction": 0.0}]
    plans: list[Plan] = [[]]
    for description, scores in found:
        for fraction in settings.fractions:
            about.append({**description, "fraction": fraction})
            plans.append(Zero(scores.top(fraction)))
    sets = {
        **repeated,
        "unseen canaries": Batch(data.unseen),
        "held out": Batch(data.held_out[:_HELD_OUT]),
    }
    measured = measure_under(subject, plans, sets, batch_size=64)
    return measured.merge(pd.DataFrame(about).assign(plan=range(len(plans))), on="plan")


def recall(preset: Preset, trained: Trained, data: Data, seed: int) -> pd.DataFrame:
    """Which methods find the sinks of repeated code."""
    windows = Batch(data.repeated[: preset.searched])
    ids = content_ids(windows).tolist()
    choices = {
        name: Choice(name, preset.search_options.get(name, {}), name in _COMPARES)
        for name in methods()
        if name not in preset.not_searched
    }
    sinks = trained.sinks
    assert sinks is not None
    return sink_recall(
        trained.subject,
        sinks.scaled(),
        sinks.pool,
        [sinks.units([number]) for number in ids],
        windows,
        choices,
        Batch(data.held_out[: preset.searched]),
        seed=seed,
    )
