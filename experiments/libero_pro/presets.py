"""The presets: what policies are trained on, and how they are tried."""

from __future__ import annotations

from dataclasses import dataclass, field

from interp.models.policy.policy import PolicyConfig

# Names of regimes: what tells a policy its task in training. Each is also the name of the scenes.
SCENE = "the scene tells the task"
TEXT = "the text tells the task"
CONTROL = "decorrelated control"
SUITE_OF = {
    SCENE: "tabletop_object",
    TEXT: "tabletop_goal",
    CONTROL: "tabletop_decorrelated",
}


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How one policy is trained.

    Attributes:
        name: one of `SUITE_OF`.
        demonstrations: number of episodes of the expert.
        steps: optimizer steps.
    """

    name: str
    demonstrations: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is run.

    Attributes:
        seeds: number of seeds, each with its own demonstrations, weights, order and scenes.
        regimes: the policies.
        attempts: the most trainings of a policy: one that does not do its clean scenes is trained
            again from other weights.
        tried: scenes in which that is seen; no others are measured there.
        perturbations: see `interp.data.tabletop.perturbations.NAMES`.
        episodes: per policy, scenes and perturbation.
        frames: held-out frames on which inputs are exchanged.
        probed: scenes that a probe is fitted on, and as many that it is tested on.
        fractions: shares of the neurons that are ablated.
        draws: random controls of each.
        ablated_episodes: per ablation, clean and swapped.
        batch_size, lr: of the training.
        shape: of the policy.
    """

    seeds: int
    regimes: tuple[Regime, ...]
    attempts: int
    tried: int
    perturbations: tuple[str, ...]
    episodes: int
    frames: int
    probed: int
    fractions: tuple[float, ...]
    draws: int
    ablated_episodes: int
    batch_size: int = 64
    lr: float = 2e-3
    shape: PolicyConfig = field(default_factory=PolicyConfig)


_PERTURBATIONS = (
    "object",
    "swap",
    "shift 7 cm",
    "shift 14 cm",
    "semantic",
    "task",
    "environment",
    "corrupted xxx",
    "corrupted random words",
    "other_task",
    "unseen",
    "composition",
    "sequence",
)

PRESETS = {
    "smoke": Preset(
        seeds=1,
        regimes=(
            Regime(name=SCENE, demonstrations=16, steps=20),
            Regime(name=TEXT, demonstrations=16, steps=20),
            Regime(name=CONTROL, demonstrations=16, steps=20),
        ),
        attempts=2,
        tried=2,
        perturbations=_PERTURBATIONS,
        episodes=2,
        frames=24,
        probed=12,
        fractions=(0.2,),
        draws=1,
        ablated_episodes=2,
        batch_size=16,
        shape=PolicyConfig(width=16, depth=2, heads=2, hidden=32),
    ),
    "small": Preset(
        seeds=3,
        regimes=(
            Regime(name=SCENE, demonstrations=320, steps=1200),
            Regime(name=TEXT, demonstrations=320, steps=1200),
            Regime(name=CONTROL, demonstrations=3000, steps=4000),
        ),
        attempts=4,
        tried=24,
        perturbations=_PERTURBATIONS,
        episodes=40,
        frames=200,
        probed=400,
        fractions=(0.05, 0.1, 0.2),
        draws=2,
        ablated_episodes=40,
    ),
    "paper": Preset(
        seeds=3,
        regimes=(
            Regime(name=SCENE, demonstrations=2000, steps=8000),
            Regime(name=TEXT, demonstrations=2000, steps=8000),
            Regime(name=CONTROL, demonstrations=20_000, steps=20_000),
        ),
        attempts=4,
        tried=100,
        perturbations=(*_PERTURBATIONS, "shift 3 cm", "shift 10 cm", "shift 21 cm"),
        episodes=500,
        frames=1000,
        probed=2000,
        fractions=(0.02, 0.05, 0.1, 0.2, 0.4),
        draws=5,
        ablated_episodes=200,
        shape=PolicyConfig(width=256, depth=8, heads=8, hidden=1024),
    ),
}
