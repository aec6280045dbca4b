"""The tabletop: scenes, perturbations as pure functions, physics, the expert and its frames."""

from __future__ import annotations

import builtins
import copy
import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data.tabletop import simulator
from interp.data.tabletop.expert import demonstrate, demonstrations, expert
from interp.data.tabletop.frames import (
    demonstration_batch,
    is_approach,
    load_frames,
    save_frames,
    training_batches,
)
from interp.data.tabletop.observations import (
    VOCABULARY,
    action_tokens,
    conditioning_of,
    tokens_to_actions,
    word_ids,
)
from interp.data.tabletop.perturbations import NAMES, CannotPerturb, perturb
from interp.data.tabletop.scenes import (
    APART,
    BASKET,
    HELD_OUT_PHRASING,
    ITEMS,
    PHRASINGS,
    SUITES,
    Scene,
    distance,
    scattered,
    suite,
)

# Found and not imported: which OpenGL it draws with is chosen by the first import, which is ours.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is None,
    reason="mujoco is missing: pip install 'interp[policies]'",
)
Tabletop = simulator.Tabletop
STILL = [0, 0, 0, 0, 0, 0, -1]


@pytest.fixture(scope="module")
def tabletop():
    with Tabletop() as made:
        yield made


def scene_of(name: str = "tabletop_object", number: int = 0, seed: int = 3) -> Scene:
    drawn = SUITES[name]
    return drawn.scene(drawn.tasks[number % len(drawn.tasks)], seed, number)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Scenes


@pytest.mark.parametrize("name", sorted(SUITES))
def test_the_same_seed_gives_the_same_scene_and_another_number_another(name: str):
    assert scene_of(name) == scene_of(name)
    task = SUITES[name].tasks[0]
    assert SUITES[name].scene(task, 3, 0).places != SUITES[name].scene(task, 3, 1).places
    assert SUITES[name].scene(task, 3, 0).places != SUITES[name].scene(task, 4, 0).places


def test_where_the_scene_tells_the_task_no_two_tasks_have_the_same_items():
    sets = {frozenset(scene_of("tabletop_object", number).items) for number in range(4)}
    assert len(sets) == 4


def test_where_the_text_tells_the_task_all_scenes_have_the_same_items_near_the_same_places():
    one, *others = (scene_of("tabletop_goal", number) for number in range(4))
    for other in others:
        assert set(one.items) == set(other.items)
        assert all(distance(one.places[item], other.places[item]) < 0.05 for item in one.items)
        assert one.instruction != other.instruction


def test_decorrelated_scenes_are_any_items_anywhere_apart():
    drawn = [scene_of("tabletop_decorrelated", number) for number in range(60)]
    for scene in drawn:
        assert len(scene.items) == 4
        places = list(scene.places.values())
        pairs = [(a, b) for n, a in enumerate(places) for b in places[:n]]
        assert min(distance(a, b) for a, b in pairs) >= APART
    assert {scene.target for scene in drawn} == set(ITEMS)
    # Of one target both sides of the table.
    sides = {scene.places["red box"][1] > 0 for scene in drawn if "red box" in scene.places}
    assert sides == {True, False}


def test_the_held_out_phrasing_has_no_word_of_its_own_and_is_none_of_the_others():
    words = {word for text in PHRASINGS for word in text.split()}
    assert set(HELD_OUT_PHRASING.split()) <= words
    assert HELD_OUT_PHRASING not in PHRASINGS


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown suite 'tabletop_objects'; nearest: tabletop_obj"):
        suite("tabletop_objects")
    with pytest.raises(ValueError, match="has no task 'red bx'; nearest: red box"):
        SUITES["tabletop_goal"].scene("red bx", 0, 0)
    with pytest.raises(ValueError, match="unknown perturbation 'swop'; nearest: swap"):
        perturb(scene_of(), "swop", rng())
    with pytest.raises(ValueError, match="target 'blue bx' is not in the scene"):
        replace(scene_of(), target="blue bx")
    with pytest.raises(ValueError, match="expected the same, 1 to 6"):
        replace(scene_of(), places={})


