"""The study of sinks end to end on models of a moment, and laws of what its claims are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import figure_laws
import numpy as np
import pandas as pd
import pytest
import torch

from experiments.mem_sinks import EXPERIMENT
from experiments.mem_sinks.corpus import draw
from experiments.mem_sinks.measures import (
    HELD_OUT,
    REPEATED,
    gap_closure,
    held_out_at_equal_memory,
    isolation,
)
from experiments.mem_sinks.presets import (
    LARGE_POOL,
    PRESETS,
    RESERVED,
    SINKS,
    STANDARD,
    UNTIED,
    WIDE,
    Run,
)
from experiments.mem_sinks.study import DROPPED, OWN, PLAIN, modes, sequence_measures, train
from interp.subject.batch import Batch
from interp.training.unit_parameters import unit_parameters

SMOKE = PRESETS["smoke"]
SEED = 7


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out: Path = tmp_path_factory.mktemp("mem_sinks")
    return EXPERIMENT.run(SMOKE, SEED, out, jobs=1, device="cpu")


def test_every_claim_has_its_controls_and_every_figure_can_be_read(results: Any):
    assert len({claim.id for claim in results.claims}) == len(results.claims)
    assert all(claim.control for claim in results.claims)
    # So little training may memorize less than what removal is compared at.
    unmeasured = [claim.id for claim in results.claims if claim.measured is None]
    assert all(name.startswith("A4") for name in unmeasured)
    for figure in results.figures.values():
        figure_laws.check(figure)


def test_repetitions_are_presented_as_often_as_they_should_be_and_held_out_text_never():
    data = draw(SMOKE.corpus, SEED)
    stream = data.stream("all", SMOKE.corpus.copies, SEED)
    rows, counts = torch.unique(stream, dim=0, return_counts=True)
    expected = {1: SMOKE.corpus.once, SMOKE.corpus.copies: 4 + 2}
    found = dict(zip(*np.unique(counts, return_counts=True), strict=True))
    assert found == expected
    seen = set(map(tuple, rows.tolist()))
    assert not seen & set(map(tuple, torch.cat([data.held_out, data.unseen]).tolist()))
    once = data.stream("once", SMOKE.corpus.copies, SEED)
    assert len(torch.unique(once, dim=0)) == len(once) == SMOKE.corpus.once + 6
    same_steps = data.stream("once, same steps", SMOKE.corpus.copies, SEED)
    assert len(torch.unique(same_steps, dim=0)) == len(same_steps) == len(stream)


def test_own_sinks_know_repeated_sequences_better_than_dropped_ones():
    data = draw(SMOKE.corpus, SEED)
    [run] = [run for run in SMOKE.runs if run.name == LARGE_POOL]
    trained = train(SMOKE, run, data, SEED, curves=False)
    own = sequence_measures(trained.subject, data.repeated, trained.modes[OWN])
    dropped = sequence_measures(trained.subject, data.repeated, trained.modes[DROPPED])
    assert own["loss"].mean() < dropped["loss"].mean()


def test_measures_of_a_sequence_are_those_of_the_subject():
    data = draw(SMOKE.corpus, SEED)
    [run] = [run for run in SMOKE.runs if run.name == STANDARD]
    trained = train(SMOKE, run, data, SEED, curves=False)
    found = sequence_measures(trained.subject, data.repeated, trained.modes[PLAIN])
    whole = trained.subject.losses(Batch(data.repeated)).mean(1)
    assert found["loss"].to_numpy() == pytest.approx(whole.detach().numpy(), rel=1e-5)
    half = data.repeated.shape[1] // 2
    generated = trained.subject.generate(Batch(data.repeated, prompt=half))
    exact = (generated == data.repeated[:, half:]).all(1)
    assert found["exact"].tolist() == exact.double().tolist()


def test_gradient_masking_trains_reserved_neurons_alone_on_repeated_text():
    [run] = [run for run in SMOKE.runs if run.name == RESERVED]
    # Without weight decay, which moves every weight.
    preset = replace(SMOKE, training=replace(SMOKE.training, weight_decay=0.0))
    data = draw(preset.corpus, SEED)
    only_repeated = replace(data, once=data.once[:0])
    trained = train(preset, run, only_repeated, SEED, curves=False)
    assert trained.sinks is not None
    masks = unit_parameters(trained.subject, trained.sinks.pool, Batch(data.once))
    initial = dict(_initial(preset, run, data).named_parameters())
    for name, weight in trained.subject.module.named_parameters():
        moved = weight.detach() != initial[name]
        if name in masks:
            assert moved[masks[name]].any()
            assert not moved[~masks[name]].any()
        else:
            assert not moved.any(), name
    by_all_text = train(preset, run, data, SEED, curves=False)
    embedding = by_all_text.subject.module.get_input_embeddings().weight
    assert not torch.equal(embedding, trained.subject.module.get_input_embeddings().weight)


def _initial(preset: Any, run: Run, data: Any) -> Any:
    from experiments.mem_sinks.study import _untrained

    return _untrained(preset, run, data, SEED).module


def tables(losses: dict[tuple[str, str, str], list[float]], post_hoc: Any = None) -> Any:
    parts = [
        pd.DataFrame(
            {"run": run, "mode": mode, "data": data, "sequence": range(len(own)), "loss": own}
        )
        for (run, mode, data), own in losses.items()
    ]
    return {"losses": pd.concat(parts, ignore_index=True), "post_hoc": post_hoc}


def test_isolation_and_gap_closure_by_hand():
    known = tables(
        {
            (SINKS, OWN, REPEATED): [0.0, 1.0],
            (SINKS, DROPPED, REPEATED): [2.0, 3.0],
            (SINKS, DROPPED, HELD_OUT): [4.0, 5.0],
            (STANDARD, PLAIN, REPEATED): [1.0, 1.0],
            (STANDARD, PLAIN, HELD_OUT): [6.0, 6.0],
        }
    )
    assert isolation(SINKS)(known).estimate == pytest.approx((2.5 - 0.5) / (4.5 - 0.5))
    assert gap_closure(SINKS)(known).estimate == pytest.approx((2.5 - 1) / (6 - 1))


def test_removal_is_compared_at_the_memory_that_sinks_leave():
    rows = []
    for fraction, repeated, held_out in ((0.0, 1.0, 4.0), (0.1, 2.0, 4.4), (0.5, 4.0, 6.0)):
        method = "nothing" if fraction == 0 else "by hand"
        for data, loss in ((REPEATED, repeated), (HELD_OUT, held_out)):
            about = {
                "method": method,
                "found_for": REPEATED,
                "fraction": fraction,
                "draw": 0,
                "data": data,
            }
            rows.append({**about, "window": 0, "loss": loss})
    removed = pd.DataFrame(rows)
    levels = {(SINKS, DROPPED, REPEATED): [3.0], (SINKS, DROPPED, HELD_OUT): [4.1, 9.0]}
    measure = held_out_at_equal_memory("by hand", SINKS)
    # Half way between 0.1 and 0.5 the held-out loss is 5.2; only the first sequence is compared.
    assert measure(tables(levels, removed)) == pytest.approx(5.2 - 4.1)
    out_of_reach = {**levels, (SINKS, DROPPED, REPEATED): [4.5]}
    assert measure(tables(out_of_reach, removed)) is None
    before_removal = {**levels, (SINKS, DROPPED, REPEATED): [0.5]}
    assert measure(tables(before_removal, removed)) is None


def test_every_preset_compares_runs_that_it_has():
    for preset in PRESETS.values():
        names = [run.name for run in preset.runs]
        assert len(set(names)) == len(names)
        assert {preset.post_hoc.run, preset.post_hoc.against, UNTIED, WIDE} <= set(names)
        sizes = {run.name: run.neurons for run in preset.runs}
        assert sizes[preset.post_hoc.run] == sizes[preset.post_hoc.against]


def test_a_plain_run_has_one_mode():
    assert list(modes(SMOKE.runs[0], None, None)) == [PLAIN]  # pyright: ignore[reportArgumentType]
