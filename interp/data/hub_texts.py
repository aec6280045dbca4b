"""The texts of a data set on the Hugging Face hub, streamed by `datasets`."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from interp.data.text_formats import has_text_name, no_such_column, string_of

# user/name, after a colon the configuration of a data set that has several, and after an @ the
# split.
_HUB_ID = re.compile(
    r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?::(?P<configuration>[\w.-]+))?(?:@(?P<split>[\w.-]+))?"
)
# Which split is read where there are several and none is named.
_TRAINING = "train"
_LONGEST_REASON = 300  # characters of an error


@dataclass(frozen=True, eq=False)
class HubTexts:
    """The texts of a data set on the hub. Nothing is downloaded before its rows are asked for.

    Attributes:
        name: `user/name`, `user/name:configuration` or `user/name:configuration@split`.
        column: which column holds the texts.
        rows: a streaming data set of `datasets`.
    """

    name: str
    column: str
    rows: Any

    def read(self, first: int = 0, state: Any = None) -> Iterator[str]:
        """Yields the texts, one row at a time.

        Args:
            first: number of the first row.
            state: what `state_dict` returned before that row; by default all rows before it are
                read again.

        Raises:
            ValueError: a row holds no text.
        """
        # Also without a state: the data set would begin where it was continued the last time.
        self.rows.load_state_dict(state)
        rows = islice(self.rows, first if state is None else 0, None)
        for number, row in enumerate(rows, start=first):
            yield string_of(row[self.column], f"{self.name}, row {number}", self.column)

    def state_dict(self) -> Any:
        """Returns the place of the next row, as `datasets` says it."""
        return self.rows.state_dict()


def is_hub_id(path: str | Path) -> bool:
    """Returns whether a path that does not exist may be a data set on the hub: `user/name`, where
    `user` is not a folder here and `name` does not end like a text file.

    Example:
        >>> from interp.data.hub_texts import is_hub_id
        >>> [is_hub_id(path) for path in ("allenai/c4:en", "a/b.txt", "/a/b", "./a", "a/b/c")]
        [True, False, False, False, False]
    """
    found = _HUB_ID.fullmatch(str(path))
    if found is None:
        return False
    folder, name = found["id"].split("/")
    # A mistyped name in a folder of one's own must not be sent to the hub.
    return not Path(folder).exists() and not has_text_name(Path(name))


def hub_texts(name: str | Path, column: str = "text") -> HubTexts:
    """Returns the texts of a data set on the hub, after checking that it is there.

    The split `train` is read, or the only split of a data set that has one, or the one that is
    named. `datasets` runs no code of a data set.

    Args:
        name: `user/name`, or `user/name:configuration` for a data set that has several; in either
            case `@split` may follow.
        column: which column holds the texts.

    Raises:
        ValueError: the hub cannot be reached, does not have this data set, or the data set does
            not have this configuration, a split to read, or the column.
        ImportError: `datasets` is not installed.

    Example:
        >>> from interp.data.hub_texts import hub_texts
        >>> next(hub_texts("allenai/c4:en").read())  # doctest: +SKIP
        'Beginners BBQ Class Taking Place in Missoula!...'
    """
    found = _HUB_ID.fullmatch(str(name))
    if found is None:
        raise ValueError(f"{name} is not the id of a data set on the hub: expected user/name")
    with _without_progress_bars():
        splits = _splits(found["id"], found["configuration"])
        rows = splits[_split(name, found["split"], list(splits))]
        columns = rows.column_names
        if columns is None:
            # Formats such as JSON lines do not say what is in them before the first row.
            columns = list(next(iter(rows), {}))
    problem = no_such_column(f"the data set {name}", column, columns)
    if problem is not None:
        raise ValueError(problem)
    return HubTexts(str(name), column, rows.select_columns([column]))


def _split(name: str | Path, wanted: str | None, splits: list[str]) -> str:
    """The split to read of those that there are."""
    if wanted is None and len(splits) == 1:
        return splits[0]
    split = _TRAINING if wanted is None else wanted
    if split not in splits:
        expected = f"{_TRAINING} or only one; name one, as in user/name@{(splits or ['test'])[0]}"
        raise ValueError(
            f"the data set {name} has the splits {', '.join(splits) or 'none'}: expected "
            f"{expected if wanted is None else f'one of these, not {wanted}'}"
        )
    return split


def _splits(hub_id: str, configuration: str | None) -> dict[str, Any]:
    """The streaming data set of each split."""
    import datasets
    import huggingface_hub

    try:
        # Asked first, because `datasets` retries for 20 seconds where there is no network.
        huggingface_hub.HfApi().dataset_info(hub_id, timeout=10)
        splits = datasets.load_dataset(hub_id, configuration, streaming=True)
    except Exception as error:  # also those of the HTTP library that the hub happens to use
        # On one line, and without the list of all that the hub has.
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise ValueError(f"the hub gave no data set {hub_id} ({reason})") from error
    return {str(name): rows for name, rows in splits.items()}


@contextmanager
def _without_progress_bars() -> Generator[None]:
    import datasets

    were_shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()
