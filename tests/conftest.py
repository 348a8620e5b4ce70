"""Every test starts and ends unpatched, with nothing of the package's in the environment."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each compute with all cores wait for one another at every operator. Before torch
    # is imported, and for the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import torch

import toto_compile_patch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, default=320, help="random models to compare")
    parser.addoption("--edits", type=int, default=5, help="random edits of weights, of each kind")


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int:
    """How many random cases to try."""
    count: int = request.config.getoption("--cases")
    return count


@pytest.fixture(autouse=True)
def unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in [name for name in os.environ if name.startswith("TOTO_COMPILE_PATCH")]:
        monkeypatch.delenv(variable)
    # Dynamo switches these checks off, for the whole process, when it compiles a distribution.
    torch.distributions.Distribution.set_default_validate_args(__debug__)
    yield
    toto_compile_patch.revert(force=True)
