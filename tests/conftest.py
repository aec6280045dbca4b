"""Fixtures shared by all tests of the core: one tiny subject for each architecture."""

from __future__ import annotations

import functools
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
    "test_committed_results",
    "test_code_eraser",
    "test_reason_to_rote",
    "test_libero_pro",
    "test_iar_memorization",
    "test_cli_images",
    "test_localization_benchmarks",
    "test_settings",
    "test_second_device",
    "test_data_cartography",
    "test_cli_unlearn",
    "test_coverage",
    "test_mem_sinks",
    "test_sweeping",
    "test_cli",
    "test_sharding",
    "test_device_maps",
    "test_registry",
    "test_windows",
    "test_checkpoints",
    "test_real_model",
    "test_law",
    "test_code_secrets",
    "test_circuits",
    "test_entropy_law",
    "test_known_answers",
    "test_extraction_drop",
    "test_learned_masks",
    "test_unsummed",
    "test_fit",
    "test_interventions",
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


@pytest.fixture(scope="session", autouse=True)
def commands_are_built_once() -> Iterator[None]:
    """Typer's runner builds all commands of `interp` anew for each one that it runs, which takes
    longer than most of those that end in an error."""
    from typer.main import get_command

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(get_command))
        yield


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
