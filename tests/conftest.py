"""Fixtures shared by all tests of the core: one tiny subject for each architecture."""

from __future__ import annotations

import pytest
import tiny

import interp


@pytest.fixture(params=tiny.ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def subject(name: str) -> interp.Subject:
    return tiny.subject(name)


@pytest.fixture
def llama() -> interp.Subject:
    return tiny.subject("llama")
