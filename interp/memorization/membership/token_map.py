"""Token maps: which tokens of one passage a model has memorized, for the terminal, a notebook, or
as a figure."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.data.tokenized import tokenized
from interp.memorization.membership.corpus import as_models, scored_texts
from interp.subject.subject import Subject
from interp.subject.text_rows import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.text import Text as RichText

_MEMORIZED = (213, 94, 0)  # red, green and blue of Okabe and Ito's vermilion
_UNLIKELY = (0, 114, 178)  # and of their blue
_PAPER = (255, 255, 255)
_ROW = 24  # tokens side by side in a figure


@dataclass(frozen=True, eq=False)
class TokenMap:
    """The membership score of each token of a passage.

    Shown as colours: orange tokens are those that the target model predicts better than models in
    general (the reference) do, blue ones those that it predicts worse. Full colour is the largest
    score of the passage, unless `limit` says another.

    Attributes:
        frame: one row per token: `position`, `token` (its id), `piece` (its text), `log_p` and
            `log_p_reference` (nats), and `score` (token-level InfoRMIA, nats); NaN for tokens that
            nothing predicts (start of the passage).
        target, reference: names of the models.
        limit: the score of full colour, in nats.

    Example:
        >>> shown = interp.token_map(subject, texts[0], untrained)
        >>> shown.frame.columns.tolist()
        ['position', 'token', 'piece', 'log_p', 'log_p_reference', 'score']
        >>> "".join(shown.frame["piece"]) == texts[0]
        True
    """

    frame: pd.DataFrame
    target: str
    reference: str
    limit: float

    def __repr__(self) -> str:
        mean = self.frame["score"].mean()
        return f"TokenMap({len(self.frame)} tokens, mean score {mean:.2f} nats)"

    @property
    def key(self) -> str:
        """What the colours mean, in a sentence."""
        return (
            f"orange: tokens that {self.target} predicts better than {self.reference}; "
            f"blue: worse; full colour: {self.limit:.1f} nats"
        )

    def __rich__(self) -> RichText:
        """The passage as coloured text, for `rich.print`."""
        from rich.text import Text

        shown = Text()
        for piece, colour in self._coloured():
            if colour is None:
                shown.append(piece)
            else:
                red, green, blue = colour
                shown.append(piece, style=f"black on rgb({red},{green},{blue})")
        shown.append(f"\n{self.key}", style="dim")
        return shown

    def _repr_html_(self) -> str:
        """The passage as coloured text, with the numbers of each token where the mouse points."""
        spans: list[str] = []
        rows = self.frame.to_dict("records")
        for (piece, colour), row in zip(self._coloured(), rows, strict=True):
            text = html.escape(piece)
            if colour is None:
                spans.append(text)
                continue
            red, green, blue = colour
            numbers = (
                f"score {row['score']:.2f} nats; log p {row['log_p']:.2f}, "
                f"reference {row['log_p_reference']:.2f}"
            )
            spans.append(
                f'<span style="background: rgb({red},{green},{blue}); color: black" '
                f'title="{numbers}">{text}</span>'
            )
        passage = "".join(spans)
        return (
            f'<div style="font-family: monospace; white-space: pre-wrap">{passage}</div>'
            f"<small>{html.escape(self.key)}</small>"
        )

    def plot(self) -> Figure:
        """Draws the score of each token as a bar above its text."""
        from interp.reporting.layout import finish, grid_of, style

        # Rounded up.
        rows = -(-len(self.frame) // _ROW)
        with style():
            figure, grid = grid_of(rows, 1, width=10.0, height=1.7)
            for number, axes in enumerate(grid):
                part = self.frame.iloc[number * _ROW : (number + 1) * _ROW]
                places = np.arange(len(part))
                scores = part["score"].to_numpy(dtype=float)
                for chosen, colour, name in (
                    (scores > 0, _MEMORIZED, "predicted better than by the reference"),
                    (scores <= 0, _UNLIKELY, "predicted worse"),
                ):
                    shade = tuple(value / 255 for value in colour)
                    axes.bar(places[chosen], scores[chosen], color=shade, label=name)
                pieces = [_visible(piece) for piece in part["piece"]]
                axes.set_xticks(places, pieces, rotation=60, ha="right", rotation_mode="anchor")
                axes.set(
                    xlim=(-0.6, _ROW - 0.4),
                    ylim=(min(-0.05 * self.limit, np.nanmin(self.frame["score"])), self.limit),
                    xlabel="tokens, in order",
                    ylabel="score (nats)",
                )
                for label in axes.get_xticklabels():
                    label.set_parse_math(False)  # a dollar sign in a text starts no formula
            title = f"Which tokens {self.target} has memorized, compared with {self.reference}"
            finish(figure, grid, title, "bars: token-level InfoRMIA of each token")
        return figure

    def _coloured(self) -> Iterator[tuple[str, tuple[int, int, int] | None]]:
        """Every piece with its colour; None where there is no score."""
        for piece, score in zip(self.frame["piece"], self.frame["score"], strict=True):
            if np.isnan(score):
                yield piece, None
                continue
            strength = min(abs(score) / self.limit, 1.0)
            full = _MEMORIZED if score > 0 else _UNLIKELY
            red, green, blue = (
                round(paper + strength * (shade - paper))
                for paper, shade in zip(_PAPER, full, strict=True)
            )
            yield piece, (red, green, blue)


def token_map(
    subject: Subject,
    text: Text,
    reference: Subject | Sequence[Subject],
    *,
    limit: float | None = None,
    bos: bool = True,
) -> TokenMap:
    """Returns which tokens of a passage a model predicts better than models in general do.

    Args:
        subject: the target model, with a tokenizer.
        text: the passage, or its token ids.
        reference: one or more models with the same tokenizer that were not trained on it.
        limit: the score of full colour, in nats: give the same to compare passages. By default the
            largest of this passage.
        bos: whether the passage is measured behind the start tokens of the tokenizer.

    Raises:
        ValueError: see `membership`; no reference model, or a limit that is not positive.
    """
    references = as_models(reference)
    if not references:
        raise ValueError("expected at least one reference model, got none")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit={limit}: expected a positive number of nats")
    found = list(scored_texts(subject, [text], references, bos=bos))
    if not found:
        raise ValueError("the text has fewer than two tokens, so that none of them is predicted")
    scores = found[0].scores
    assert scores.informia is not None
    assert scores.log_p_reference is not None

    ((_, ids),) = tokenized(subject, [text])
    if bos:
        ids = subject.without_bos(ids)
    predicted = scores.log_p.shape[1]
    # Nothing predicts the first token where no start token comes before it.
    unpredicted = len(ids) - predicted
    pieces = subject.decode_parts(ids, range(1, len(ids)))
    columns = {
        "log_p": scores.log_p,
        "log_p_reference": scores.log_p_reference,
        "score": scores.informia,
    }
    frame = pd.DataFrame({"position": range(len(ids)), "token": ids, "piece": pieces})
    for name, values in columns.items():
        frame[name] = [np.nan] * unpredicted + values[0].tolist()
    largest = float(scores.informia.abs().max())
    names = ", ".join(each.name for each in references)
    # A model compared with itself has no scores but 0, which are drawn without colour.
    return TokenMap(frame, subject.name, names, limit or largest or 1.0)


def _visible(piece: str) -> str:
    """A piece of text as a label: spaces and line ends can be seen."""
    shown = piece.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return shown if len(shown) <= 12 else shown[:11] + "…"
