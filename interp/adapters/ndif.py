"""What is checked before a job is sent to NDIF, where it would fail minutes later and less
clearly."""

from __future__ import annotations

import re
from typing import Any


def check_hosted(model: Any, peer: Any) -> None:
    """Checks that NDIF can run a model.

    Args:
        model: the model.
        peer: the installed nnsight.

    Raises:
        ValueError: it is not an nnsight model made from a hub id, or the server runs another
            version of nnsight.
    """
    name = getattr(model, "repo_id", None)
    if not hasattr(model, "to_model_key") or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(name)):
        raise ValueError(
            'remote=True needs nnsight.TransformersModel("owner/name"): '
            f"NDIF hosts hub models; got {name or type(model).__name__}"
        )
    there = peer.ndif.get_remote_env()["packages"].get("nnsight")
    if there != peer.__version__:
        raise ValueError(
            f"NDIF runs nnsight {there}, and {peer.__version__} is installed here: "
            "install the server's version"
        )
