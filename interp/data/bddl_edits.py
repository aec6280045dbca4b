"""The edits of LIBERO-PRO on the trees of task files: each returns a new tree.

Where a file spells a name in several ways, with other capitals, the new tree has the spelling of
its declaration throughout: to LIBERO these are the same.

The rules are those of the code of LIBERO-PRO (arXiv 2510.03827, `perturbation.py`). What that code
draws is an argument here, so that the same arguments give the same task. No rule was released with
the files of the graded shift: `shift_target` and `shift_of_label` say what these files have in
common, and where they do not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal, NamedTuple

from interp.data.bddl import Node, Problem, Region, Tree, problem, section, to_text
from interp.errors import closest

__all__ = [
    "SURFACES",
    "Shift",
    "Surface",
    "SurfaceChange",
    "change_language",
    "change_surface",
    "change_task",
    "draw_surface",
    "draw_swaps",
    "replace_objects",
    "shift_of_label",
    "shift_target",
    "surface_of",
    "swap_positions",
]


class Surface(NamedTuple):
    """What the objects of a scene stand on.

    Attributes:
        arena: what the problem is called where this is its surface.
        category: what the surface is declared as.
        half_size: half its length along x and y, in metres.
    """

    arena: str
    category: str
    half_size: tuple[float, float]


# The five of LIBERO-PRO. The arm reaches no further on the floor than on a table, so that the floor
# is taken to be as large as the main table.
SURFACES: Mapping[str, Surface] = {
    "main_table": Surface("LIBERO_Tabletop_Manipulation", "table", (0.5, 0.6)),
    "kitchen_table": Surface("LIBERO_Kitchen_Tabletop_Manipulation", "kitchen_table", (0.5, 0.6)),
    "living_room_table": Surface(
        "LIBERO_Living_Room_Tabletop_Manipulation", "living_room_table", (0.35, 0.8)
    ),
    "study_table": Surface("LIBERO_Study_Tabletop_Manipulation", "study_table", (0.5, 0.6)),
    "floor": Surface("LIBERO_Floor_Manipulation", "floor", (0.5, 0.6)),
}

# What the suite libero_object_temp_x0.1 calls 0.1 is 7 cm.
_METRES_PER_LABEL = 0.7
_LABELS = (0.1, 0.2, 0.3, 0.4, 0.5)
# A distractor is in the way if the centres of the two places come this near, in metres along x and
# along y. In the shipped files all but one within 6 cm are removed, and from 8 cm on most are kept.
_CLEARANCE = 0.07
# How far distractors that are in the way are sent along x, in metres: to behind the camera.
_REMOVED_TO = 10.0


@dataclass(frozen=True, slots=True)
class Shift:
    """What a shift of a target changed.

    Attributes:
        target: the object that was moved.
        axis: "x" or "y".
        metres: how far, with its direction.
        removed: distractors that were in the way and are no longer on the table. Where there are
            any, the scene differs by more than the place of the target.
    """

    target: str
    axis: Literal["x", "y"]
    metres: float
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SurfaceChange:
    """What a change of the surface changed.

    Attributes:
        old: name of the surface before.
        new: name of the surface now.
        outside: things whose place reaches beyond the edge of the new surface. A fixture then
            stands in the air, and an object may fall.
    """

    old: str
    new: str
    outside: tuple[str, ...]


def swap_positions(tree: Tree, pairs: Iterable[tuple[str, str]]) -> Tree:
    """Exchanges the places of objects at reset; instruction and goal stay.

    Args:
        tree: a whole task file.
        pairs: names of objects or fixtures that exchange what they are `On` in init.

    Raises:
        ValueError: a name is in two pairs, or is not `On` anything at reset.

    Example:
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse("(define (:init (On milk_1 floor_left) (On soup_1 floor_right)))")
        >>> print(bddl.to_text(bddl_edits.swap_positions(tree, [("milk_1", "soup_1")])))
        (define (:init (On milk_1 floor_right) (On soup_1 floor_left)))
    """
    tree = _as_declared(tree)
    init = section(tree, ":init")
    places = _places(init)
    exchanged: dict[str, str] = {}
    for first, second in pairs:
        for name in (first, second):
            if name not in places:
                raise ValueError(
                    f"{name!r} is not On anything at reset; nearest: {closest(name, places)}"
                )
            if name in exchanged or first == second:
                raise ValueError(f"{name!r} is given twice; expected each name in one pair at most")
        exchanged[first] = places[second]
        exchanged[second] = places[first]

    facts: list[Node] = []
    for fact in init[1:]:
        match fact:
            # The first such fact says where a thing is; a further one stays as it is.
            case ("On", str(name), str(place)) if places[name] == place:
                facts.append(("On", name, exchanged.get(name, place)))
            case _:
                facts.append(fact)
    return _with_section(tree, (":init", *facts))


def draw_swaps(
    tree: Tree, partners: Mapping[str, Sequence[str]], rng: Random
) -> tuple[tuple[str, str], ...]:
    """Draws the pairs for `swap_positions` by the rule of LIBERO-PRO.

    The objects of interest are shuffled, and each that is in no pair yet takes one of its partners
    at random. An object without a free partner is skipped, so that there may be no pair at all.

    Args:
        tree: a whole task file.
        partners: for each object those that it may exchange places with
            (`ood_spatial_relation.yaml`).
        rng: what is drawn with. LIBERO-PRO does not seed this draw.

    Raises:
        ValueError: the file lacks a section, or one is malformed.

    Example:
        >>> import random
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse('''(define (:obj_of_interest milk_1)
        ...     (:init (On milk_1 floor_left) (On soup_1 floor_right)))''')
        >>> bddl_edits.draw_swaps(tree, {"milk_1": ["soup_1"]}, random.Random(0))
        (('milk_1', 'soup_1'),)
    """
    tree = _as_declared(tree)
    places = _places(section(tree, ":init"))
    of_interest: list[str] = []
    for word in section(tree, ":obj_of_interest")[1:]:
        # A part, such as cabinet_1_top_region, counts as the thing that it belongs to.
        numbered = re.match(r"\w+_\d+", to_text(word))
        if numbered:
            of_interest.append(numbered.group())
    rng.shuffle(of_interest)

    pairs: list[tuple[str, str]] = []
    used: set[str] = set()
    for name in of_interest:
        allowed = partners.get(name, ())
        free = [other for other in allowed if other in places and other not in {name, *used}]
        if name in places and name not in used and free:
            other = rng.choice(free)
            pairs.append((name, other))
            used |= {name, other}
    return tuple(pairs)


def change_language(tree: Tree, language: str) -> Tree:
    """Replaces the instruction; everything else stays.

    Args:
        tree: a whole task file.
        language: the new instruction. It may be empty.

    Raises:
        ValueError: the instruction holds a parenthesis or a semicolon, which a file cannot store.

    Example:
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse("(define (:language pick up the milk))")
        >>> print(bddl.to_text(bddl_edits.change_language(tree, "grab the milk")))
        (define (:language grab the milk))
    """
    forbidden = re.search(r"[();]", language)
    if forbidden:
        raise ValueError(
            f"the instruction {language!r} holds {forbidden.group()!r}; "
            "expected words without parentheses and semicolons, which delimit words in the file"
        )
    return _with_section(tree, (":language", *language.split()))


def change_task(tree: Tree, language: str, goal: Tree, obj_of_interest: Sequence[str]) -> Tree:
    """Replaces what is to be done: instruction, goal and objects of interest. The scene stays.

    Whether the names in the goal are declared is checked by `bddl_validation`, which counts the
    tasks where one is not.

    Args:
        tree: a whole task file.
        language: the new instruction.
        goal: the new goal, such as `parse("(And (On plate_1 stove_1))")`.
        obj_of_interest: names of the things that the new task is about.

    Raises:
        ValueError: the instruction holds a parenthesis or a semicolon, which a file cannot store.

    Example:
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse('''(define (:language lift the milk) (:obj_of_interest milk_1)
        ...     (:goal (And (Up milk_1))))''')
        >>> goal = bddl.parse("(And (Up soup_1))")
        >>> new = bddl_edits.change_task(tree, "lift the soup", goal, ["soup_1"])
        >>> bddl.section(new, ":goal")
        (':goal', ('And', ('Up', 'soup_1')))
    """
    changed = change_language(tree, language)
    changed = _with_section(changed, (":goal", goal))
    return _with_section(changed, (":obj_of_interest", *obj_of_interest))


def replace_objects(tree: Tree, categories: Mapping[str, str], *, rename: bool = True) -> Tree:
    """Replaces objects or fixtures by those of another category; instruction and layout stay.

    Args:
        tree: a whole task file.
        categories: the new category of each category that is replaced.
        rename: also rename the things and their regions after the new category, in all sections, as
            LIBERO-PRO does. Otherwise only the categories change.

    Raises:
        ValueError: the file declares nothing of a category, or two things or regions would have the
            same name.

    Example:
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse('''(define (problem LIBERO_Floor_Manipulation)
        ...     (:language lift the milk) (:regions) (:fixtures floor - floor)
        ...     (:objects milk_1 - milk) (:obj_of_interest milk_1)
        ...     (:init) (:goal (And (Up milk_1))))''')
        >>> new = bddl.problem(bddl_edits.replace_objects(tree, {"milk": "yellow_milk"}))
        >>> new.objects, new.goal, new.language
        ({'yellow_milk_1': 'yellow_milk'}, (('Up', 'yellow_milk_1'),), 'lift the milk')
    """
    tree = _as_declared(tree)
    declared = problem(tree)
    present = {*declared.fixtures.values(), *declared.objects.values()}
    for category in categories:
        if category not in present:
            raise ValueError(
                f"nothing of the category {category!r} is declared; "
                f"nearest: {closest(category, sorted(present))}"
            )
    in_names = categories if rename else {}
    names = _new_names(declared, in_names)
    edited: list[Node] = []
    for node in tree:
        match node:
            case (":fixtures" | ":objects" as head, *words):
                edited.append((head, *_redeclared(words, names, categories)))
            case (":regions" as head, *regions):
                edited.append((head, *(_moved(region, names, in_names) for region in regions)))
            case (":obj_of_interest" | ":init" | ":goal", *_):
                edited.append(_renamed(node, names))
            case _:
                edited.append(node)
    return tuple(edited)


def shift_of_label(tree: Tree, target: str, axis: Literal["x", "y"], label: float) -> float:
    """Returns the metres by which LIBERO-PRO shifts a target, with their direction.

    A label of 0.1 is 7 cm, and the target is shifted towards the middle of its surface: so are the
    targets of the ten suites `libero_object_temp_x0.1` to `libero_object_temp_y0.5`.

    Args:
        tree: a whole task file.
        target: the object that is to be moved.
        axis: along which axis of the surface.
        label: 0.1, 0.2, 0.3, 0.4 or 0.5.

    Raises:
        ValueError: an unknown axis or label, or the target has no place of its own.

    Example:
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse('''(define (problem LIBERO_Floor_Manipulation)
        ...     (:language lift the milk)
        ...     (:regions (left (:target floor) (:ranges ((0.1 -0.2 0.1 -0.2)))))
        ...     (:fixtures floor - floor) (:objects milk_1 - milk) (:obj_of_interest milk_1)
        ...     (:init (On milk_1 floor_left)) (:goal (And (Up milk_1))))''')
        >>> bddl_edits.shift_of_label(tree, "milk_1", "x", 0.3)
        -0.21
    """
    if label not in _LABELS:
        expected = ", ".join(str(each) for each in _LABELS)
        raise ValueError(f"the label is {label}; expected one of {expected}")
    along = _axis_number(axis)
    declared = problem(_as_declared(tree))
    middle = _middle(_own_region(declared, target))[along]
    direction = -1 if middle > 0 else 1
    return round(direction * label * _METRES_PER_LABEL, 6)


def shift_target(
    tree: Tree, target: str, axis: Literal["x", "y"], metres: float
) -> tuple[Tree, Shift]:
    """Moves the place of one object; instruction and goal stay.

    Distractors that lie in the way are sent 10 m off the surface, as LIBERO-PRO does. Which of them
    it sends was decided by hand there; here it is those whose places the target comes nearer to
    than 7 cm along both axes, on its way or at its end. Things that the goal is about are never
    sent away: without the basket, the task cannot be done.

    Args:
        tree: a whole task file.
        target: the object that is moved.
        axis: along which axis of the surface.
        metres: how far. Its sign is the direction.

    Returns:
        The new tree, and what was changed.

    Raises:
        ValueError: an unknown axis; a distance that is zero or not finite; the target has no place
            of its own, would leave the surface, or would come to lie on something that the goal is
            about.

    Example:
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse('''(define (problem LIBERO_Floor_Manipulation)
        ...     (:language lift the milk)
        ...     (:regions (left (:target floor) (:ranges ((0.1 -0.2 0.1 -0.2)))))
        ...     (:fixtures floor - floor) (:objects milk_1 - milk) (:obj_of_interest milk_1)
        ...     (:init (On milk_1 floor_left)) (:goal (And (Up milk_1))))''')
        >>> moved, shift = bddl_edits.shift_target(tree, "milk_1", "y", 0.07)
        >>> bddl.problem(moved).regions[0].ranges
        ((0.1, -0.13, 0.1, -0.13),)
        >>> shift
        Shift(target='milk_1', axis='y', metres=0.07, removed=())
    """
    along = _axis_number(axis)
    if not math.isfinite(metres) or metres == 0:
        raise ValueError(f"the shift is {metres} m; expected a distance other than 0")
    tree = _as_declared(tree)
    declared = problem(tree)
    region = _own_region(declared, target)
    _check_on_surface(region, target, along, metres)

    # By which axis and how far each region is moved.
    offsets = {region.full_name: (along, metres)}
    removed: list[str] = []
    of_goal = _things_of_goal(declared)
    regions = {each.full_name: each for each in declared.regions}
    for name, place in _places(section(tree, ":init")).items():
        other = regions.get(place)
        if other is None or not other.ranges or other.target != region.target or name == target:
            continue
        if not _is_in_way(other, region, along, metres):
            continue
        if name in of_goal:
            raise ValueError(
                f"{target!r} would come to lie on {name!r}, which the goal is about, after "
                f"{metres} m along {axis}; expected a shorter distance or the other direction"
            )
        offsets[place] = (0, _REMOVED_TO)  # along x
        removed.append(name)

    moved: list[Node] = [":regions"]
    for node, each in zip(section(tree, ":regions")[1:], declared.regions, strict=True):
        offset = offsets.get(each.full_name)
        moved.append(node if offset is None else _translated(node, *offset))
    return _with_section(tree, tuple(moved)), Shift(target, axis, metres, tuple(removed))


def surface_of(tree: Tree) -> str:
    """Returns the name of the surface that a task takes place on, one of `SURFACES`.

    Args:
        tree: a whole task file.

    Raises:
        ValueError: the file declares none of them, or more than one.

    Example:
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse('''(define (problem LIBERO_Floor_Manipulation)
        ...     (:language lift the milk) (:regions) (:fixtures floor - floor)
        ...     (:objects milk_1 - milk) (:obj_of_interest milk_1)
        ...     (:init) (:goal (And (Up milk_1))))''')
        >>> bddl_edits.surface_of(tree)
        'floor'
    """
    found = [name for name in problem(tree).fixtures if name in SURFACES]
    if len(found) != 1:
        raise ValueError(
            f"the file declares {', '.join(found) or 'no surface'}; "
            f"expected one of {', '.join(SURFACES)}"
        )
    return found[0]


def draw_surface(tree: Tree, rng: Random) -> str:
    """Draws another surface for `change_surface`, each with the same chance.

    LIBERO-PRO documents this draw, but its code always takes the table of the living room.

    Args:
        tree: a whole task file.
        rng: what is drawn with.

    Raises:
        ValueError: the file declares no surface, or more than one.

    Example:
        >>> import random
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse('''(define (problem LIBERO_Floor_Manipulation)
        ...     (:language lift the milk) (:regions) (:fixtures floor - floor)
        ...     (:objects milk_1 - milk) (:obj_of_interest milk_1)
        ...     (:init) (:goal (And (Up milk_1))))''')
        >>> bddl_edits.draw_surface(tree, random.Random(0))
        'study_table'
    """
    now = surface_of(tree)
    return rng.choice([name for name in SURFACES if name != now])


def change_surface(tree: Tree, surface: str) -> tuple[Tree, SurfaceChange]:
    """Replaces the surface, and the room around it; instruction, objects and goal stay.

    Places keep their coordinates relative to the surface. Whether all of it stands still there is
    for the simulator to say.

    Args:
        tree: a whole task file.
        surface: the new one, a name in `SURFACES`.

    Returns:
        The new tree, and what was changed.

    Raises:
        ValueError: an unknown surface, the one that the task has already, or a file without exactly
            one surface.

    Example:
        >>> from interp.data import bddl, bddl_edits
        >>> tree = bddl.parse('''(define (problem LIBERO_Floor_Manipulation)
        ...     (:language lift the milk) (:regions (left (:target floor)))
        ...     (:fixtures floor - floor) (:objects milk_1 - milk) (:obj_of_interest milk_1)
        ...     (:init (On milk_1 floor_left)) (:goal (And (Up milk_1))))''')
        >>> moved, change = bddl_edits.change_surface(tree, "main_table")
        >>> new = bddl.problem(moved)
        >>> new.arena, new.fixtures
        ('LIBERO_Tabletop_Manipulation', {'main_table': 'table'})
        >>> new.init, change.outside
        ((('On', 'milk_1', 'main_table_left'),), ())
    """
    if surface not in SURFACES:
        raise ValueError(
            f"unknown surface {surface!r}; expected one of {', '.join(SURFACES)}; "
            f"nearest: {closest(surface, SURFACES)}"
        )
    old = surface_of(tree)
    if surface == old:
        raise ValueError(f"the task is on {surface} already; expected another surface")
    tree = _as_declared(tree)
    declared = problem(tree)
    new = SURFACES[surface]
    names = {old: surface}
    too_far: set[str] = set()
    for region in declared.regions:
        if region.target == old:
            names[region.full_name] = f"{surface}_{region.name}"
            if not _fits(region, new):
                too_far.add(region.full_name)
    places = _places(section(tree, ":init"))
    outside = tuple(name for name, place in places.items() if place in too_far)

    edited: list[Node] = []
    for node in tree:
        match node:
            case ("problem", *_):
                edited.append(("problem", new.arena))
            case (":fixtures" as head, *words):
                categories = {SURFACES[old].category: new.category}
                edited.append((head, *_redeclared(words, names, categories)))
            case (":regions" as head, *regions):
                edited.append((head, *(_moved(region, names, {}) for region in regions)))
            case (":obj_of_interest" | ":init" | ":goal", *_):
                edited.append(_renamed(node, names))
            case _:
                edited.append(node)
    return tuple(edited), SurfaceChange(old, surface, outside)


def _replace_parts(name: str, categories: Mapping[str, str]) -> str:
    """Replaces categories within a name, where they are whole words between underscores.

    All at once: one after the other, a category that is both replaced and a replacement would
    change twice.
    """
    if not categories:
        return name
    # Of alternatives the first that fits is taken: `milk` would take the beginning of
    # `milk_carton`.
    longest_first = sorted(categories, key=len, reverse=True)
    either = "|".join(re.escape(category) for category in longest_first)
    # In front and behind: an underscore, or nothing.
    whole_words = rf"(?<![^_])(?:{either})(?![^_])"
    return re.sub(whole_words, lambda match: categories[match.group()], name)


def _new_names(declared: Problem, categories: Mapping[str, str]) -> dict[str, str]:
    """The new name of everything that a fact may mention."""
    names: dict[str, str] = {}
    for name, category in (*declared.fixtures.items(), *declared.objects.items()):
        names[name] = name
        is_called_after_it = name == category or name.startswith(f"{category}_")
        if category in categories and is_called_after_it:
            names[name] = categories[category] + name.removeprefix(category)
    for region in declared.regions:
        target = names.get(region.target, region.target)
        region_name = _replace_parts(region.name, categories)
        names[region.full_name] = f"{target}_{region_name}"
    for name, times in Counter(names.values()).items():
        if times > 1:
            raise ValueError(
                f"{times} things would be called {name!r}; "
                "expected a category that none of them has, or rename=False"
            )
    return names


def _redeclared(
    words: Sequence[Node], names: Mapping[str, str], categories: Mapping[str, str]
) -> list[Node]:
    """Declarations `name - category` with new names and categories."""
    new: list[Node] = []
    for word in words:
        # A category stands behind a dash.
        is_category = bool(new) and new[-1] == "-"
        mapping = categories if is_category else names
        new.append(_renamed(word, mapping))
    return new


def _moved(region: Node, names: Mapping[str, str], categories: Mapping[str, str]) -> Node:
    """A region with its new name and that of its target."""
    match region:
        case (str(name), *attributes):
            new_attributes = [_renamed(attribute, names) for attribute in attributes]
            return (_replace_parts(name, categories), *new_attributes)
        case _:
            return region


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    if isinstance(node, str):
        return names.get(node, node)
    return tuple(_renamed(child, names) for child in node)


def _as_declared(tree: Tree) -> Tree:
    """The tree with each name as it is declared, or else as it is first written, and with the words
    that edits look for as they look for them.

    LIBERO reads files in lower case. An edit that compared names with their case would pass over
    some of what it has to change, without a word.
    """
    spelling = {"on": "On", ":target": ":target", ":ranges": ":ranges"}
    for node in tree:
        if _head(node) in (":fixtures", ":objects"):
            for before, word in pairwise(node):
                # What stands behind a dash is a category.
                if isinstance(word, str) and "-" not in (before, word):
                    spelling.setdefault(word.lower(), word)

    # The name of a region in facts is made of that of its target and its own.
    spelled: list[Node] = []
    for node in tree:
        if _head(node) != ":regions":
            spelled.append(node)
            continue
        regions = [_spelled_region(region, spelling) for region in node[1:]]
        spelled.append((":regions", *regions))
    return tuple(
        _spelled(node, spelling) if _head(node) in (":obj_of_interest", ":init", ":goal") else node
        for node in spelled
    )


def _head(node: Node) -> Node | None:
    """What a list is called; None for a word, and for a list of nothing."""
    return node[0] if node and not isinstance(node, str) else None


def _spelled_region(region: Node, spelling: dict[str, str]) -> Node:
    """A region with its target as it is spelled elsewhere; its name in facts is noted."""
    match region:
        case (str(name), *attributes):
            spelled = [_spelled(attribute, spelling) for attribute in attributes]
            for attribute in spelled:
                match attribute:
                    case (":target", str(target)):
                        full_name = f"{target}_{name}"
                        spelling.setdefault(full_name.lower(), full_name)
                    case _:
                        pass
            return (name, *spelled)
        case _:
            return region


def _spelled(node: Node, spelling: dict[str, str]) -> Node:
    if isinstance(node, str):
        return spelling.setdefault(node.lower(), node)
    return tuple(_spelled(child, spelling) for child in node)


def _places(init: Tree) -> dict[str, str]:
    """What each thing is `On` at reset: its first such fact."""
    places: dict[str, str] = {}
    for fact in init[1:]:
        match fact:
            case ("On", str(name), str(place)):
                places.setdefault(name, place)
            case _:
                pass
    return places


def _axis_number(axis: str) -> int:
    if axis not in {"x", "y"}:
        raise ValueError(f"the axis is {axis!r}; expected 'x' or 'y'")
    return ("x", "y").index(axis)


def _own_region(declared: Problem, target: str) -> Region:
    """The region that a target lies in at reset, which no other object shares with it."""
    if target not in declared.objects:
        raise ValueError(
            f"{target!r} is not a movable object of the task; "
            f"nearest: {closest(target, declared.objects)}"
        )
    places = _places((":init", *declared.init))
    place = places.get(target)
    for region in declared.regions:
        if region.full_name == place and region.ranges:
            break
    else:
        where = "nothing" if place is None else place
        raise ValueError(
            f"{target!r} is On {where} at reset, which has no rectangle that can be moved; "
            "expected a region with (:ranges ...)"
        )
    sharing = [name for name, other in places.items() if other == place and name != target]
    if sharing:
        raise ValueError(
            f"{target!r} shares its place with {', '.join(sharing)}, which would move with it; "
            "expected a place of its own"
        )
    return region


def _middle(region: Region) -> tuple[float, float]:
    """The middle of a region's first rectangle."""
    x0, y0, x1, y1 = region.ranges[0]
    return (x0 + x1) / 2, (y0 + y1) / 2


