"""The tabletop in MuJoCo: a hand with a suction tip on three slides, coloured items, and a basket.

Its interface is that of LIBERO: `reset`, `step` with seven numbers, `check_success`,
`language_instruction`. Rotations are ignored.
"""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike

from interp.data.tabletop.scenes import BASKET, BASKET_HALF, ITEM_SIZE, MOST_ITEMS, Item, Scene

ACTION_WIDTH = 7  # translation, rotation (ignored) and gripper, as in LIBERO
MOVED = 0.04  # metres per unit of an action
_LEASH = 0.06  # how far the aim of the hand may be from it, in metres
_SUBSTEPS = 10  # of 4 ms
_PARKED = 3.0  # where the bodies of absent items are, in metres
_BASKET_TOP = 0.06  # an item whose centre is below that is in the basket
_CAMERA = "above"
_WALL = 0.02  # half the height of the basket's wall, in metres

_WALLS = "".join(
    f'<geom type="box" pos="{x} {y} {_WALL}" size="{a} {b} {_WALL}" rgba=".55 .4 .25 1"/>'
    for x, y, a, b in (
        (BASKET_HALF, 0, 0.004, BASKET_HALF),
        (-BASKET_HALF, 0, 0.004, BASKET_HALF),
        (0, BASKET_HALF, BASKET_HALF, 0.004),
        (0, -BASKET_HALF, BASKET_HALF, 0.004),
    )
)
_ITEM = """<body name="item{0}" pos="{1} 0 0.022"><freejoint/>
<geom name="item{0}" type="box" size=".022 .022 .022" mass=".05"/></body>"""
# The tip sees a contact one centimetre before it touches (margin), without any force (gap).
_XML = f"""<mujoco>
<option timestep="0.004" integrator="implicitfast"/>
<visual><global offwidth="512" offheight="512"/><headlight ambient=".5 .5 .5" diffuse=".5 .5 .5"/>
</visual>
<worldbody>
<body name="table"><geom name="surface" type="plane" size="2 2 .1"/></body>
<camera name="{_CAMERA}" pos="-.03 0 .78" fovy="42"/>
<body name="basket" pos="{BASKET[0]} {BASKET[1]} 0">{_WALLS}</body>
<body name="hand">
<joint name="x" type="slide" axis="1 0 0" damping="1"/>
<joint name="y" type="slide" axis="0 1 0" damping="1"/>
<joint name="z" type="slide" axis="0 0 1" damping="1"/>
<geom name="tip" type="cylinder" size=".01 .01" pos="0 0 .01" mass=".2" margin=".01" gap=".01"
 rgba=".2 .2 .2 1"/>
<geom type="box" size=".02 .02 .01" pos="0 0 .03" mass=".3" rgba=".35 .35 .35 1"/>
</body>
{"".join(_ITEM.format(number, _PARKED + 0.2 * number) for number in range(MOST_ITEMS))}
</worldbody>
<equality>{
    "".join(
        f'<weld name="item{number}" body1="hand" body2="item{number}" active="false"/>'
        for number in range(MOST_ITEMS)
    )
}</equality>
<actuator>{
    "".join(
        f'<position joint="{axis}" kp="4000" dampratio="1" forcerange="-80 80"/>' for axis in "xyz"
    )
}</actuator>
</mujoco>"""


@dataclass(frozen=True, eq=False)
class Observation:
    """What a policy is given at a step.

    Attributes:
        hand: [3] where the tip of the hand is, in metres.
        holding: whether an item hangs on it.
        suction: whether it sucks.
        names: the names of the items in the scene.
        positions: [items, 3] where they are, in metres.
        looks: what they look like.
    """

    hand: Float[np.ndarray, " 3"]
    holding: bool
    suction: bool
    names: tuple[str, ...]
    positions: Float[np.ndarray, "items 3"]
    looks: tuple[Item, ...]


