"""Perturbations of tabletop scenes, after the dimensions of LIBERO-PRO (Zhou et al. 2025, arXiv
2510.03827).

Each is a pure function of a scene and a random generator that returns another scene, whose
instruction belongs to it, and a record of what was changed. The names are the kinds of
`interp.memorization.robustness.PERTURBATIONS`, some followed by a detail: "shift 14 cm".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from interp.data.tabletop.scenes import (
    HELD_OUT_PHRASING,
    ITEMS,
    OTHER_SURFACES,
    PHRASINGS,
    REACH,
    UNSEEN_ITEMS,
    Scene,
    is_free,
    suite,
)
from interp.errors import closest

Record = dict[str, Any]
Change = Callable[[Scene, np.random.Generator], tuple[Scene, Record]]

# How near a shifted item may come to others, and how far beyond where items lie, in metres.
_APART = 0.07
_BEYOND = 0.03
_DIRECTIONS = 72  # of which the free ones are drawn from
_NONSENSE = "xxx"
_SHORT = PHRASINGS[:4]  # which leave room for the names of two items
_BRIGHTER = 0.4  # how far a colour goes to white, or to black
_BIGGER = 0.026  # metres


class CannotPerturb(ValueError):  # noqa: N818 - no error of the caller: the scene does not allow it
    """The scene allows no such change, such as a shift to where another item lies."""


def perturb(scene: Scene, name: str, rng: np.random.Generator) -> tuple[Scene, Record]:
    """Returns a perturbed scene and what was changed in it.

    Args:
        scene: a scene as its suite draws it.
        name: one of `NAMES`; "shift" with a distance in cm.
        rng: what decides between the ways in which it can be done.

    Raises:
        ValueError: an unknown perturbation.
        CannotPerturb: a scene that does not allow it.

    Example:
        >>> from interp.data.tabletop.perturbations import perturb
        >>> from interp.data.tabletop.scenes import SUITES
        >>> scene = SUITES["tabletop_object"].scene("red box", seed=0, number=0)
        >>> swapped, record = perturb(scene, "swap", np.random.default_rng(0))
        >>> swapped.places[record["partner"]] == scene.places["red box"]
        True
    """
    check_name(name)
    if name not in _CHANGES:
        return _shift(scene, _shifted_by(name), rng)
    return _CHANGES[name](scene, rng)


def check_name(name: str) -> None:
    """Checks that there is a perturbation of a name.

    Raises:
        ValueError: there is none, with the nearest one.
    """
    if name not in _CHANGES and not _shifted_by(name):
        raise ValueError(f"unknown perturbation {name!r}; nearest: {closest(name, NAMES)}")


def _shifted_by(name: str) -> float:
    """The metres of a shift; 0 for another name."""
    shift = re.fullmatch(r"shift (\d+(?:\.\d+)?) cm", name)
    return 0.0 if shift is None else float(shift[1]) / 100


def _clean(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:  # noqa: ARG001
    return scene, {}


def _object(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:
    """The target is paler, darker or bigger."""
    look = scene.items[scene.target]
    way = ("paler", "darker", "bigger")[rng.integers(3)]
    red, green, blue = look.colour
    if way == "bigger":
        other = replace(look, size=_BIGGER)
    else:
        end = 1.0 if way == "paler" else 0.0
        mixed = [part + _BRIGHTER * (end - part) for part in (red, green, blue)]
        other = replace(look, colour=(mixed[0], mixed[1], mixed[2]))
    return _looking(scene, scene.target, other), {"way": way}


def _looking(scene: Scene, name: str, look: Any) -> Scene:
    return replace(scene, items={**scene.items, name: look})


def _swap(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:
    """The target and another item exchange their places."""
    partner = _one_of(sorted(set(scene.items) - {scene.target}), rng, "no other item to swap with")
    places = {
        **scene.places,
        scene.target: scene.places[partner],
        partner: scene.places[scene.target],
    }
    return replace(scene, places=places), {"partner": partner}


def _shift(scene: Scene, metres: float, rng: np.random.Generator) -> tuple[Scene, Record]:
    """The target lies so far from its place, in a direction in which nothing is in the way."""
    x, y = scene.places[scene.target]
    (least_x, most_x), (least_y, most_y) = REACH
    free: list[tuple[float, float]] = []
    for angle in 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS:
        to = (x + metres * float(np.cos(angle)), y + metres * float(np.sin(angle)))
        is_on_table = (
            least_x - _BEYOND <= to[0] <= most_x and least_y - _BEYOND <= to[1] <= most_y + _BEYOND
        )
        if is_on_table and is_free(to, scene.places, scene.target, _APART):
            free.append(to)
    if not free:
        raise CannotPerturb(f"no free place {100 * metres:g} cm from the target at {(x, y)}")
    to = free[rng.integers(len(free))]
    return replace(scene, places={**scene.places, scene.target: to}), {"to": to, "metres": metres}


def _semantic(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:  # noqa: ARG001
    """The same is asked for in other words."""
    return _asking(scene, HELD_OUT_PHRASING.format(scene.target))


def _asking(scene: Scene, instruction: str) -> tuple[Scene, Record]:
    return replace(scene, instruction=instruction), {"instruction": instruction}


def _task(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:
    """Another item is asked for, and has to be in the basket; no training scene of this kind asked
    for it."""
    candidates = suite(scene.suite).new_targets(scene.task, scene.places)
    target = _one_of(candidates, rng, "no other item to ask for")
    changed, record = _asking(scene, _phrasing(rng).format(target))
    return replace(changed, target=target), {**record, "target": target}


def _other_task(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:
    """The instruction of another task of the suite; the goal stays, so that success means that the
    text was ignored."""
    tasks = [task for task in suite(scene.suite).tasks if task != scene.task]
    task = _one_of(tasks, rng, "the suite has no other task")
    changed, record = _asking(scene, _phrasing(rng).format(task))
    return changed, {**record, "task": task}


def _phrasing(rng: np.random.Generator, phrasings: Sequence[str] = PHRASINGS) -> str:
    return phrasings[int(rng.integers(len(phrasings)))]


def _composition(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:
    """One instruction asks for two items, each of which is asked for alone in training."""
    further = _second_task(scene, rng)
    both = f"{scene.target} and the {further}"
    changed, record = _asking(scene, _phrasing(rng, _SHORT).format(both))
    return replace(changed, further=further), {**record, "further": further}


def _sequence(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:
    """The same two items, each asked for alone, one after the other: what a composition needs but
    for reading an instruction for both."""
    further = _second_task(scene, rng)
    afterwards = _phrasing(rng, _SHORT).format(further)
    changed = replace(scene, further=further, afterwards=afterwards)
    return changed, {"further": further, "afterwards": afterwards}


def _second_task(scene: Scene, rng: np.random.Generator) -> str:
    others = [task for task in suite(scene.suite).tasks if task != scene.target]
    present = [task for task in others if task in scene.places]
    return _one_of(present, rng, "no item of another task to put into the basket, too")


def _environment(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:
    """Another surface, of another colour and height."""
    surface = OTHER_SURFACES[rng.integers(len(OTHER_SURFACES))]
    return replace(scene, surface=surface), {"surface": surface.name}


def _nonsense(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:  # noqa: ARG001
    return _asking(scene, _NONSENSE)


def _random_words(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:
    """As many words of the instructions, none of which names or describes an item."""
    describing = {word for item in ITEMS for word in item.split()}
    words = sorted({word for text in PHRASINGS for word in text.replace("{}", "").split()})
    assert not describing & set(words)
    count = len(scene.instruction.split())
    return _asking(scene, " ".join(rng.choice(words, count).tolist()))


def _unseen(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Record]:  # noqa: ARG001
    """An item that was in no training scene lies in the place of the target."""
    look = UNSEEN_ITEMS[scene.items[scene.target].shape]
    return _looking(scene, scene.target, look), {"item": look.name}


def _one_of(names: Any, rng: np.random.Generator, otherwise: str) -> str:
    if not names:
        raise CannotPerturb(otherwise)
    return names[rng.integers(len(names))]


_CHANGES: Mapping[str, Change] = {
    "clean": _clean,
    "object": _object,
    "swap": _swap,
    "semantic": _semantic,
    "task": _task,
    "environment": _environment,
    "corrupted xxx": _nonsense,
    "corrupted random words": _random_words,
    "other_task": _other_task,
    "unseen": _unseen,
    "composition": _composition,
    "sequence": _sequence,
}
NAMES: tuple[str, ...] = (*_CHANGES, "shift 7 cm", "shift 14 cm")
