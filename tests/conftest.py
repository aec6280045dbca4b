"""Fixtures shared by all tests of the core: one tiny subject for each architecture."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from architectures import ALL
from hypothesis import settings

import interp

# The files that take longest, by their time. A file stays with one worker, so these go first: a
# worker that began one of them last would end a minute after the others. pytest-xdist's own order,
# by the number of tests, puts those with few long tests last.
LONGEST = (
    "test_reason_to_rote",
    "test_iar_memorization",
    "test_cli_images",
    "test_committed_results",
    "test_localization_benchmarks",
    "test_coverage",
    "test_sweeping",
    "test_cli",
    "test_extraction_drop",
    "test_second_device",
    "test_sharding",
    "test_device_maps",
    "test_settings",
    "test_windows",
    "test_registry",
    "test_checkpoints",
    "test_known_answers",
    "test_circuits",
    "test_real_model",
    "test_fit",
    "test_interventions",
    "test_learned_masks",
    "test_processes",
)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False
    # Timing never gates a test: examples may take any time on a machine that is busy.
    settings.register_profile("any time", deadline=None)
    settings.load_profile("any time")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def shared_models_stay_as_they_are(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that changes a shared model would make tests of other files fail, in an order that
    depends on how many workers there are."""
    yield
    tiny = sys.modules.get("tiny")
    if tiny is not None:
        changed = tiny.changed()
        assert not changed, f"{request.node.nodeid} changed {changed}: copy a model to change it"


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
