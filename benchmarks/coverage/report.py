"""The census as a file of results, and as the page of supported models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.coverage.census import KINDS, Entry

RESULTS = Path(__file__).parent / "results.json"
PAGE = Path("docs/models.md")

_ABOUT = """\
# Supported models

Structure decides what works with `interp`, not a list: any autoregressive torch module can be
loaded, and what cannot be verified on it is refused with a reason. This page shows what that gives
for the architectures of transformers {transformers}: for every causal language model and every
image-text model (read as text) a tiny random model was loaded, and every number checked against the
model itself, run by hand with torch's own hooks. `python -m benchmarks --only coverage` makes this
page again; {date}, torch {torch}.
"""

_LEGEND = """\
In the tables, a point is written out where it is right in every block that has it, and as
`right/all` where it is refused in some. *Decoding*: on the model's own cache, where that agrees
with whole forwards, else by whole forwards, which are slower and give the same tokens.
"""

_KINDS = {"causal": "Causal language models", "image-text": "Image-text models, as text"}
_SHOWN = ("heads", "attn_out", "mixer_out", "resid_mid", "neurons", "mlp_out")


def read() -> list[Entry]:
    """Returns the committed census."""
    return [Entry(**entry) for entry in json.loads(RESULTS.read_text())["entries"]]


def save(entries: Sequence[Entry]) -> None:
    """Writes the results and the page."""
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "transformers": version("transformers"),
        "torch": version("torch").partition("+")[0],
    }
    results = about | {"entries": [asdict(entry) for entry in entries]}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(entries, about))


def page(entries: Sequence[Entry], about: dict[str, str]) -> str:
    """Returns the page of supported models."""
    parts = [_ABOUT.format(**about), summary(entries), _LEGEND]
    for kind in KINDS:
        loaded = [e for e in entries if e.kind == kind and e.outcome == "loaded"]
        others = [e for e in entries if e.kind == kind and e.outcome != "loaded"]
        parts.append(f"## {_KINDS[kind]}\n")
        parts.append(_table(("architecture", "right", "refused in part", "decoding"), loaded))
        if others:
            rows = [(f"`{e.name}`", e.outcome, _cell(e.why)) for e in others]
            parts.append(_markdown(("architecture", "", "why"), rows))
    return "\n".join(parts)


def summary(entries: Sequence[Entry]) -> str:
    """Returns the counts as a table in Markdown, one column for each kind."""
    rows: list[tuple[str, ...]] = []
    for title, count in _COUNTS.items():
        by_kind = [[entry for entry in entries if entry.kind == kind] for kind in KINDS]
        rows.append((title, *map(count, by_kind)))
    return _markdown(("", *(_KINDS[kind] for kind in KINDS)), rows)


def _built(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.outcome != "not built"]


def _loaded(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.outcome == "loaded"]


def _share_at(point: str, entries: Sequence[Entry]) -> str:
    having = [entry for entry in _loaded(entries) if point in entry.points]
    return f"{sum(entry.is_right_at(point) for entry in having)} of {len(having)}"


def _holding(law: str, entries: Sequence[Entry]) -> str:
    loaded = _loaded(entries)
    return f"{sum(entry.laws[law] for entry in loaded)} of {len(loaded)}"


def _count_loaded(entries: Sequence[Entry]) -> str:
    return f"{len(_loaded(entries))} of {len(_built(entries))}"


def _count_wrong(entries: Sequence[Entry]) -> str:
    return str(sum(entry.is_wrong for entry in _built(entries)))


def _count_complete(entries: Sequence[Entry]) -> str:
    loaded = _loaded(entries)
    return f"{sum(entry.has_all_sites for entry in loaded)} of {len(loaded)}"


_COUNTS: dict[str, Callable[[Sequence[Entry]], str]] = {
    "architectures of which a tiny model could be made": lambda entries: str(len(_built(entries))),
    "loaded; the others are refused with the reason": _count_loaded,
    "with a wrong number or token anywhere": _count_wrong,
    "`heads` right in every block with attention": partial(_share_at, "heads"),
    "`neurons` right in every block with a dense MLP or shared expert": (
        partial(_share_at, "neurons")
    ),
    "every site that the architecture has is right": _count_complete,
    "greedy decoding gives the tokens of whole forwards": partial(_holding, "generation"),
    "logits from pieces of a text are those of a whole forward": partial(_holding, "pieces"),
    "a scan with everything decoded is right": partial(_holding, "scan"),
}


def _table(headings: Sequence[str], entries: Sequence[Entry]) -> str:
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        right = [f"`{point}`" for point in _SHOWN if entry.is_right_at(point)]
        partly: list[str] = []
        for point, statuses in entry.points.items():
            if set(statuses) != {"right"}:
                partly.append(f"`{point}` {statuses.get('right', 0)}/{sum(statuses.values())}")
        reasons = f": {'; '.join(entry.reasons)}" if partly else ""
        decoding = "cache" if entry.cached else "whole forwards"
        refused = _cell(", ".join(partly) + reasons)
        rows.append((f"`{entry.name}`", ", ".join(right), refused, decoding))
    return _markdown(headings, rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
