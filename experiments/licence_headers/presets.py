"""The presets: the number of texts of each kind, and their length."""

from __future__ import annotations

from dataclasses import dataclass

CHARACTERS = 900  # about 200 tokens, a handful of windows


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The size of a corpus.

    Attributes:
        licences, code, prose: largest number of texts of this kind. Of headers, every wording that
            is found is taken.
        characters: largest number of characters of a licence, a header or a piece of code.
        seeds: number of corpora; only the prose depends on the seed.
    """

    licences: int
    code: int
    prose: int
    characters: int = CHARACTERS
    seeds: int = 1


PRESETS = {
    "smoke": Preset(licences=4, code=4, prose=4),
    "small": Preset(licences=40, code=30, prose=40),
}