def _check_on_surface(region: Region, target: str, along: int, metres: float) -> None:
    surface = SURFACES.get(region.target)
    if surface is None:
        raise ValueError(
            f"{target!r} lies on {region.target!r}, whose size is not known; "
            f"expected a place on one of {', '.join(SURFACES)}"
        )
    limit = surface.half_size[along]
    for rectangle in region.ranges:
        # A rectangle is (x0, y0, x1, y1): both its ends along this axis.
        for edge in (rectangle[along], rectangle[along + 2]):
            if abs(edge + metres) > limit:
                raise ValueError(
                    f"{target!r} would lie {edge + metres:.3f} m from the middle of "
                    f"{region.target} along {'xy'[along]}; expected at most {limit} m"
                )


def _fits(region: Region, surface: Surface) -> bool:
    """Whether all rectangles of a region lie within the edges of a surface."""
    x_limit, y_limit = surface.half_size
    for x0, y0, x1, y1 in region.ranges:
        if max(abs(x0), abs(x1)) > x_limit or max(abs(y0), abs(y1)) > y_limit:
            return False
    return True


def _things_of_goal(declared: Problem) -> set[str]:
    """Names of the objects that the goal is about; a region counts as what it belongs to."""
    owners = {region.full_name: region.target for region in declared.regions}
    named: set[str] = set(declared.obj_of_interest)
    for fact in declared.goal:
        named.update(fact[1:])
    return named | {owners[name] for name in named if name in owners}


