"""Membership of the texts in files, as the command line runs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.files import replaced
from interp.memorization.membership.corpus import membership
from interp.memorization.membership.roc import roc, roc_figure
from interp.reporting.layout import finish, new_figure, style
from interp.reporting.plotting import save
from interp.subject.subject import Subject
from interp.subject.text_rows import Text, numbered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Scores that `judged` lists, those with a reference model first.
SCORES = ("ratio", "informia", "informia_min_k", "loss", "min_k", "min_k_plus_plus", "zlib")
_LEVELS = (0.0, 0.001, 0.01)
_LETTERS_SHOWN = 60


def score_texts(
    subject: Subject,
    references: Sequence[Subject],
    texts: Iterable[Text],
    non_members: Iterable[Text] | None,
    out: Path,
    *,
    length: int | None = None,
    batch_size: int = 8,
    bos: bool = True,
) -> pd.DataFrame:
    """Scores texts and writes membership.parquet and membership.png.

    Args:
        subject: the target model.
        references: models that were not trained on the texts.
        texts: what the model may have been trained on: strings, or rows with a `text`.
        non_members: texts that it was not trained on, or None.
        out: folder of the files.
        length, batch_size, bos: see `membership`.

    Returns:
        One row per text: see `membership`. In addition `beginning`, its first letters (None for
        token ids), and, if there are non-members, whether it is a `member`; `text` counts each of
        the two by itself.

    Raises:
        ValueError: see `membership`.
    """
    parts: list[pd.DataFrame] = []
    counts = {"texts": 0, "skipped": 0}
    streams = {True: texts} if non_members is None else {True: texts, False: non_members}
    for is_member, stream in streams.items():
        beginnings: dict[int, str | None] = {}
        part = membership(
            subject,
            _noting(stream, beginnings),
            references,
            length=length,
            batch_size=batch_size,
            bos=bos,
        )
        part["beginning"] = [beginnings[number] for number in part["text"]]
        if non_members is not None:
            part["member"] = is_member
        counts = {name: count + part.attrs[name] for name, count in counts.items()}
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs = parts[0].attrs | counts
    with replaced(out / "membership.parquet") as temporary:
        frame.to_parquet(temporary)
    save(_figure(frame), out / "membership.png")
    return frame


def judged(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns how well each score tells members from non-members.

    Args:
        frame: what `score_texts` returned, with non-members.

    Returns:
        One row per score: its `auc`, and the true positive rates at false positive rates of 0, 0.1%
        and 1%, each with its 95% interval; a dash where there are too few non-members.
    """
    rows: list[dict[str, Any]] = []
    for score in SCORES:
        if score not in frame:
            continue
        curve = roc(frame[score], frame["member"])
        row = {"score": score, "auc": f"{curve.auc:.3f}"}
        for level in _LEVELS:
            shown = f"{curve.tpr(level):.1%}" if curve.supports(level) else "-"
            row[f"tpr at {level:.1%}"] = shown
        rows.append(row)
    return pd.DataFrame(rows)


def _noting(texts: Iterable[Text], beginnings: dict[int, str | None]) -> Iterator[Text]:
    """The texts, of which the first letters are noted under their number."""
    for number, text in numbered(texts):
        beginnings[number] = text[:_LETTERS_SHOWN] if isinstance(text, str) else None
        yield text


def _figure(frame: pd.DataFrame) -> Figure:
    if "member" in frame:
        curves = {score: roc(frame[score], frame["member"]) for score in SCORES if score in frame}
        return roc_figure(curves)
    score = "ratio" if "ratio" in frame else "loss"
    names = {
        "ratio": "mean log-probability minus that of the reference models (nats per token)",
        "loss": "mean log-probability (nats per token)",
    }
    with style():
        figure = new_figure(width=7.0, height=4.0)
        axes = figure.subplots()
        axes.hist(frame[score], bins=40, label="texts")
        axes.set(xlabel=names[score], ylabel="texts")
        title = f"How much {len(frame):,} texts look like members: further right, more"
        finish(figure, [axes], title, "bars: number of texts")
    return figure
