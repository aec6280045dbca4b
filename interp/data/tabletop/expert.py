"""A scripted expert for the tabletop, and the demonstrations that policies are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.data.tabletop.scenes import BASKET, BASKET_HALF, Scene, suite
from interp.data.tabletop.simulator import ACTION_WIDTH, MOVED, Observation, Tabletop
from interp.progress import track

MAX_STEPS = 60  # for each item that has to be in the basket
_TRAVEL = 0.13  # metres above the surface at which the hand moves to the side
_CLEAR = 0.10  # above which what it carries clears the basket
_NEAR = 0.012  # how well it is above the item before it goes down, along each axis
_DOWN = 0.03
_OVER_BASKET = 0.02
_NOISE = 0.3  # of what is executed in demonstrations, so that they show how to come back
_KEPT_AFTER = 2  # frames of a demonstration behind its success

Action = Float[np.ndarray, " 7"]


def expert(observation: Observation, target: str, height: float = 0.0) -> Action:
    """Returns what the expert does: above the target, down with suction, up, to the basket, let go.

    It is a function of the present state alone.

    Args:
        observation: what is seen.
        target: what is to be put into the basket.
        height: of the surface, in metres.
    """
    # Heights from here on are above the surface.
    hand = observation.hand - [0, 0, height]
    item = observation.positions[observation.names.index(target)] - [0, 0, height]
    basket = np.array(BASKET)
    sucks = True
    if not observation.holding:
        aim = np.array([*item[:2], _TRAVEL])
        sucks = bool(np.abs(item[:2] - hand[:2]).max() < _NEAR)
        if sucks:
            aim[2] = _DOWN
    elif np.hypot(*(basket - hand[:2])) < _OVER_BASKET:
        aim = np.array([*basket, _TRAVEL])
        sucks = False
    elif hand[2] < _CLEAR:
        aim = np.array([*hand[:2], _TRAVEL])
    else:
        aim = np.array([*basket, _TRAVEL])
    action = np.zeros(ACTION_WIDTH)
    action[:3] = np.clip((aim - hand) / MOVED, -1, 1)
    action[6] = 1 if sucks else -1
    return action


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One episode of the expert.

    Attributes:
        scene: where it happened.
        observations: what was seen before each action.
        actions: [frames, 7] what the expert wanted to do, which is what a policy is to learn.
    """

    scene: Scene
    observations: tuple[Observation, ...]
    actions: Float[np.ndarray, "frames 7"]


def demonstrate(
    tabletop: Tabletop, scene: Scene, rng: np.random.Generator | None = None
) -> Demonstration | None:
    """Returns an episode of the expert; None if it fails.

    Args:
        tabletop: the simulator.
        scene: the scene.
        rng: draws noise that is added to what is executed, not to what is recorded; None for none.
    """
    seen: list[Observation] = []
    wanted: list[Action] = []
    observation = tabletop.reset(scene)
    left = MAX_STEPS * len(scene.goals)
    succeeded = False
    while left:
        action = expert(observation, _next_goal(observation, scene), scene.surface.height)
        seen.append(observation)
        wanted.append(action)
        executed = action.copy()
        if rng is not None:
            executed[:3] = np.clip(action[:3] + rng.normal(0, _NOISE, 3), -1, 1)
        observation, _, done, _ = tabletop.step(executed)
        left -= 1
        if done and not succeeded:
            succeeded = tabletop.check_success()
            if not succeeded:
                return None
            left = min(left, _KEPT_AFTER)
    if not succeeded:
        return None
    return Demonstration(scene, tuple(seen), np.stack(wanted))


def _next_goal(observation: Observation, scene: Scene) -> str:
    """The first goal that is not above or in the basket yet; the last one if all are."""
    for goal in scene.goals:
        x, y, _ = observation.positions[observation.names.index(goal)]
        if max(abs(x - BASKET[0]), abs(y - BASKET[1])) >= BASKET_HALF:
            return goal
    return scene.goals[-1]


def demonstrations(
    suite_name: str, count: int, seed: int, *, tasks: Sequence[str] | None = None
) -> list[Demonstration]:
    """Returns demonstrations of a suite, equally many of each task.

    Args:
        suite_name: name of the suite.
        count: how many; a failure of the expert is replaced by a further scene.
        seed: seed of scenes and noise.
        tasks: the tasks; by default all of the suite.

    Raises:
        ValueError: an unknown suite or task.

    Example:
        >>> from interp.data.tabletop.expert import demonstrations
        >>> shown = demonstrations("tabletop_goal", 4, seed=0)
        >>> [each.scene.task for each in shown]
        ['red box', 'green cylinder', 'blue box', 'yellow cylinder']
    """
    found: list[Demonstration] = []
    with Tabletop() as tabletop:
        for scene, rng in track(_scenes(suite_name, count, seed, tasks), "demonstrations", count):
            shown = demonstrate(tabletop, scene, rng)
            attempt = 0
            while shown is None:
                attempt += 1
                again = [seed, len(found), attempt]
                # Beyond the numbers of the other demonstrations, so that no scene comes twice.
                number = len(found) + 100_000 * attempt
                other = suite(suite_name).scene(scene.task, seed, number, training=True)
                shown = demonstrate(tabletop, other, np.random.default_rng(again))
            found.append(shown)
    return found


def _scenes(
    suite_name: str, count: int, seed: int, tasks: Sequence[str] | None
) -> Iterator[tuple[Scene, np.random.Generator]]:
    drawn = suite(suite_name)
    names = drawn.tasks if tasks is None else tasks
    for number in range(count):
        scene = drawn.scene(names[number % len(names)], seed, number, training=True)
        yield scene, np.random.default_rng([seed, number])
