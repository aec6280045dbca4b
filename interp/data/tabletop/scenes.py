"""Scenes of the tabletop: what lies where, what is asked for, and how the suites draw them.

A policy can ignore what its training scenes make redundant. So there is a suite in which the scene
tells the task, one in which only the instruction does, and a control in which both are needed. The
first two are after suites of LIBERO (Liu et al. 2023, arXiv 2306.03310), which LIBERO-PRO (Zhou et
al. 2025, arXiv 2510.03827) perturbs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from interp.errors import closest

Place = tuple[float, float]  # x, y in metres

ITEM_SIZE = 0.022  # half the side of a box, radius and half the height of a cylinder, in metres
BASKET: Place = (0.17, 0.0)
BASKET_HALF = 0.055  # half the inner side of the basket, in metres
MOST_ITEMS = 6  # that a scene can have
# Where items lie in the two suites of fixed layouts.
SLOTS: tuple[Place, ...] = (
    (-0.04, -0.17),
    (-0.04, 0.17),
    (-0.19, -0.10),
    (-0.19, 0.10),
    (-0.05, 0.0),
)
# The part of the table on which items lie, and how far they are apart, in metres.
REACH = ((-0.23, 0.05), (-0.22, 0.22))
APART = 0.09
_JITTER = 0.015  # of fixed places
_HOME = (0.02, 0.0, 0.15)
_HOME_JITTER = (0.02, 0.02, 0.01)


@dataclass(frozen=True)
class Item:
    """What a thing looks like.

    Attributes:
        name: what an instruction calls it.
        shape: "box" or "cylinder".
        colour: red, green and blue, each from 0 to 1.
        size: half its side, in metres.
    """

    name: str
    shape: str
    colour: tuple[float, float, float]
    size: float = ITEM_SIZE


ITEMS: Mapping[str, Item] = {
    item.name: item
    for item in (
        Item("red box", "box", (0.85, 0.1, 0.1)),
        Item("green cylinder", "cylinder", (0.1, 0.7, 0.15)),
        Item("blue box", "box", (0.1, 0.2, 0.9)),
        Item("yellow cylinder", "cylinder", (0.95, 0.85, 0.1)),
        Item("purple box", "box", (0.6, 0.1, 0.75)),
        Item("cyan cylinder", "cylinder", (0.1, 0.8, 0.85)),
    )
}
# Never in a training scene, by shape.
UNSEEN_ITEMS: Mapping[str, Item] = {
    "box": Item("white box", "box", (0.95, 0.95, 0.95)),
    "cylinder": Item("black cylinder", "cylinder", (0.05, 0.05, 0.05)),
}


@dataclass(frozen=True)
class Surface:
    """What the scene stands on: its colour, and its height above the usual table, in metres."""

    name: str
    colour: tuple[float, float, float]
    height: float = 0.0


TABLE = Surface("table", (0.75, 0.72, 0.68))
OTHER_SURFACES = (
    Surface("kitchen table", (0.45, 0.3, 0.2), 0.01),
    Surface("floor", (0.35, 0.4, 0.45), -0.02),
)

# How the tasks are asked for in training; the policy never reads the last one there. It is made of
# the words of the others, so that a policy without any other knowledge of language can read it.
PHRASINGS = (
    "put the {} in the basket",
    "place the {} into the basket",
    "move the {} to the basket",
    "drop the {} in the basket",
    "pick up the {} and put it in the basket",
)
HELD_OUT_PHRASING = "pick up the {} and place it into the basket"


@dataclass(frozen=True)
class Scene:
    """What a policy is put into, with the instruction that belongs to it.

    Attributes:
        suite, task: where it was drawn from.
        instruction: what the policy is asked for; any runner has to hand on this text.
        items: what each thing looks like, by its name in the scene. The name stays when the look is
            changed.
        places: where each lies, in metres.
        target: the thing that has to be in the basket in the end.
        trained_target: what had to be there in the scene that this one was made from.
        trained_place: where that was.
        hand: where the hand starts, x, y and z in metres.
        surface: what the scene stands on.
        further: another thing that has to be in the basket, too; "" for none.
        afterwards: the instruction from when the target is in the basket; "" where it stays.
    """

    suite: str
    task: str
    instruction: str
    items: Mapping[str, Item]
    places: Mapping[str, Place]
    target: str
    trained_target: str
    trained_place: Place
    hand: tuple[float, float, float]
    surface: Surface = TABLE
    further: str = ""
    afterwards: str = ""

    def __post_init__(self) -> None:
        if set(self.items) != set(self.places) or not 0 < len(self.items) <= MOST_ITEMS:
            raise ValueError(
                f"a scene of the items {sorted(self.items)} at the places of "
                f"{sorted(self.places)}: expected the same, 1 to {MOST_ITEMS}"
            )
        for role in (*self.goals, self.trained_target):
            if role not in self.items:
                raise ValueError(
                    f"the target {role!r} is not in the scene; nearest: "
                    f"{closest(role, sorted(self.items))}"
                )

    @property
    def goals(self) -> tuple[str, ...]:
        """What has to be in the basket in the end."""
        return (self.target, self.further) if self.further else (self.target,)

    @property
    def fingerprint(self) -> str:
        """A hash of the instruction, to compare with that of what a policy was given."""
        return instruction_hash(self.instruction)


def instruction_hash(instruction: str) -> str:
    """Returns a hash of an instruction, without regard to capitals and spaces around it.

    Example:
        >>> from interp.data.tabletop.scenes import instruction_hash
        >>> instruction_hash("Put it there ") == instruction_hash("put it there")
        True
    """
    return hashlib.sha256(instruction.strip().lower().encode()).hexdigest()[:16]


def distance(one: Place, other: Place) -> float:
    """Returns the distance of two places, in metres."""
    return float(np.hypot(one[0] - other[0], one[1] - other[1]))


@dataclass(frozen=True)
class Suite:
    """Tasks, and how the scenes of each are drawn.

    Attributes:
        name: its name.
        tasks: their names: those of the items to be put into the basket.
        new_targets: the items of a scene that no task of that scene asks for, by task.
        draw: makes the items and places of a scene of a task.
        draw_training: the same for demonstrations, where they differ.
    """

    name: str
    tasks: tuple[str, ...]
    new_targets: Callable[[str, Mapping[str, Place]], tuple[str, ...]]
    draw: Callable[[str, np.random.Generator], dict[str, Place]]
    draw_training: Callable[[str, np.random.Generator], dict[str, Place]] | None = None

    def scene(self, task: str, seed: int, number: int, *, training: bool = False) -> Scene:
        """Returns a scene of a task: the same for the same seed and number.

        Args:
            task: its name.
            seed: seed of the scenes.
            number: which of them.
            training: whether it is for a demonstration.

        Raises:
            ValueError: an unknown task.

        Example:
            >>> from interp.data.tabletop.scenes import SUITES
            >>> scene = SUITES["tabletop_object"].scene("red box", seed=0, number=0)
            >>> scene.instruction, len(scene.places)
            ('put the red box in the basket', 4)
        """
        if task not in self.tasks:
            raise ValueError(
                f"{self.name} has no task {task!r}; nearest: {closest(task, self.tasks)}"
            )
        rng = np.random.default_rng(
            [seed, number, self.tasks.index(task), sorted(SUITES).index(self.name)]
        )
        draw = self.draw_training if training and self.draw_training else self.draw
        places = draw(task, rng)
        phrasing = PHRASINGS[rng.integers(len(PHRASINGS))]
        jitter = rng.uniform(-1, 1, 3) * _HOME_JITTER
        x, y, z = (np.array(_HOME) + jitter).tolist()
        return Scene(
            suite=self.name,
            task=task,
            instruction=phrasing.format(task),
            items={name: ITEMS[name] for name in places},
            places=places,
            target=task,
            trained_target=task,
            trained_place=places[task],
            hand=(x, y, z),
        )


# Of each task of the suite in which the scene tells the task: which slot holds what. The target is
# in one of two slots, as in libero_object, and one of the others is the target of another task.
_LAYOUTS: Mapping[str, Mapping[str, int]] = {
    "red box": {"red box": 0, "purple box": 1, "green cylinder": 2, "cyan cylinder": 4},
    "green cylinder": {"green cylinder": 1, "cyan cylinder": 0, "blue box": 3, "purple box": 4},
    "blue box": {"blue box": 0, "cyan cylinder": 1, "yellow cylinder": 2, "purple box": 4},
    "yellow cylinder": {"yellow cylinder": 1, "purple box": 0, "red box": 3, "cyan cylinder": 4},
}
# Of the suite in which only the instruction tells it: one layout, whose last item no task asks for.
_ONE_LAYOUT = {name: slot for slot, name in enumerate(list(ITEMS)[: len(SLOTS)])}


def _jittered(layout: Mapping[str, int], rng: np.random.Generator) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for name, slot in layout.items():
        x, y = (np.array(SLOTS[slot]) + rng.uniform(-_JITTER, _JITTER, 2)).tolist()
        places[name] = (x, y)
    return places


def _by_scene(task: str, rng: np.random.Generator) -> dict[str, Place]:
    return _jittered(_LAYOUTS[task], rng)


def _by_text(task: str, rng: np.random.Generator) -> dict[str, Place]:  # noqa: ARG001
    return _jittered(_ONE_LAYOUT, rng)


def _anywhere(task: str, rng: np.random.Generator, others: int = 3) -> dict[str, Place]:
    names = [task, *rng.permutation([name for name in ITEMS if name != task])[:others].tolist()]
    # Otherwise the target would be the first item of every scene.
    rng.shuffle(names)
    return _scattered_places(names, rng)


def _scattered_places(names: Sequence[str], rng: np.random.Generator) -> dict[str, Place]:
    while True:
        drawn = np.stack([rng.uniform(*axis, len(names)) for axis in REACH], 1).tolist()
        places = {name: (x, y) for name, (x, y) in zip(names, drawn, strict=True)}
        if all(is_free(place, places, name) for name, place in places.items()):
            return places


def _anywhere_with_few(task: str, rng: np.random.Generator) -> dict[str, Place]:
    """With none to four other items: what a word means is learned where there is no choice."""
    return _anywhere(task, rng, int(rng.integers(5)))


def scattered(scene: Scene, rng: np.random.Generator) -> Scene:
    """Returns the same scene with its items anywhere on the table: where the target lies then says
    nothing about where it was in training.

    Args:
        scene: the scene.
        rng: what draws the places.
    """
    return replace(scene, places=_scattered_places(list(scene.places), rng))


def is_free(place: Place, places: Mapping[str, Place], but: str, apart: float = APART) -> bool:
    """Returns whether a place is far enough from those of all items but one.

    Args:
        place: the place.
        places: those of items.
        but: the item that does not count.
        apart: the distance that is enough, in metres.
    """
    return all(distance(place, other) >= apart for name, other in places.items() if name != but)


def _others(task: str, places: Mapping[str, Place]) -> tuple[str, ...]:
    return tuple(name for name in places if name != task)


def _never_asked_for(task: str, places: Mapping[str, Place]) -> tuple[str, ...]:  # noqa: ARG001
    return tuple(name for name in places if name not in _TRAINED)


_TRAINED = tuple(_LAYOUTS)
SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("tabletop_object", _TRAINED, _others, _by_scene),
        Suite("tabletop_goal", _TRAINED, _never_asked_for, _by_text),
        Suite("tabletop_decorrelated", tuple(ITEMS), _others, _anywhere, _anywhere_with_few),
    )
}


def suite(name: str) -> Suite:
    """Returns the suite of a name.

    Raises:
        ValueError: there is none, with the nearest one.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; nearest: {closest(name, sorted(SUITES))}")
    return SUITES[name]
