"""What must hold before a job leaves for NDIF, where it would fail minutes later and less clearly."""

from __future__ import annotations

import re
from typing import Any


def check_hosted(model: Any, peer: Any) -> None:
    """Raises ValueError unless `model` is an nnsight model made from a hub id and the server runs
    the installed nnsight (`peer`)."""
    name = getattr(model, "repo_id", None)
    if not hasattr(model, "to_model_key") or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(name)):
        raise ValueError(
            f'remote=True needs nnsight.TransformersModel("owner/name"): NDIF hosts hub models; got {name or type(model).__name__}'
        )
    there = peer.ndif.get_remote_env()["packages"].get("nnsight")
    if there != peer.__version__:
        raise ValueError(
            f"NDIF runs nnsight {there} and here is {peer.__version__}: install the server's version"
        )
