"""Fixtures of the tests of the whole daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.kit import Site
from tests.harness import DaemonFactory
from tests.system.systemd_user import user_manager

__all__ = ["factory", "site", "sites", "user_manager"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Fake models of one test."""
    return Site(tmp_path)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Fake models of a module whose tests share one daemon."""
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonFactory]:
    """Daemons that the tests of a module share: starting one costs more than most tests do."""
    with DaemonFactory(tmp_path_factory.mktemp("daemons")) as made:
        yield made
