"""Gibberish: keys, hashes and identifiers, which look hard to memorize but have few tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from interp.memorization.entropy.bags import entropies_of_tokens

# What the paper counts as gibberish is known, its patterns are not; these are ours.
PATTERNS = {
    "uuid": re.compile(
        r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b"
    ),
    "hex": re.compile(r"\b[0-9a-fA-F]{32,}\b"),
    "base64": re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{40,}={0,2}(?![A-Za-z0-9+/=])"),
}


def find_gibberish(texts: Iterable[str]) -> list[str]:
    """Returns the strings in texts that look like a UUID, a hash or a key.

    Args:
        texts: the texts.

    Returns:
        UUIDs, hexadecimal strings of at least 32 digits, and base64 strings of at least 40
        characters with a digit and letters of both cases; each place once.

    Example:
        >>> from interp.memorization.entropy.gibberish import find_gibberish
        >>> find_gibberish(["id 123e4567-e89b-12d3-a456-426614174000, md5 " + "0123abcd" * 4])
        ['123e4567-e89b-12d3-a456-426614174000', '0123abcd0123abcd0123abcd0123abcd']
    """
    found: list[str] = []
    for text in texts:
        places: list[tuple[int, str]] = []
        rest = text
        for name, pattern in PATTERNS.items():
            matches = [(match.start(), match.group()) for match in pattern.finditer(rest)]
            if name == "base64":
                matches = [(start, string) for start, string in matches if _is_mixed(string)]
            places += matches
            # What was found is blanked, so that a hash is not found as base64 again.
            # As many blanks as letters, so that places in the rest are places in the text.
            rest = pattern.sub(lambda match: " " * len(match.group()), rest)
        # In the order of the text, and not pattern by pattern.
        found += [string for _, string in sorted(places)]
    return found


def _is_mixed(string: str) -> bool:
    """Whether a string has a digit and letters of both cases: a long word or path has not."""
    has_digit = any(letter.isdigit() for letter in string)
    return has_digit and string.lower() != string and string.upper() != string


@dataclass(frozen=True)
class EntropyGap:
    """Entropy of two bags of equal size.

    Attributes:
        first, second: mean entropy of bags of each, in bits.
        gap: `second` minus `first`, in bits.
        sd: standard deviation of the gap over bags.
        tokens: tokens per bag.
    """

    first: float
    second: float
    gap: float
    sd: float
    tokens: int


def entropy_gap(
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]],
    *,
    tokens: int | None = None,
    bags: int = 200,
    seed: int = 0,
) -> EntropyGap:
    """Compares the token entropy of two kinds of strings at equal bag size.

    A bag is made of whole strings in random order, cut off at the size, so that it keeps how tokens
    of one string depend on each other.

    Args:
        first: token ids of each string of the one kind, such as gibberish.
        second: the same of the other kind, such as prose.
        tokens: tokens per bag; by default half of what the smaller kind has. The more of a kind is
            in every bag, the less its bags differ, and the smaller `sd` is.
        bags: how many bags are drawn of each.
        seed: seed of the bags.

    Raises:
        ValueError: a kind without tokens, bags that are larger than a kind, or fewer than two
            bags.

    Source: the study of gibberish in Huang et al. 2025 (arXiv 2507.06056, version 1).

    Example:
        >>> from interp.memorization.entropy.gibberish import entropy_gap
        >>> digits = [[1, 2, 1, 2]] * 20
        >>> words = [[number, number + 1, number + 2, number + 3] for number in range(20)]
        >>> gap = entropy_gap(digits, words)
        >>> gap.first, gap.gap > 2 * gap.sd
        (1.0, True)
    """
    sizes = {"first": sum(map(len, first)), "second": sum(map(len, second))}
    smallest = min(sizes.values())
    size = smallest // 2 if tokens is None else tokens
    if not 1 <= size <= smallest:
        raise ValueError(
            f"bags of {size} tokens: expected at least 1 and at most {smallest}, what the smaller "
            f"of the two kinds has ({sizes['first']} and {sizes['second']} tokens)"
        )
    if bags < 2:
        raise ValueError(f"bags={bags}: expected at least 2, whose standard deviation is taken")
    rng = np.random.default_rng(seed)
    of_first, _ = entropies_of_tokens(_bags(first, size, bags, rng))
    of_second, _ = entropies_of_tokens(_bags(second, size, bags, rng))
    gaps = of_second - of_first
    return EntropyGap(
        first=float(of_first.mean()),
        second=float(of_second.mean()),
        gap=float(gaps.mean()),
        sd=float(gaps.std(ddof=1)),
        tokens=size,
    )


def _bags(
    strings: Sequence[Sequence[int]], size: int, bags: int, rng: np.random.Generator
) -> np.ndarray:
    rows: list[np.ndarray] = []
    for _ in range(bags):
        drawn: list[int] = []
        for number in rng.permutation(len(strings)):
            drawn += strings[number]
            if len(drawn) >= size:
                break
        rows.append(np.array(drawn[:size]))
    return np.stack(rows)