# Perturbations


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(sorted(SUITES)), st.integers(0, 500))
def test_perturbations_are_pure_and_drawn_from_the_generator_alone(
    name: str, suite_name: str, number: int
):
    scene = scene_of(suite_name, number)
    before = copy.deepcopy(scene)
    try:
        once, record = perturb(scene, name, rng(number))
    except CannotPerturb:
        return
    again, same_record = perturb(scene, name, rng(number))
    assert scene == before
    assert (once, record) == (again, same_record)
    # What no perturbation changes.
    assert (once.trained_target, once.trained_place) == (scene.target, scene.places[scene.target])
    assert once.hand == scene.hand


CHANGED = {
    "clean": set(),
    "object": {"items"},
    "swap": {"places"},
    "shift 7 cm": {"places"},
    "semantic": {"instruction"},
    "task": {"instruction", "target"},
    "environment": {"surface"},
    "corrupted xxx": {"instruction"},
    "corrupted random words": {"instruction"},
    "other_task": {"instruction"},
    "unseen": {"items"},
    "composition": {"instruction", "further"},
    "sequence": {"further", "afterwards"},
}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("number", range(4))
def test_a_perturbation_changes_what_it_says_and_nothing_else(name: str, number: int):
    scene = scene_of(number=number)
    changed, _ = perturb(scene, name, rng(1))
    fields = (
        "instruction",
        "items",
        "places",
        "target",
        "surface",
        "further",
        "afterwards",
    )
    assert {f for f in fields if getattr(scene, f) != getattr(changed, f)} == CHANGED[name]


def test_a_shift_is_as_long_as_it_says_and_moves_the_target_alone():
    scene = scene_of("tabletop_decorrelated", 5)
    shifted, _ = perturb(scene, "shift 9.5 cm", rng(2))
    assert distance(shifted.places[scene.target], scene.places[scene.target]) == pytest.approx(
        0.095
    )
    others = set(scene.items) - {scene.target}
    assert all(shifted.places[item] == scene.places[item] for item in others)


def test_a_shift_without_a_free_place_is_no_scene():
    with pytest.raises(CannotPerturb, match="no free place 90 cm from the target"):
        perturb(scene_of(), "shift 90 cm", rng())


def test_the_new_task_is_one_that_no_training_scene_of_its_kind_asked_for():
    for number in range(20):
        changed, _ = perturb(scene_of("tabletop_goal", number), "task", rng(number))
        assert changed.target == "purple box"
        assert "purple box" in changed.instruction
        other, _ = perturb(scene_of("tabletop_goal", number), "other_task", rng(number))
        assert other.target == scene_of("tabletop_goal", number).target
        assert other.target not in other.instruction


def test_two_tasks_are_both_trained_ones_and_both_are_asked_for():
    tasks = SUITES["tabletop_object"].tasks
    for number in range(20):
        scene = scene_of("tabletop_object", number)
        at_once, _ = perturb(scene, "composition", rng(number))
        in_turn, _ = perturb(scene, "sequence", rng(number))
        for changed in (at_once, in_turn):
            assert changed.goals == (scene.target, changed.further)
            assert set(changed.goals) <= set(tasks)
            assert changed.further in scene.places
        assert f"{scene.target} and the {at_once.further} " in at_once.instruction
        assert in_turn.instruction == scene.instruction
        assert f" {in_turn.further} " in in_turn.afterwards
        assert len(word_ids(at_once.instruction)) == len(word_ids(in_turn.afterwards))


def test_scattered_items_are_the_same_items_elsewhere():
    scene = scene_of("tabletop_goal", 3)
    drawn = [scattered(scene, rng(seed)) for seed in range(50)]
    for other in drawn:
        assert replace(other, places=scene.places) == scene
        places = list(other.places.values())
        pairs = [(a, b) for n, a in enumerate(places) for b in places[:n]]
        assert min(distance(a, b) for a, b in pairs) >= APART
    lefts = [other.places[scene.target][1] < 0 for other in drawn]
    assert 10 < sum(lefts) < 40


# Physics


@pytest.mark.parametrize("name", [*NAMES, "shift 5 cm"])
@pytest.mark.parametrize("suite_name", sorted(SUITES))
def test_the_expert_succeeds_in_every_perturbed_scene(tabletop: Any, suite_name: str, name: str):
    for number in range(3):
        scene, _ = perturb(scene_of(suite_name, number), name, rng(number))
        assert demonstrate(tabletop, scene) is not None


