"""The presets: how many texts of each kind there are."""

from __future__ import annotations

from dataclasses import dataclass

CHARACTERS = 900  # about 200 tokens, a handful of windows


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The corpus.

    Attributes:
        licences, code, prose: at most so many texts; headers are as many as there are wordings.
        characters: of each text.
        seeds: number of corpora; prose depends on the seed.
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
