"""The workbench in a browser, as a user drives it: in JupyterLab and in marimo."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import letters
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(__file__).parents[2] / "out" / "screenshots"
TEXTS = letters.noise(8, 32, seed=0)
WIDTH = 1280

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'interp[browser]'")

CELL = """import interp
subject = interp.load({model!r})
frame = interp.scan(subject, {texts!r}, prefix=8, length=8)
memorized, control = interp.split(frame)
bench = interp.Workbench(subject, memorized, control[:6], control[6:])
"""


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    letters.saved(letters.overfitted(TEXTS[:4]), folder)
    return CELL.format(model=str(folder), texts=TEXTS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def served(command: list[str], folder: Path, port: int) -> Iterator[str]:
    """A server of notebooks, from when it answers."""
    place = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "JUPYTER_CONFIG_DIR": str(folder), "HOME": str(folder)},
        )
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(place, timeout=5)
                    break
                except OSError:
                    assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
                    time.sleep(0.5)
            yield place
        finally:
            server.terminate()
            server.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_jupyter(browser: Any, cell: str, folder: Path) -> Iterator[Any]:
    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "id": "one",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": cell + "bench",
            }
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (folder / "w.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    options = [f"--port={port}", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    no_password = ["--IdentityProvider.token=", "--ServerApp.password="]
    with served(["jupyterlab", *options, *no_password], folder, port) as place:
        page = browser.new_page(viewport={"width": WIDTH, "height": 1200})
        page.goto(f"{place}/doc/tree/w.ipynb")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=120_000)
        run_first_cell(page)
        yield page
        page.close()


def run_first_cell(page: Any) -> None:
    page.get_by_text("| Idle").first.wait_for(timeout=120_000)
    page.locator(".jp-Cell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")


def in_marimo(browser: Any, cell: str, folder: Path) -> Iterator[Any]:
    indented = "".join(f"    {line}\n" for line in cell.splitlines())
    (folder / "app.py").write_text(
        "import marimo\n"
        'app = marimo.App(width="full")\n'
        "@app.cell\n"
        "def _():\n"
        "    import marimo as mo\n"
        f"{indented}"
        "    mo.ui.anywidget(bench)\n"
        "    return\n"
    )
    port = free_port()
    options = ["run", "app.py", "--headless", "--no-token", "--port", str(port)]
    with served(["marimo", *options], folder, port) as place:
        page = browser.new_page(viewport={"width": WIDTH, "height": 1200}, color_scheme="dark")
        page.goto(place)
        yield page
        page.close()


@pytest.mark.parametrize("host", [in_jupyter, in_marimo])
def test_everything_that_is_clicked_changes_the_numbers_and_they_come_back(
    host: Callable[..., Iterator[Any]], browser: Any, cell: str, tmp_path: Path
):
    for page in host(browser, cell, tmp_path):
        problems = Problems(page)
        bench = Bench(page)
        bench.settled("0 of 96 units")
        start = bench.numbers()
        assert "1.00" in start
        generated = bench.generated()

        # The slider
        bench.get_by_label("number of top units, as a slider").fill("900")
        bench.settled(f"{round(96**0.9)} of 96 units")
        assert bench.numbers() != start
        assert bench.generated() != generated
        page.keyboard.press("Escape")
        PICTURES.mkdir(parents=True, exist_ok=True)
        bench.screenshot(path=PICTURES / f"{host.__name__}.png")
        bench.button("Undo").click()
        bench.settled("0 of 96 units")
        assert bench.numbers() == start
        assert bench.generated() == generated

        # A block
        bench.button("block 1").click()
        bench.settled("48 of 96 units")
        assert bench.button("block 1").get_attribute("aria-pressed") == "true"
        whole_block = bench.numbers()
        bench.button("block 1").click()
        bench.settled("0 of 96 units")

        # Dragging over units, and a rectangle of them
        bench.drag((1, 0), (4, 0))
        bench.settled("4 of 96 units")
        bench.drag((10, 0), (11, 1), rectangle=True)
        bench.settled("8 of 96 units")

        # The keyboard
        bench.button("Clear").click()
        bench.settled("0 of 96 units")
        bench.locator("canvas").focus()
        page.keyboard.press("Home")
        page.keyboard.press("PageDown")
        page.keyboard.press("b")
        bench.settled("48 of 96 units")
        assert bench.numbers() == whole_block

        # A method, a control, an intervention, positions
        bench.get_by_label("method").select_option("activation")
        expect(bench.get_by_text("score by activation:")).to_be_visible(timeout=60_000)
        bench.button("Clear").click()
        count = bench.get_by_label("number of top units", exact=True)
        count.fill("7")
        count.press("Enter")
        bench.settled("7 of 96 units (top 7 by activation)")
        bench.button("Random").click()
        bench.settled("7 random, seed 0")
        bench.get_by_label("intervention").select_option("scale")
        bench.settled("scale by 0.5")
        bench.get_by_label("positions").select_option("chosen")
        bench.settled("where tokens (none chosen yet) are predicted")
        bench.locator(".token").nth(9).click()
        bench.settled("where tokens 9 are predicted")
        expect(bench.locator(".tries tbody tr").first).to_contain_text("tokens 9")

        # Nothing is wider than the page, and nothing went wrong
        assert bench.evaluate("node => node.scrollWidth - node.clientWidth") <= 1
        assert not problems.found
        assert not bench.get_by_role("alert").is_visible()


def expect(locator: Any) -> Any:
    return playwright.expect(locator)


class Problems:
    """Errors of the page's scripts."""

    def __init__(self, page: Any) -> None:
        self.found: list[str] = []
        page.on("pageerror", lambda error: self.found.append(str(error)))


class Bench:
    """The widget on a page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.node = page.locator(".interp-workbench")
        self.node.wait_for(timeout=180_000)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def button(self, name: str) -> Any:
        return self.node.get_by_role("button", name=name, exact=True)

    def settled(self, chosen: str) -> None:
        """Waits until the page shows a selection and all that follows from it."""
        expect(self.node.locator(".chosen")).to_contain_text(chosen, timeout=60_000)
        expect(self.node.locator(".status")).to_have_text(
            re.compile("up to date|copied"), timeout=60_000
        )

    def numbers(self) -> str:
        return self.node.locator(".results").inner_text()

    def generated(self) -> str:
        """What is generated now: before, where nothing is selected."""
        return self.node.locator(".continuation .text").last.inner_text()

    def drag(
        self, start: tuple[int, int], end: tuple[int, int], *, rectangle: bool = False
    ) -> None:
        """From the unit in a column and block to another."""
        canvas = self.node.locator("canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        height = box["height"] / 2  # two blocks

        def point(column: int, block: int) -> tuple[float, float]:
            return box["x"] + 16 * column + 8, box["y"] + height * block + 8

        mouse = self.page.mouse
        if rectangle:
            self.page.keyboard.down("Shift")
        mouse.move(*point(*start))
        mouse.down()
        mouse.move(*point(*end), steps=3)
        mouse.up()
        if rectangle:
            self.page.keyboard.up("Shift")
