"""What a page draws of a workspace: plain lists and numbers for JSON, and arrays as bytes."""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from interp.reporting.looks import in_words
from interp.workbench.measurements import TokenValues
from interp.workbench.workspace import Change, Where, Workspace

_NAMES = {
    ("memorized", "exact"): "extracted",
    ("memorized", "accuracy"): "suffix accuracy",
    ("memorized", "loss"): "loss of memorized (nats per token)",
    ("control", "loss"): "loss of control (nats per token)",
    ("held_out", "loss"): "loss of held-out (nats per token)",
}
# Of the table of tries.
_SHORT = {
    "memorized exact": "extracted",
    "memorized accuracy": "accuracy",
    "memorized loss": "memorized loss",
    "control loss": "control loss",
    "held_out loss": "held-out loss",
}
_POINTS = {"neurons": "neurons", "heads": "heads", "block_out": "blocks"}
_PICTURE_SIDE = 96  # pixels on the page
_FILM_PICTURES = 8
_SNIPPET = 60  # letters of a passage in the list of passages

Json = dict[str, Any]


def view(space: Workspace) -> Json:
    """Returns all that a page draws, but for the scores and the selection of units.

    Args:
        space: the workspace.
    """
    progress = space.progress
    treatment = space.state.treatment
    return {
        "model": space.subject.name,
        "passages": passages(space),
        "passage": space.passage,
        "tokens": tokens(space),
        "prompt": space.data["memorized"].prompt,
        "continuations": continuations(space),
        "pictures": pictures(space),
        "points": {point: _POINTS[point] for point in space.points},
        "point": space.point,
        "methods": {method: in_words(method) for method in space.methods},
        "method": space.method,
        "scored": space.scores is not None,
        "scoredApart": space.scored_apart,
        "sites": sites(space),
        "selected": len(space.units),
        "origin": space.state.origin if len(space.units) else "nothing is selected",
        "treatment": {
            "kind": treatment.kind,
            "factor": treatment.factor,
            "where": treatment.where,
            "tokens": list(treatment.tokens),
            "when": treatment.when,
            "words": treatment.in_words,
        },
        "notice": space.notice,
        "canUndo": space.can_undo,
        "canRedo": space.can_redo,
        "changes": [_row_of(change) for change in space.changes()],
        "windows": {name: len(batch) for name, batch in space.data.items()},
        "tries": tries(space),
        "progress": {
            "next": progress.next,
            "done": progress.done,
            "total": progress.total,
        },
    }


def passages(space: Workspace) -> list[Json]:
    """Returns each passage as `number`, `text` and `accuracy` before and now, the most memorized
    first; those that are not measured yet stand in their own order."""
    batch = space.data["memorized"]
    before = space.measured("before").get("memorized")
    now = space.measured("now").get("memorized")
    order = np.arange(len(batch))
    if before is not None:
        # `lexsort` sorts by its last key first: by accuracy, and where that is equal by loss.
        order = np.lexsort((before["loss"], -before["accuracy"]))
    rows: list[Json] = []
    for number in order.tolist():
        row: Json = {"number": number, "text": _snippet(space, number)}
        if before is not None:
            row["before"] = float(before["accuracy"][number])
        if now is not None:
            row["now"] = float(now["accuracy"][number])
        rows.append(row)
    return rows


def _snippet(space: Workspace, number: int) -> str:
    batch = space.data["memorized"]
    ids = batch.tokens[number].tolist()
    if space.subject.tokenizer is None:
        return " ".join(map(str, ids[batch.prompt :]))[:_SNIPPET]
    text = space.subject.decode(ids[batch.prompt :])
    return " ".join(text.split())[:_SNIPPET]


def tokens(space: Workspace) -> list[Json]:
    """Returns each token of the shown passage: its `piece` of the text, `before` and `now` (log p
    in nats), `most` (the most likely token in its place now) and, with a reference model, `member`
    (its membership score, in nats)."""
    ids = space.data["memorized"].tokens[space.passage].tolist()
    before = space.tokens("before")
    now = space.tokens("now")
    membership = space.membership()
    rows: list[Json] = []
    for number, piece in enumerate(_pieces(space, ids)):
        row: Json = {"piece": piece}
        for name, values in (("before", before), ("now", now)):
            # NaN, where nothing predicts the token, is not JSON.
            if values is not None and np.isfinite(values.log_p[number]):
                row[name] = round(float(values.log_p[number]), 4)
        if now is not None and "now" in row:
            row["most"] = _most_likely(space, now, number)
        if membership is not None and np.isfinite(membership[number]):
            row["member"] = round(float(membership[number]), 4)
        rows.append(row)
    return rows


def _most_likely(space: Workspace, values: TokenValues, number: int) -> str:
    [piece] = _pieces(space, [int(values.most_likely[number])])
    return piece


def _pieces(space: Workspace, ids: list[int]) -> list[str]:
    """The text of each token; its number for a model without a tokenizer."""
    if space.subject.tokenizer is None:
        return [f"{token} " for token in ids]
    return space.subject.decode_parts(ids, range(1, len(ids)))


