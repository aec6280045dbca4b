"""Modes are switched for every submodule, and come back for each as it was."""

from __future__ import annotations

import pytest
from torch import nn

from interp.hooks.modes import dropout_off


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("child", [True, False])
def test_dropout_is_off_in_every_submodule_and_each_mode_comes_back(whole: bool, child: bool):  # noqa: FBT001
    """Also where one submodule alone is in training mode, as a frozen model with live dropout."""
    dropout = nn.Dropout()
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(dropout)).train(whole)
    dropout.train(child)
    before = [part.training for part in module.modules()]
    with dropout_off(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == before