class Tabletop:
    """One simulated tabletop.

    The model is compiled once, and each scene is written into it: a reset takes well below a
    millisecond, and the one renderer is kept until `close`.

    Raises:
        ImportError: MuJoCo is missing; the message says how to install it.

    Example:
        >>> from interp.data.tabletop.scenes import SUITES
        >>> from interp.data.tabletop.simulator import Tabletop
        >>> with Tabletop() as tabletop:
        ...     scene = SUITES["tabletop_goal"].scene("red box", seed=0, number=0)
        ...     observation = tabletop.reset(scene)
        ...     observation, reward, done, info = tabletop.step([0, 0, -1, 0, 0, 0, -1])
        >>> reward, done, info["in_basket"]
        (0.0, False, ())
    """

    def __init__(self) -> None:
        self._mujoco = _mujoco()
        self.model: Any = self._mujoco.MjModel.from_xml_string(_XML)
        self.data: Any = self._mujoco.MjData(self.model)
        geom = self._mujoco.mjtObj.mjOBJ_GEOM
        self._tip = self._id(geom, "tip")
        self._surface = self._id(geom, "surface")
        self._geoms = [self._id(geom, f"item{number}") for number in range(MOST_ITEMS)]
        body = self._mujoco.mjtObj.mjOBJ_BODY
        self._bodies = [self._id(body, f"item{number}") for number in range(MOST_ITEMS)]
        self._hand = self._id(body, "hand")
        self._basket = self._id(body, "basket")
        self._table = self._id(body, "table")
        self._welds = self.model.eq_data.copy()
        self._scene: Scene | None = None
        self._names: tuple[str, ...] = ()
        self._held: int | None = None
        self._suction = False
        self._renderer: Any = None

    def _id(self, kind: Any, name: str) -> int:
        return self._mujoco.mj_name2id(self.model, kind, name)

    def __enter__(self) -> Tabletop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def scene(self) -> Scene:
        """The scene of the last reset.

        Raises:
            ValueError: there was none.
        """
        if self._scene is None:
            raise ValueError("the tabletop holds no scene: call reset(scene) first")
        return self._scene

    @property
    def language_instruction(self) -> str:
        """The instruction that holds now, which is what a policy has to be given."""
        if self.scene.afterwards and self.scene.target in self.in_basket():
            return self.scene.afterwards
        return self.scene.instruction

    def reset(self, scene: Scene) -> Observation:
        """Puts a scene on the table, at rest. The same scene gives the same episode bit for bit.

        Raises:
            ValueError: the goal holds already, so that an episode would mean nothing.
        """
        self._scene = scene
        self._names = tuple(scene.items)
        self._held = None
        self._suction = False
        self._mujoco.mj_resetData(self.model, self.data)
        # `_attach` writes into the model, and mj_resetData resets the data alone.
        self.model.eq_data[:] = self._welds
        height = scene.surface.height
        # Bodies, since MuJoCo does not read the place of a geom that had that of its body.
        self.model.body_pos[self._table, 2] = height
        self.model.geom_rgba[self._surface, :3] = scene.surface.colour
        self.model.body_pos[self._basket, 2] = height
        for number in range(MOST_ITEMS):
            start = 3 + 7 * number  # behind the slides of the hand, a position and a quaternion
            # No body can be taken out of a compiled model: those of absent items are parked far
            # off.
            if number >= len(self._names):
                self.data.qpos[start : start + 3] = (_PARKED + 0.2 * number, 0, height + 0.022)
                self._look_like(number, None)
                continue
            look = scene.items[self._names[number]]
            self._look_like(number, look)
            x, y = scene.places[self._names[number]]
            self.data.qpos[start : start + 3] = (x, y, height + look.size)
        self.data.qpos[:3] = scene.hand
        # The hand aims at where it is, and stays there.
        self.data.ctrl[:] = scene.hand
        self._mujoco.mj_forward(self.model, self.data)
        if self.check_success():
            raise ValueError(
                f"the goal of the scene holds at reset: {' and '.join(scene.goals)} in the basket "
                "already"
            )
        return self.observe()

    def _look_like(self, number: int, look: Item | None) -> None:
        """Gives the body of an item the shape, size and colour of a look."""
        geom = self._geoms[number]
        kinds = self._mujoco.mjtGeom
        is_box = look is None or look.shape == "box"
        half = 0.022 if look is None else look.size
        self.model.geom_type[geom] = kinds.mjGEOM_BOX if is_box else kinds.mjGEOM_CYLINDER
        # Three halves of a box; the radius of a cylinder, and half its height.
        self.model.geom_size[geom] = (half, half, half if is_box else 0)
        # What MuJoCo derived from the shape when it compiled the model.
        self.model.geom_rbound[geom] = half * np.sqrt(3 if is_box else 2)  # half the diagonal
        self.model.geom_aabb[geom] = (0, 0, 0, half, half, half)
        mass = self.model.body_mass[self._bodies[number]]
        # Moments of inertia of a cube, and of a cylinder as high as it is wide.
        across = mass * half**2 * (2 / 3 if is_box else 7 / 12)
        along = mass * half**2 * (2 / 3 if is_box else 1 / 2)
        self.model.body_inertia[self._bodies[number]] = (across, across, along)
        if look is not None:
            self.model.geom_rgba[geom] = (*look.colour, 1)

    def observe(self) -> Observation:
        """Returns what a policy is given now."""
        count = len(self._names)
        return Observation(
            hand=self.data.xpos[self._hand].copy(),
            holding=self._held is not None,
            suction=self._suction,
            names=self._names,
            positions=self.data.xpos[self._bodies[:count]].copy(),
            looks=tuple(self.scene.items[name] for name in self._names),
        )

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Moves for one control step of 40 ms.

        Args:
            action: [7] in [-1, 1]: the translation of the hand in units of 4 cm, a rotation that is
                ignored, and the gripper, which sucks above 0.

        Returns:
            What is seen then, the reward (1 with the goal reached), whether the episode is over
            (the goal is reached, or a wrong item is in the basket), and what is in the basket and
            in the hand, by name.

        Raises:
            ValueError: an action of another shape, outside [-1, 1], or not finite; or no scene.
        """
        move = _checked_action(action)
        self._aim(move[:3])
        self._suction = bool(move[6] > 0)
        if not self._suction:
            self._release()
        for substep in range(_SUBSTEPS):
            self._mujoco.mj_step(self.model, self.data)
            if self._suction and self._held is None and substep % 2:
                self._attach()
        # Positions of bodies are those before the last step until they are computed again.
        self._mujoco.mj_kinematics(self.model, self.data)
        inside = self.in_basket()
        success = self.check_success()
        info = {"in_basket": inside, "holding": self._name(self._held)}
        has_wrong = not set(inside) <= set(self.scene.goals)
        return self.observe(), float(success), success or has_wrong, info

    def _aim(self, move: Float[np.ndarray, " 3"]) -> None:
        hand = self.data.qpos[:3]
        # Without the leash, the aim would run away from a hand that something holds up.
        aim = self.data.ctrl + MOVED * move
        self.data.ctrl[:] = np.clip(aim, hand - _LEASH, hand + _LEASH)

    def _release(self) -> None:
        if self._held is not None:
            self.data.eq_active[self._held] = 0
            self._held = None

    def _attach(self) -> None:
        """Takes the first item that the tip is in contact with."""
        # The contacts as arrays: an object made for each of them takes longer than the simulation.
        pairs = np.stack([self.data.contact.geom1, self.data.contact.geom2], axis=1)
        is_of_tip = (pairs == self._tip).any(axis=1)
        for pair in pairs[is_of_tip].tolist():
            (other,) = {*pair} - {self._tip}
            if other not in self._geoms:
                continue
            number = self._geoms.index(other)
            body = self._bodies[number]
            # Behind the anchor: where the item is and how it is turned as seen from the hand, which
            # never turns.
            weld = self.model.eq_data[number]
            weld[:3] = 0
            weld[3:6] = self.data.xpos[body] - self.data.xpos[self._hand]
            weld[6:10] = self.data.xquat[body]
            self.data.eq_active[number] = 1
            self._held = number
            return

    def _name(self, number: int | None) -> str | None:
        return None if number is None else self._names[number]

    def in_basket(self) -> tuple[str, ...]:
        """Returns the items that lie in the basket. Where two have to be there, one can lie on the
        other."""
        top = _BASKET_TOP + 2 * ITEM_SIZE * (len(self.scene.goals) - 1)
        found: list[str] = []
        for number, name in enumerate(self._names):
            offset = self.data.xpos[self._bodies[number]] - self.data.xpos[self._basket]
            is_inside = abs(offset[0]) < BASKET_HALF and abs(offset[1]) < BASKET_HALF
            if is_inside and offset[2] < top and number != self._held:
                found.append(name)
        return tuple(found)

    def check_success(self) -> bool:
        """Returns whether the goal of the scene is reached."""
        return set(self.in_basket()) == set(self.scene.goals)

    def is_at_rest(self, speed: float = 0.02) -> bool:
        """Returns whether no item of the scene moves faster than that, in metres per second."""
        count = len(self._names)
        # Behind the slides of the hand each item has six: three along the axes, three about them.
        velocities = self.data.qvel[3 : 3 + 6 * count].reshape(count, 6)[:, :3]
        return bool(np.linalg.norm(velocities, axis=1).max() < speed)

    def render(self, side: int = 128) -> UInt8[np.ndarray, "side side 3"]:
        """Returns what the camera above the table sees.

        Shadows and reflections are off: with them a picture takes fifty times as long.

        Args:
            side: of the picture, in pixels, at most 512.

        Raises:
            ImportError: no OpenGL that draws without a screen; the message says how to get one.
        """
        if self._renderer is None or self._renderer.width != side:
            self._close_renderer()
            self._renderer = _renderer(self._mujoco, self.model, side)
        self._renderer.update_scene(self.data, camera=_CAMERA)
        flags = self._mujoco.mjtRndFlag
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX):
            self._renderer.scene.flags[flag] = 0
        return self._renderer.render()

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def close(self) -> None:
        """Frees the renderer. The tabletop can be used again."""
        self._close_renderer()


def _checked_action(action: ArrayLike) -> Float[np.ndarray, " 7"]:
    given = np.asarray(action, dtype=float)
    if given.shape != (ACTION_WIDTH,):
        raise ValueError(
            f"an action of shape {given.shape}: expected ({ACTION_WIDTH},), translation, rotation "
            "and gripper"
        )
    if not np.isfinite(given).all() or np.abs(given).max() > 1:
        raise ValueError(f"an action of {given.tolist()}: expected numbers in [-1, 1]")
    return given


def _mujoco() -> Any:
    # The platform is chosen when mujoco is imported for the first time.
    has_screen = os.name != "posix" or "DISPLAY" in os.environ
    if "mujoco" not in sys.modules and not has_screen:
        os.environ.setdefault("MUJOCO_GL", _without_screen())
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(
            "the tabletop needs MuJoCo: pip install 'interp[policies]'", name="mujoco"
        ) from error
    return mujoco


def _without_screen() -> str:
    """What draws without a screen: EGL, or OSMesa where that alone is installed."""
    has_only_osmesa = find_library("EGL") is None and find_library("OSMesa") is not None
    return "osmesa" if has_only_osmesa else "egl"


def _renderer(mujoco: Any, model: Any, side: int) -> Any:
    try:
        return mujoco.Renderer(model, side, side)
    except Exception as error:
        raise ImportError(
            f"no picture can be drawn with MUJOCO_GL={os.environ.get('MUJOCO_GL', '(not set)')} "
            f"({error}): install EGL (Debian: libegl1) or OSMesa (libosmesa6), and set MUJOCO_GL "
            "to egl or osmesa before mujoco is imported"
        ) from error