def continuations(space: Workspace) -> Json:
    """Returns what is generated `before` and `now`, as pieces of text that say whether they are in
    the passage too; None where it is not computed yet."""
    if space.has_pictures:
        return {"before": None, "now": None}
    shown: Json = {}
    wheres: tuple[Where, ...] = ("before", "now")
    for where in wheres:
        generated = space.continuation(where)
        shown[where] = None if generated is None else _compared(space, generated)
    if not len(space.units):
        shown["now"] = None
    return shown


def _compared(space: Workspace, generated: list[int]) -> list[Json]:
    """The generated tokens in runs that are in the passage, too, or are not."""
    batch = space.data["memorized"]
    ids = batch.tokens[space.passage].tolist()
    prefix, true = ids[: batch.prompt], ids[batch.prompt :]
    same = np.zeros(len(generated), dtype=bool)
    # The second text is the destination: what was generated.
    for block in Levenshtein.opcodes(true, generated):
        if block.tag == "equal":
            same[block.dest_start : block.dest_end] = True
    # A run ends where a token is followed by one of the other kind.
    cuts = [0, *(np.flatnonzero(np.diff(same)) + 1).tolist(), len(generated)]
    if space.subject.tokenizer is None:
        texts = ["".join(_pieces(space, generated[a:b])) for a, b in pairwise(cuts)]
    else:
        # Cut out of the whole text, of which the part in front of the first cut is the prefix.
        within = [len(prefix) + cut for cut in cuts[:-1]]
        _, *texts = space.subject.decode_parts([*prefix, *generated], within)
    return [
        {"text": text, "same": bool(same[start])}
        for text, start in zip(texts, cuts[:-1], strict=True)
    ]


def pictures(space: Workspace) -> list[Json]:
    """Returns pictures with their captions, as PNG files in base64: of images what is generated, of
    a policy what it does."""
    rows = [
        {"caption": name, "images": [_png(picture)]} for name, picture in space.pictures().items()
    ]
    wheres: tuple[Where, ...] = ("before", "now")
    for where in wheres:
        film = space.film(where)
        if film is not None and (where == "before" or len(space.units)):
            chosen = np.linspace(0, len(film) - 1, min(_FILM_PICTURES, len(film))).round()
            shown = [_png(film[int(number)]) for number in chosen]
            rows.append({"caption": f"{where}, {len(film)} pictures", "images": shown})
    return rows


def _png(picture: Float[Tensor, "channels height width"]) -> str:
    """A picture as a PNG file in base64, enlarged without smoothing."""
    from PIL import Image

    shown = (picture.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    if shown.shape[0] == 1:
        shown = shown.expand(3, -1, -1)
    image = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
    times = max(1, _PICTURE_SIDE // image.height)
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def sites(space: Workspace) -> list[Json]:
    """Returns where units are in the map: per site its `name` and `width`, in order."""
    widths = space.subject.anatomy.widths(space.sites)
    rows: list[Json] = []
    for site, width in widths.items():
        stack = f"{site.stack} " if site.stack else ""
        rows.append({"name": str(site), "label": f"{stack}{site.block}", "width": width})
    return rows


def scores_of(space: Workspace) -> bytes:
    """Returns the score of each unit of the map as 32-bit floats; empty without scores."""
    if space.scores is None:
        return b""
    parts = [space.scores[site] for site in space.sites]
    return np.concatenate(parts).astype("<f4").tobytes()


def selection_of(space: Workspace) -> bytes:
    """Returns one byte for each unit of the map, 1 where it is selected."""
    parts: list[np.ndarray] = []
    for site, width in space.subject.anatomy.widths(space.sites).items():
        chosen = np.zeros(width, dtype=np.uint8)
        chosen[space.units[site]] = 1
        parts.append(chosen)
    return np.concatenate(parts).tobytes()


def tries(space: Workspace) -> Json:
    """Returns the table of tries, the newest first: `columns` and `rows`."""
    table = space.tries()
    if len(table) and len(set(table["model"])) == 1:
        table = table.drop(columns="model")
    columns = [_SHORT.get(str(name), str(name)) for name in table]
    rows = [
        [_cell(str(name), value) for name, value in zip(table, row, strict=True)]
        for row in reversed(list(table.itertuples(index=False)))
    ]
    return {"columns": columns, "rows": rows}


def _cell(name: str, value: Any) -> str:
    if name.endswith(" loss"):
        return f"{value:.3f}"
    return f"{value:.2f}" if name in _SHORT else f"{value}"


def _row_of(change: Change) -> Json:
    spec = ".2f" if change.measure != "loss" else ".3f"
    changed = format(change.change, f"+{spec}")
    if change.change.n < 2:
        # Windows of one text are no independent draws, and one text is none to resample.
        changed = f"{change.change.estimate:+{spec}} (one text: no interval)"
    return {
        "name": _NAMES[change.data, change.measure],
        "before": format(change.before, spec),
        "now": format(change.now, spec),
        "change": changed,
        "texts": change.change.n,
    }