def _is_in_way(other: Region, region: Region, along: int, metres: float) -> bool:
    """Whether a region comes too near to another on its way or at the end of it."""
    start = _middle(region)
    obstacle = _middle(other)
    aside = abs(obstacle[1 - along] - start[1 - along])
    ends = sorted((start[along], start[along] + metres))
    # What is near the start already, but not nearer afterwards, is not in the way.
    before = abs(obstacle[along] - start[along])
    nearest = min(max(obstacle[along], ends[0]), ends[1])
    gap = abs(obstacle[along] - nearest)
    return aside < _CLEARANCE and gap < _CLEARANCE and gap < before


def _translated(region: Node, along: int, metres: float) -> Node:
    """A region with its rectangles moved along one axis."""
    assert not isinstance(region, str)
    moved: list[Node] = []
    for attribute in region:
        match attribute:
            case (":ranges", tuple(rectangles)):
                new = tuple(_translated_rectangle(each, along, metres) for each in rectangles)
                moved.append((":ranges", new))
            case _:
                moved.append(attribute)
    return tuple(moved)


def _translated_rectangle(rectangle: Node, along: int, metres: float) -> Node:
    words: list[Node] = []
    for number, word in enumerate(rectangle):
        assert isinstance(word, str)
        # x0, y0, x1, y1: every other one is along this axis.
        if number % 2 == along:
            # To a micrometre: the sum of -0.145 and 0.07 is not to be -0.07499999999999998.
            words.append(str(round(float(word) + metres, 6)))
        else:
            words.append(word)
    return tuple(words)


def _with_section(tree: Tree, new: Tree) -> Tree:
    """The tree with one section replaced by a new one of the same name."""
    old = section(tree, str(new[0]))
    # By identity: words and other sections may be equal to it.
    return tuple(new if node is old else node for node in tree)
