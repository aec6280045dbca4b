"""Laws of wording groups: windows belong together when a chain of shared texts or of shared wording links
them."""

from __future__ import annotations

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.memorization.near_duplicates import wording_groups

RUN = 3
windows = st.lists(
    st.tuples(st.integers(0, 8), st.lists(st.integers(0, 4), min_size=1, max_size=6)),
    min_size=1,
    max_size=8,
)


def linked(a: tuple[int, list[int]], b: tuple[int, list[int]]) -> bool:
    runs = [
        {tuple(tokens[i : i + RUN]) for i in range(max(len(tokens) - RUN + 1, 1))}
        for _, tokens in (a, b)
    ]
    return a[0] == b[0] or bool(runs[0] & runs[1])


def chained(rows: list[tuple[int, list[int]]]) -> list[int]:
    """The first row that each row is linked to, by walking links until nothing changes."""
    labels = list(range(len(rows)))
    for _ in rows:
        labels = [
            min(labels[j] for j, other in enumerate(rows) if linked(row, other)) for row in rows
        ]
    return labels


@settings(deadline=None)
@given(windows)
def test_families_are_the_chains_of_links_numbered_as_they_appear(rows):
    frame = pd.DataFrame(rows, columns=["text", "tokens"])
    first = chained(rows)
    assert wording_groups(frame, run=RUN).tolist() == [
        sorted(set(first)).index(label) for label in first
    ]
