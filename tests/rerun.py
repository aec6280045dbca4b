"""A finished job, run again on the models that its run kept."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from interp.experiment.jobs import Kept


def check_same(finished: Kept) -> None:
    """The job gives again exactly the tables that are kept of it."""
    before = finished.tables()
    again = replace(finished, place=finished.place.parents[1] / "again" / finished.place.name)
    again.finish()
    after = again.tables()
    assert list(after) == list(before)
    for name, table in after.items():
        pd.testing.assert_frame_equal(table, before[name], check_exact=True)
