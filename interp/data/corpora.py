"""Real corpora that are there without a download, and what makes a training corpus of them: parts
that share no document, no duplicates, and passages that are planted a known number of times.

A *document* is a text that belongs together, such as a file, a topic or a licence. Two documents
are *near-duplicates* if at least half of the distinct runs of 13 words of one of them stand in the
other too. Words are what white space separates. A document of fewer words has itself as its only
run, so that only documents with the same words are duplicates of it.

The share of common runs of the shorter document is the measure, and not one common run: licence
headers are the same in documents that have nothing else in common. 13 words is the run by which
GPT-3's test data were cleaned (arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import os
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random

import pandas as pd

from interp.errors import closest

COPIES = (1, 4, 16, 64)
_RUN = 13  # words
_DUPLICATE_SHARE = 0.5

_LICENCES = Path("/usr/share/common-licenses")
_FORTUNES = Path("/usr/share/games/fortunes")
# Folders of the standard library that hold tests, packages of others, or code made by a program:
# tables of character encodings, and the topics that are "python-docs".
_NOT_SOURCE = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
_LARGEST_SOURCE = 200_000  # bytes; what is larger was made by a program


@dataclass(frozen=True, slots=True)
class Document:
    """A text of a corpus.

    Attributes:
        name: which it is in its corpus.
        text: all of it, or its beginning.
    """

    name: str
    text: str


@dataclass(frozen=True, eq=False)
class GradedCorpus:
    """A corpus in which passages were planted.

    Attributes:
        documents: the documents, with the copies between them.
        table: one row per passage: its number (`passage`), its `text`, how many `copies` were
            planted, and in how many documents it stands anyway (`already`), those included that
            are copies of a longer passage.
    """

    documents: tuple[Document, ...]
    table: pd.DataFrame


def load(name: str, *, files: int | None = None, head: int | None = None) -> tuple[Document, ...]:
    """Returns the documents of a corpus, always in the same order.

    Args:
        name: "stdlib", the source files of Python's standard library without its tests and without
            code that was made by a program; "python-docs", the topics of `help()`; "licences", the
            common licences of a Debian system; or "fortunes", the entries of Debian's packages
            fortunes-min and fortunes.
        files: how many documents to keep, spread evenly over the corpus; by default all.
        head: how many characters of each document to keep, from its start; by default all.

    Raises:
        ValueError: there is no corpus of this name, it has fewer documents, or a number is below 1.
        FileNotFoundError: the files of the corpus are not installed; the message says how to get
            them.

    Example:
        >>> from interp.data import corpora
        >>> topics = corpora.load("python-docs", files=10, head=20)
        >>> topics[0].name, len(topics), max(len(topic.text) for topic in topics)
        ('assert', 10, 20)
    """
    if name not in _CORPORA:
        raise ValueError(
            f"{name!r} is no corpus: expected one of {', '.join(_CORPORA)}; "
            f"nearest: {closest(name, _CORPORA)}"
        )
    # 0 is as false as None, so that `or` would let it pass: it is looked for by itself.
    if min(files or 1, head or 1) < 1 or 0 in (files, head):
        raise ValueError(f"files={files} and head={head}: expected numbers of at least 1, or None")
    found = [Document(part, text[:head]) for part, text in _CORPORA[name]()]
    if files is None:
        return tuple(found)
    if files > len(found):
        raise ValueError(
            f"{name} has {len(found)} documents here: expected at most that, not {files}"
        )
    return tuple(found[number * len(found) // files] for number in range(files))


def deduplicate(documents: Iterable[Document]) -> tuple[Document, ...]:
    """Returns the documents without those that are near-duplicates of an earlier one.

    Args:
        documents: the documents.

    Returns:
        The first of each group of near-duplicates, as the module describes them; a chain of pairs
        is one group. Documents that differ only in white space are near-duplicates too. Compares
        each two documents that share a run: meant for some thousand documents.

    Example:
        >>> from interp.data.corpora import Document, deduplicate
        >>> texts = ["one two", "three", " one  two\\n"]
        >>> [found.text for found in deduplicate([Document("", text) for text in texts])]
        ['one two', 'three']
    """
    given = tuple(documents)
    groups = _groups(given)
    return tuple(given[group[0]] for group in groups)


def split(
    documents: Iterable[Document], shares: Mapping[str, float], seed: int
) -> dict[str, tuple[Document, ...]]:
    """Deals documents out to parts, none of which has a near-duplicate of a document in another.

    Args:
        documents: the documents.
        shares: the share of the documents that each part gets, by the part's name; 1 in all.
        seed: seed of the deal.

    Returns:
        The documents of each part, in their order. Near-duplicates stay together, so that a part
        has its share but for the size of a group of them.

    Raises:
        ValueError: shares that are not positive or not 1 in all, or a part without a document.

    Example:
        >>> from interp.data import corpora
        >>> topics = corpora.load("python-docs")
        >>> parts = corpora.split(topics, {"train": 0.8, "held_out": 0.2}, seed=0)
        >>> len(parts["train"]) + len(parts["held_out"]) == len(topics)
        True
    """
    total = sum(shares.values())
    # So that NaN is refused too, which is neither below 0 nor far from 1.
    are_shares = all(share > 0 for share in shares.values()) and abs(total - 1) <= 1e-9
    if not are_shares:
        raise ValueError(
            f"shares are {dict(shares)}, {total:g} in all: expected positive numbers that are 1 in "
            'all, such as {"train": 0.8, "held_out": 0.2}'
        )
    given = tuple(documents)
    groups = _groups(given)
    Random(f"split {seed}").shuffle(groups)

    members: dict[str, list[int]] = {name: [] for name in shares}
    for group in groups:
        # To the part that has least of what it should have; the first of those that have the same.
        name = min(shares, key=lambda name: len(members[name]) / shares[name])
        members[name] += group
    empty = [name for name, numbers in members.items() if not numbers]
    if empty:
        raise ValueError(
            f"no document is left for {', '.join(empty)}: {len(given)} documents are "
            f"{len(groups)} without near-duplicates; expected at least one for each part"
        )
    return {
        name: tuple(given[number] for number in sorted(numbers))
        for name, numbers in members.items()
    }


def plant(
    documents: Sequence[Document],
    passages: Sequence[str],
    copies: Sequence[int] = COPIES,
    *,
    seed: int,
) -> GradedCorpus:
    """Plants passages in a corpus, each a known number of times.

    Args:
        documents: the corpus, which stays in its order.
        passages: the texts to plant.
        copies: how many copies of a passage are planted, repeated in order over the passages.
        seed: seed of the places.

    Returns:
        The corpus, in which each copy is a document of its own between two others, at a random
        place; and a table of what was planted how often.

    Raises:
        ValueError: no passages, an empty passage or one that is given twice, or a number of copies
            below 1.

    Example:
        >>> from interp.data import corpora
        >>> corpus = corpora.plant([corpora.Document("a", "some text")], ["x", "y"], (1, 4), seed=0)
        >>> corpus.table
           passage text  copies  already
        0        0    x       1        1
        1        1    y       4        0
        >>> len(corpus.documents)
        6
    """
    if not passages or not all(passages) or len(set(passages)) < len(passages):
        raise ValueError(
            f"{len(passages)} passages, {len(set(filter(None, passages)))} of them different and "
            "not empty: expected at least one, and each once"
        )
    if not copies or min(copies) < 1:
        raise ValueError(f"copies={tuple(copies)}: expected whole numbers of at least 1")

    random = Random(f"plant {seed}")
    # The copies in front of each document, and at the end those behind the last one.
    before: list[list[Document]] = [[] for _ in range(len(documents) + 1)]
    rows: list[dict[str, object]] = []
    dealt = list(zip(passages, cycle(copies), strict=False))
    for number, (passage, count) in enumerate(dealt):
        already = sum(passage in document.text for document in documents)
        # Each copy of a longer passage is one more time that this one is trained on.
        already += sum(times for other, times in dealt if other != passage and passage in other)
        rows.append({"passage": number, "text": passage, "copies": count, "already": already})
        for copy in range(count):
            place = random.randrange(len(before))
            before[place].append(Document(f"passage {number}, copy {copy}", passage))

    planted: list[Document] = []
    for place, document in enumerate(documents):
        planted += _shuffled(before[place], random)
        planted.append(document)
    planted += _shuffled(before[-1], random)
    return GradedCorpus(tuple(planted), pd.DataFrame(rows))


def _shuffled(copies: list[Document], random: Random) -> list[Document]:
    # Otherwise the copies between two documents would stand in the order of the passages.
    random.shuffle(copies)
    return copies


def _groups(documents: Sequence[Document]) -> list[list[int]]:
    """The numbers of the documents in groups of near-duplicates, in the order of their firsts."""
    leader = list(range(len(documents)))

    def leader_of(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes: list[int] = []
    for number, document in enumerate(documents):
        runs = _runs(document.text)
        sizes.append(len(runs))
        shared: Counter[int] = Counter()
        # Noted after the look-up, so that a document shares no run with itself.
        for run in runs:
            shared.update(holders[run])
            holders[run].append(number)
        for other, count in shared.items():
            if count >= _DUPLICATE_SHARE * min(len(runs), sizes[other]):
                # The earlier leader leads both groups: a group is led by its first document.
                first, second = sorted((leader_of(number), leader_of(other)))
                leader[second] = first

    groups: defaultdict[int, list[int]] = defaultdict(list)
    for number in range(len(documents)):
        groups[leader_of(number)].append(number)
    return list(groups.values())


def _runs(text: str) -> set[tuple[str, ...]]:
    words = tuple(text.split())
    starts = range(max(len(words) - _RUN + 1, 1))  # a document shorter than a run is one whole
    return {words[start : start + _RUN] for start in starts}


def _stdlib() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for folder, inner, names in os.walk(root):
        # Left out before they are walked through: they hold most of the files.
        inner[:] = set(inner) - _NOT_SOURCE
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    for file in sorted(files):
        if 0 < file.stat().st_size <= _LARGEST_SOURCE:
            yield file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")


def _python_docs() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield name, topics[name]


def _licences() -> Iterator[tuple[str, str]]:
    for file in _installed(_LICENCES, "the licences that every Debian system has; run there"):
        yield file.name, file.read_text(encoding="utf-8")


def _fortunes() -> Iterator[tuple[str, str]]:
    for file in _installed(_FORTUNES, "Debian's fortunes: apt-get install fortunes-min fortunes"):
        if file.suffix:
            continue  # tables of where each entry begins
        entries = file.read_text(encoding="utf-8").split("\n%\n")
        for number, entry in enumerate(entries):
            if entry.strip("%\n"):
                yield f"{file.name} {number}", entry


def _installed(folder: Path, what: str) -> list[Path]:
    """The files of a folder, without links to others of them."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: expected {what}")
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.is_symlink())


_CORPORA: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "stdlib": _stdlib,
    "python-docs": _python_docs,
    "licences": _licences,
    "fortunes": _fortunes,
}
