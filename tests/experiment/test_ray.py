"""Laws of joblib's Ray backend: jobs of experiments and sweeps give there what they give here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
import tiny
import torch

import interp
from experiments.planted_leak import EXPERIMENT
from interp.engine.parallel_sweeps import sweep_in_processes


@pytest.fixture(scope="module")
def on_ray() -> Iterator[joblib.parallel_config]:
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'interp[cluster]'")
    from ray.util.joblib import register_ray

    with pytest.MonkeyPatch.context() as patch:
        # Without a token in the user's home, without a report of usage.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        register_ray()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield joblib.parallel_config("ray", n_jobs=2)
        ray.shutdown()


@pytest.mark.slow
def test_an_experiment_is_the_same_on_ray_as_here(on_ray, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EXPERIMENT.reproduce("smoke", 0, "here", jobs=1, device="cpu")
    with on_ray:
        EXPERIMENT.reproduce("smoke", 0, "ray", device="cpu")
    files = {
        folder: {
            str(file.relative_to(folder)): file.read_bytes()
            for file in [Path(folder, "claims.json"), *Path(folder, "tables").iterdir()]
        }
        for folder in ("here", "ray")
    }
    assert files["here"] == files["ray"]


@pytest.mark.slow
def test_a_sweep_is_the_same_on_ray_as_here(on_ray):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        subject = tiny.subject("llama")
        plans = [
            interp.Zero(subject.units(f"blocks.{block}.neurons", [unit]))
            for unit in range(6)
            for block in range(3)
        ]
        for shape in ({"rows": 1}, {"rows": 3, "length": 30}):
            batch = tiny.batch("llama", **shape)
            with on_ray:
                found = sweep_in_processes(subject, batch, plans)
            assert found == interp.sweep(subject, batch, plans)
            assert len(set(found)) > 1
    finally:
        torch.set_num_threads(before)