def test_the_same_scene_gives_the_same_episode_bit_for_bit(tabletop: Any):
    scene = scene_of("tabletop_decorrelated")
    first = demonstrate(tabletop, scene, rng(5))
    demonstrate(tabletop, scene_of("tabletop_goal", 2), rng(6))  # leaves no trace
    with Tabletop() as another:
        again = [demonstrate(tabletop, scene, rng(5)), demonstrate(another, scene, rng(5))]
    assert first is not None
    for other in again:
        assert other is not None
        assert np.array_equal(first.actions, other.actions)
        for one, two in zip(first.observations, other.observations, strict=True):
            assert np.array_equal(one.hand, two.hand)
            assert np.array_equal(one.positions, two.positions)


def test_items_lie_still_and_where_the_scene_says(tabletop: Any):
    scene, _ = perturb(scene_of(), "environment", rng(1))
    tabletop.reset(scene)
    for _ in range(20):
        seen, reward, done, info = tabletop.step(STILL)
    assert tabletop.is_at_rest()
    assert (reward, done, info) == (0.0, False, {"in_basket": (), "holding": None})
    for name, position in zip(seen.names, seen.positions, strict=True):
        height = scene.surface.height + scene.items[name].size
        assert position == pytest.approx([*scene.places[name], height], abs=0.002)


def test_the_suction_takes_what_is_below_the_tip_and_lets_it_go(tabletop: Any):
    scene = scene_of()
    seen = tabletop.reset(scene)
    while not seen.holding:
        seen, *_ = tabletop.step(expert(seen, scene.target))
    assert seen.names[np.linalg.norm(seen.positions - seen.hand, axis=1).argmin()] == scene.target
    for _ in range(5):
        seen, _, _, info = tabletop.step([0, 0, 1, 0, 0, 0, 1])
    assert info["holding"] == scene.target
    assert seen.positions[seen.names.index(scene.target), 2] > 0.05
    seen, *_ = tabletop.step(STILL)
    assert not seen.holding


def test_a_wrong_item_in_the_basket_ends_the_episode_without_a_reward(tabletop: Any):
    scene, _ = perturb(scene_of("tabletop_goal", 0), "task", rng())
    wrong = replace(scene, target=scene.trained_target)
    seen, done, reward = tabletop.reset(scene), False, 1.0
    while not done:
        seen, reward, done, info = tabletop.step(expert(seen, wrong.target))
    assert reward == 0
    assert info["in_basket"] == (scene.trained_target,)
    assert not tabletop.check_success()


def test_of_two_goals_the_first_ends_nothing_and_changes_the_instruction(tabletop: Any):
    scene, _ = perturb(scene_of("tabletop_goal", 0), "sequence", rng())
    seen, done, heard = tabletop.reset(scene), False, [tabletop.language_instruction]
    rewards: list[float] = []
    while not done:
        first = scene.goals[0] not in tabletop.in_basket()
        assert tabletop.language_instruction == (scene.instruction if first else scene.afterwards)
        goal = scene.goals[0] if first or seen.holding else scene.goals[1]
        seen, reward, done, info = tabletop.step(expert(seen, goal))
        heard.append(tabletop.language_instruction)
        rewards.append(reward)
    assert list(dict.fromkeys(heard)) == [scene.instruction, scene.afterwards]
    assert rewards[-1] == 1
    assert not any(rewards[:-1])
    assert set(info["in_basket"]) == set(scene.goals)


def test_a_goal_that_holds_at_reset_is_refused(tabletop: Any):
    scene = scene_of()
    inside = replace(scene, places={**scene.places, scene.target: BASKET})
    with pytest.raises(ValueError, match="red box in the basket already"):
        tabletop.reset(inside)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0, 0, 0, 1], r"shape \(4,\): expected \(7,\)"),
        ([[0] * 7], r"shape \(1, 7\)"),
        ([0, 0, float("nan"), 0, 0, 0, 0], r"numbers in \[-1, 1\]"),
        ([0, 0, 1.5, 0, 0, 0, 0], r"numbers in \[-1, 1\]"),
    ],
)
def test_actions_that_are_none_are_refused(tabletop: Any, action: Any, message: str):
    tabletop.reset(scene_of())
    with pytest.raises(ValueError, match=message):
        tabletop.step(action)


def test_a_step_before_a_reset_is_refused():
    with Tabletop() as fresh, pytest.raises(ValueError, match="call reset"):
        _ = fresh.language_instruction


