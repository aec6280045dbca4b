"""How figures spell names and mark them: words instead of identifiers, and one colour and marker
per method in all figures of the repository."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Look(NamedTuple):
    """How a name appears in a figure.

    Attributes:
        words: the name as a reader would spell it.
        colour: a hexadecimal RGB value.
        marker: matplotlib's letter of a marker.
    """

    words: str
    colour: str
    marker: str


_SPELLED = {
    "unitmem": "UnitMem",
    "UnitMem, 1 view": "UnitMem, no augmentation",
    "z_score": "z-score",
    "zero_out": "zero-out",
    "held out loss": "held-out loss",
    "iar_memorization": "IAR memorization",
    "as active": "random, as active",
}
# Colours of Okabe and Ito and of Paul Tol, which differ for colour-blind readers too. Controls are
# grey or brown. Methods that figures compare within one panel are far apart; each also has its
# marker, because twelve methods are more than colours alone can distinguish.
_NAMED = {
    "activation": ("#56B4E9", "o"),
    "z-score": ("#332288", "s"),
    "UnitMem": ("#D55E00", "^"),
    "UnitMem, no augmentation": ("#E69F00", "v"),
    "gradient x activation": ("#009E73", "o"),
    "absolute gradient x activation": ("#0072B2", "D"),
    "attribution patching": ("#CC79A7", "P"),
    "integrated gradients": ("#882255", "X"),
    "slimming": ("#999933", "p"),
    "hard concrete": ("#44AA99", "h"),
    "zero-out": ("#AA4499", "<"),
    "neuron flipping": ("#661100", ">"),
    "causal tracing": ("#DDAA33", "d"),
    "random": ("#777777", "s"),
    "random, as active": ("#000000", "d"),
    "random, in the blocks of gradient x activation": ("#BBBBBB", "X"),
    "lowest": ("#A6761D", "v"),
    "smallest": ("#CAB2A0", "P"),
    # Grey as random units are, and after them: next to them it gets another colour.
    "by chance": ("#777777", "s"),
}
_PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#332288",
    "#882255",
    "#999933",
    "#44AA99",
    "#AA4499",
    "#661100",
)
_MARKERS = "os^DvPX<>phd"
_IDENTIFIER = re.compile(r"\b[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+\b")


def in_words(name: object) -> str:
    """Returns a name as a reader would spell it: identifiers of methods become words.

    Example:
        >>> from interp.reporting.looks import in_words
        >>> in_words("gradient_x_activation, 10% halved"), in_words("unitmem")
        ('gradient x activation, 10% halved', 'UnitMem')
    """
    text = str(name)
    if text in _SPELLED:
        return _SPELLED[text]

    def spelled(match: re.Match[str]) -> str:
        return _SPELLED.get(match[0], match[0].replace("_", " "))

    return re.sub(r"\bunitmem\b", "UnitMem", _IDENTIFIER.sub(spelled, text))


def in_percent(share: float, digits: int = 6) -> str:
    """Returns a share in percent with its significant digits, so that a small one is not 0%.

    Args:
        share: the share, 1 for all.
        digits: number of significant digits: six show a setting as it was given.

    Example:
        >>> from interp.reporting.looks import in_percent
        >>> in_percent(0.05), in_percent(0.0005), in_percent(0.9996, 2), in_percent(0.00123, 2)
        ('5%', '0.05%', '100%', '0.12%')
    """
    rounded = float(f"{100 * share:.{digits}g}")
    return f"{rounded:.15g}%"


def looks(names: Iterable[object]) -> dict[str, Look]:
    """Returns words, colour and marker for each name, no two of which share a colour.

    Localization methods and their controls look the same in all figures; other names get the
    colours that are left, in order of appearance.

    Args:
        names: what the colours distinguish; repeated names count once.

    Raises:
        ValueError: more names than there are colours, or two names that are spelled alike.

    Example:
        >>> from interp.reporting.looks import looks
        >>> looks(["memorized", "z_score"])["z_score"]
        Look(words='z-score', colour='#332288', marker='s')
    """
    words = {str(name): in_words(name) for name in names}
    name_of_words: dict[str, str] = {}
    for name, spelled in words.items():
        first = name_of_words.setdefault(spelled, name)
        if first != name:
            raise ValueError(
                f"the names {first!r} and {name!r} are both spelled {spelled!r} in a figure: "
                "expected names that can be told apart; rename one, or join their rows"
            )
    marks: dict[str, tuple[str, str]] = {}
    taken: set[str] = set()
    for spelled, (colour, marker) in _NAMED.items():
        name = name_of_words.get(spelled)
        if name is not None and colour not in taken:
            marks[name] = colour, marker
            taken.add(colour)
    others = [name for name in words if name not in marks]
    free = [
        (colour, marker)
        for colour, marker in zip(_PALETTE, _MARKERS, strict=True)
        if colour not in taken
    ]
    if len(others) > len(free):
        raise ValueError(
            f"expected at most {len(free)} names to tell apart by colour, got {len(others)}: "
            f"{', '.join(others)}; draw fewer, or one panel for each part of them"
        )
    marks |= dict(zip(others, free, strict=False))
    return {name: Look(spelled, *marks[name]) for name, spelled in words.items()}
