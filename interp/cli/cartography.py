"""The command that lists the hotspots of a training: `interp cartography`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.options import AsJson
from interp.cli.steps import advise, plain_errors, print_result

_SHOWN = ["example", "difficulty", "loss_drop", "last_loss", "quadrant"]
# Of each score its name and unit on the axis of the figure, and whether it is high for what was
# memorized. Written out, because `--help` lists them without importing torch.
_AXES = {
    "loss_drop": "loss drop, from the first moment to the last (nats per token)",
    "forget_events": "forget events (share of moments)",
    "relative_forget_events": "relative forget events (share of moments)",
    "confidence": "confidence (mean probability of a token)",
    "variability": "variability of the probability of a token",
    "correctness": "number of moments at which the example was right",
    "forgetfulness": "forgetfulness (events; 1000 if never right)",
    "difficulty": "difficulty: mean loss early in training (nats per token)",
}


@plain_errors
def cartography(
    history: Annotated[
        Path,
        typer.Argument(
            help="File with the losses of all examples over a training, as "
            "`recorder.history.save(FILE)` writes it after `interp.fit(..., callback=recorder)`."
        ),
    ],
    score: Annotated[
        str,
        typer.Option(
            help=f"Score by which examples are ranked, highest first: one of {', '.join(_AXES)}. "
            "`forget_events` is the one that GenDataCarto published; with small models it does not "
            "find what is repeated, and loss_drop does."
        ),
    ] = "loss_drop",
    top: Annotated[int, typer.Option(help="How many examples to list.", min=1)] = 20,
    figure: Annotated[
        Path | None,
        typer.Option(help="File for the data map, ending in .png, .pdf or .svg; none by default."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="File for all scores of all examples, as CSV; none by default."),
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """List the examples that a model has memorized most while it was trained.

    An example is hard if its mean loss early in training is above the median, and memorized if its
    score is above the 90th percentile. Of memorized examples, those that are not hard are called
    `hotspot, memorized`, and hard ones `noisy outlier`. Random strings are hard, so look for
    memorized ones among the outliers.

    Losses are in nats per token. `example` is the number of the row that was trained on, from 0.

    Example: `interp cartography history.safetensors --score loss_drop --top 20 --figure map.png`
    """
    from interp.errors import closest
    from interp.memorization.dynamics import LossHistory

    recorded = LossHistory.load(history)
    frame = recorded.frame()
    if score not in _AXES:
        raise ValueError(
            f"--score {score!r}: expected one of {', '.join(_AXES)}; "
            f"nearest: {closest(score, _AXES)}"
        )
    if score not in frame:
        raise ValueError(
            f"--score {score}: accuracy was not recorded in {history}; record it with "
            "CheckpointRecorder, or use another score"
        )

    from interp.files import replaced
    from interp.mitigation.data_map import data_map
    from interp.mitigation.reweighting import HOTSPOT, OUTLIER, quadrants
    from interp.reporting.plotting import save as save_figure

    difficulty = frame["difficulty"].to_numpy()
    memorization = frame[score].to_numpy(dtype=float)
    regions = quadrants(difficulty, memorization)
    frame["quadrant"] = regions
    if figure is not None:
        drawn = data_map(difficulty, memorization, score=_AXES[score])
        save_figure(drawn, figure)
    if save is not None:
        with replaced(save) as temporary:
            frame.to_csv(temporary, index=False)

    # Stable, so that examples with equal scores stay in their order.
    best = frame.sort_values(score, ascending=False, kind="stable").head(top)
    columns = list(_SHOWN) if score in _SHOWN else ["example", score, *_SHOWN[1:]]
    shown: Any = best[columns]
    summary: dict[str, Any] = {
        "examples": len(frame),
        "moments": len(recorded.steps),
        "recorded": recorded.recorded,
        "score": score,
        "hotspots": int((regions == HOTSPOT).sum()),
        "outliers": int((regions == OUTLIER).sum()),
    }
    if as_json:
        summary["top"] = shown.to_dict("records")
    print_result(as_json, summary, shown, f"examples with the highest {score}")
    if not memorization.any() and not as_json:
        advise(f"{score} is 0 for all examples, so that their order says nothing: use loss_drop")
