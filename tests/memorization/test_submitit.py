"""A scan as an array of submitit: what the guide shows, with processes of this machine for nodes."""

from __future__ import annotations

from pathlib import Path

import letters
import pandas as pd
import pytest

import interp
from interp.memorization.shards import merge


@pytest.mark.slow
def test_shares_of_an_array_merge_to_one_scan(tmp_path: Path):
    submitit = pytest.importorskip("submitit", reason="needs it: pip install 'interp[cluster]'")
    texts = letters.noise(5, 32, seed=1)
    folder = letters.saved(letters.subject(), tmp_path / "model")

    def scan_share(index: int) -> Path:
        from interp.data.tokenized import Share

        out = tmp_path / "shares" / str(index)
        subject = interp.load(folder, device="cpu")
        interp.scan(subject, texts, 8, 8, folder=out, share=Share(index, of=2))
        return out

    executor = submitit.AutoExecutor(tmp_path / "log", cluster="local")
    executor.update_parameters(timeout_min=10)
    jobs = executor.map_array(scan_share, range(2))
    frame = merge(job.result() for job in jobs)
    whole = interp.scan(interp.load(folder, device="cpu"), texts, 8, 8)
    pd.testing.assert_frame_equal(frame, whole, rtol=1e-5, atol=1e-5)
