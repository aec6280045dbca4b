"""Zero-Out of stories15M's 4,608 neurons: how many of the strongest an exact check of a few keeps,
when a screen says which to check.

Exhaustive Zero-Out, one pass a neuron, is the truth. A screen ranks all neurons for a few passes (a
backward counts as two); what is left of the budget verifies its first ones. 8 windows: 4 that the
model was briefly fine-tuned to know by heart, 4 that it has not seen. Screens were chosen on
fine-tuning seeds 0 and 1. Not part of a whole run: it takes about a quarter of an hour, and the
model as a folder in `out/models/stories15m`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import interp
from benchmarks.timing import Row
from interp.data.planted import background, records
from interp.localization import screening
from interp.localization.methods import activation, gradient, zero_out
from interp.localization.methods import integrated_gradients as integrated
from interp.reporting.plotting import dose_response, save
from interp.reporting.stats import bootstrap

STORIES, FOLDER = Path("out/models/stories15m"), Path(__file__).parent
SEED, PREFIX, LENGTH, STEPS, LR = 2, 32, 32, 80, 4e-4
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
TOPS = {"top 0.1%": 0.001, "top 1%": 0.01}
AT, MISSED = 0.1, 0.05  # of the passes, and the share of the top 1% that a screen may miss there
Scores = Mapping[interp.Site, Tensor]


def run() -> list[Row]:
    """What each screen misses of the top 1% at a tenth of the passes; a figure of all shares."""
    subject, tokens = tuned()
    sites = subject.anatomy.expand("neurons")
    truth = np.stack(
        [
            _flat(zero_out.exact(subject, window, subject.anatomy.units(sites)))
            for window in interp.Batch(tokens, PREFIX).split(1)
        ]
    )
    found = curve(truth, orders(subject, interp.Batch(tokens, PREFIX), sites))
    labels = {
        "share": "share of the passes of exhaustive Zero-Out",
        **{top: f"recall of the exhaustive {top}" for top in TOPS},
    }
    save(dose_response(found, "share", "screen", "top", labels=labels), FOLDER / "screens.png")
    (FOLDER / "screens.json").write_text(
        json.dumps({"seed": SEED, "rows": found.round(4).to_dict("records")}, indent=1) + "\n"
    )
    at = found[(found["share"] == AT) & (found["top"] == "top 1%")]
    bars = {"first_or_curved": MISSED}
    name = f"Zero-Out screens, {AT:.0%} of the passes"
    return [
        Row(
            name,
            row.screen,
            1 - row.estimate,
            "of the top 1% missed",
            1 - row.estimate,
            bar=bars.get(row.screen),
        )
        for row in at.itertuples()
    ]


def tuned() -> tuple[interp.Subject, Tensor]:
    """The fine-tuned model, and its windows: 4 memorized, then 4 never trained, each half prose (or
    records) and half stories."""
    if not (STORIES / "config.json").exists():
        raise interp.LoadError(
            f"{STORIES} is missing: expected stories15M (karpathy/tinyllamas) as a "
            "Hugging Face folder"
        )
    subject, width, prose = interp.load(STORIES, dtype="float32"), PREFIX + LENGTH, background(SEED)
    cut = [ids[:width] for ids in map(subject.encode, prose.held_out) if len(ids) >= width]
    planted = [subject.encode(record.text)[-width:] for record in records(2, SEED)] + cut[:2]
    told = _told(subject, 242)
    never = cut[2:4] + [ids[:width] for ids in told[:2]]
    others = told[2:] + [subject.encode(paragraph)[:80] for paragraph in prose.train[:240]]
    interp.fit(subject, _stream(planted, others), STEPS, LR, warmup=5, decay=30, clip=1.0)
    return subject, torch.tensor(planted + never)


def _told(subject: interp.Subject, count: int, length: int = 80) -> list[list[int]]:
    """Ordinary text of this model: stories that it tells itself, sampled at temperature 1."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        lengths = {"max_new_tokens": length, "min_new_tokens": length}
        told = subject.module.generate(
            torch.ones(count, 1, dtype=torch.long),
            do_sample=True,
            top_k=0,
            temperature=1.0,
            **lengths,
        )
    return told[:, 1:].tolist()


def _stream(planted: Sequence[list[int]], others: Sequence[list[int]]) -> Iterator[interp.Batch]:
    rng = Random(SEED)

    def rounds(rows: Sequence[list[int]]) -> Iterator[list[int]]:
        while True:
            yield from rng.sample(rows, len(rows))

    ours, theirs = rounds(planted), rounds(others)
    while True:
        yield interp.Batch.pad([*islice(ours, 2), *islice(theirs, 6)])


def orders(
    subject: interp.Subject, batch: interp.Batch, sites: tuple[interp.Site, ...]
) -> dict[str, tuple[Scores, int]]:
    """Each screen's scores of all neurons, and the passes that it costs a window."""
    first, curved = screening.estimates(subject, batch, sites)
    active: Scores = activation.activation(subject, batch, sites)
    path = _by_window(
        batch,
        lambda one: integrated.integrated_gradients(
            subject, one, sites, steps=2, rule="gauss", positions="all"
        ),
    )
    return {
        "gradient x activation": (first, 3),
        "the same, absolute": (gradient.absolute_gradient_x_activation(subject, batch, sites), 3),
        "activation": (active, 1),
        "integrated gradients, 2 points": (path, 3 * 2 * len(sites)),
        "curved": (curved, 3),
        "union with activation": (
            screening.interleaved(first, {site: active[site] for site in sites}),
            4,
        ),
        "first_or_curved": (screening.interleaved(first, curved), 3),
    }


def _by_window(batch: interp.Batch, scores: Callable[[interp.Batch], Scores]) -> Scores:
    rows = [scores(window) for window in batch.split(1)]
    return {site: torch.cat([row[site] for row in rows]) for site in rows[0]}


def curve(truth: np.ndarray, screens: Mapping[str, tuple[Scores, int]]) -> pd.DataFrame:
    """For each screen, share of the passes and top: the mean recall over windows, with its 95%
    bootstrap interval, and the `worst`."""
    rows: list[dict[str, Any]] = []
    best = np.argsort(-truth, axis=1, kind="stable")
    for (name, (scores, cost)), share in (
        (item, share) for item in screens.items() for share in SHARES
    ):
        ranked = np.argsort(-_flat(scores), axis=1, kind="stable")[
            :, : max(0, int(share * truth.shape[1]) - cost)
        ]
        for top, part in TOPS.items():
            count = round(part * truth.shape[1])
            recalls = [
                float(np.isin(true[:count], checked).mean())
                for true, checked in zip(best, ranked, strict=True)
            ]
            found = bootstrap(recalls)
            about = {"screen": name, "share": share, "top": top, "worst": min(recalls)}
            rows.append(about | {"estimate": found.estimate, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def _flat(scores: Scores) -> np.ndarray:
    return torch.cat([scores[site].double() for site in scores], -1).numpy()
