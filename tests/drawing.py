"""Figures that are made but not drawn: drawing one to a file takes a second, longer than most of
what is shown in it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def undrawn() -> Generator[None]:
    """Figures that are saved become empty files."""

    def touch(_: object, file: str | Path, **__: object) -> None:
        Path(file).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", touch)
        # PNG files are drawn into memory first.
        patch.setattr("interp.reporting.plotting._save_png", touch)
        yield
