"""Fixtures shared by all tests of the core: one tiny subject for each architecture."""

from __future__ import annotations

import pytest
from architectures import ALL

import interp


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def subject(name: str) -> interp.Subject:
    import tiny

    return tiny.subject(name)


@pytest.fixture
def llama() -> interp.Subject:
    import tiny

    return tiny.subject("llama")
