"""The edits of LIBERO-PRO on the trees of task files: each returns a new tree.

The rules are those of the code of LIBERO-PRO (arXiv 2510.03827, `perturbation.py`). What that code
draws is an argument here, so that the same arguments give the same task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random

from interp.data.bddl import Node, Problem, Tree, problem, section, to_text
from interp.errors import closest

__all__ = ["change_language", "change_task", "draw_swaps", "replace_objects", "swap_positions"]


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


def _replace_parts(name: str, categories: Mapping[str, str]) -> str:
    """Replaces categories within a name, where they are whole words between underscores.

    All at once: one after the other, a category that is both replaced and a replacement would
    change twice.
    """
    if not categories:
        return name
    longest_first = sorted(categories, key=len, reverse=True)
    either = "|".join(re.escape(category) for category in longest_first)
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


def _with_section(tree: Tree, new: Tree) -> Tree:
    """The tree with one section replaced by a new one of the same name."""
    old = section(tree, str(new[0]))
    return tuple(new if node is old else node for node in tree)