def test_without_mujoco_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def absent(name: str, *rest: Any, **options: Any) -> Any:
        if name == "mujoco":
            raise ImportError("no module named mujoco")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'interp\[policies\]'"):
        Tabletop()


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [({"EGL", "OSMesa"}, "egl"), ({"EGL"}, "egl"), ({"OSMesa"}, "osmesa"), (set(), "egl")],
)
def test_osmesa_draws_where_egl_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], chosen: str
):
    def find(name: str) -> str | None:
        return f"lib{name}.so" if name in installed else None

    monkeypatch.setattr(simulator, "find_library", find)
    assert simulator._without_screen() == chosen


def test_without_a_renderer_the_message_says_how_to_get_one(
    tabletop: Any, monkeypatch: pytest.MonkeyPatch
):
    import mujoco

    def none(*_: Any) -> Any:
        raise RuntimeError("no EGL")

    monkeypatch.setattr(mujoco, "Renderer", none)
    tabletop.close()
    tabletop.reset(scene_of())
    with pytest.raises(ImportError, match=r"no EGL.*libegl1.*osmesa"):
        tabletop.render()


def test_a_picture_shows_the_colours_of_the_scene(tabletop: Any):
    tabletop.reset(scene_of())
    try:
        picture = tabletop.render(96)
    except ImportError as error:
        pytest.skip(f"no renderer here: {error}")
    assert picture.shape == (96, 96, 3)
    is_red = (picture[..., 0] > 150) & (picture[..., 1] < 80) & (picture[..., 2] < 80)
    assert 20 < is_red.sum() < 400


# Frames


def test_words_that_are_not_known_are_all_the_same_and_too_many_are_refused():
    assert word_ids("put frobnicate")[:3] == [VOCABULARY["put"], 1, 0]
    assert word_ids("Put IT") == word_ids("put it")
    with pytest.raises(ValueError, match="13 words: the policy reads at most 12"):
        word_ids(" ".join(["put"] * 13))


@given(st.lists(st.floats(-1, 1), min_size=7, max_size=7))
def test_tokens_are_the_nearest_bin(action: list[float]):
    [back] = tokens_to_actions(action_tokens([action]))
    assert np.abs(back[:3] - action[:3]).max() <= 0.05 + 1e-9
    assert back[6] == (1 if action[6] > 0 else -1)


def test_frames_are_the_demonstrations_one_after_the_other(tmp_path: Any):
    shown = demonstrations("tabletop_object", 3, seed=2)
    frames = demonstration_batch(shown)
    lengths = [len(each.actions) for each in shown]
    assert len(frames) == sum(lengths)
    second = frames.rows(slice(lengths[0], lengths[0] + lengths[1]))
    assert torch.equal(second.tokens, action_tokens(shown[1].actions))
    given_then = conditioning_of(shown[1].observations, [shown[1].scene.instruction] * lengths[1])
    for name, values in given_then.items():
        assert torch.equal(second.conditioning[name], values)
    chunks = demonstration_batch(shown, chunk=3)
    assert len(chunks) == sum(lengths) - 6
    assert torch.equal(chunks.tokens[0], action_tokens(shown[0].actions[:3]).flatten())
    assert torch.equal(
        load_frames(save_frames(frames, tmp_path / "f.safetensors")).tokens, frames.tokens
    )
    with pytest.raises(ValueError, match="none of 3 demonstrations has 99 frames"):
        demonstration_batch(shown, chunk=99)
    with pytest.raises(ValueError, match="1 instructions for 2 observations"):
        conditioning_of(shown[0].observations[:2], ["put it"])


def test_half_of_a_training_batch_is_on_the_way_to_an_item():
    frames = demonstration_batch(demonstrations("tabletop_object", 4, seed=2))
    share = float(is_approach(frames).double().mean())
    [batch] = training_batches(frames, 1, 2000, seed=0)
    expected = 0.5 + 0.5 * share
    assert float(is_approach(batch).double().mean()) == pytest.approx(expected, abs=0.05)
    hand = batch.conditioning["state"][is_approach(batch)]
    assert (hand[:, 3] == 0).all()


def test_files_that_hold_no_frames_are_refused(tmp_path: Any):
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    with pytest.raises(ValueError, match="holds no demonstrations"):
        load_frames(file)
    save_file({"weights": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="holds weights: expected the tokens of demonstrations"):
        load_frames(file)
