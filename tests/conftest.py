"""Every test starts and ends unpatched, with nothing of the package's in the environment."""

from __future__ import annotations

import os
import signal

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


def pytest_configure() -> None:
    # Whoever runs tests in the background has told them, and what they start, to ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int:
    """How many random cases to try."""
    count: int = request.config.getoption("--cases")
    return count


@pytest.fixture(autouse=True)
def unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in [name for name in os.environ if name.startswith("TOTO_COMPILE_PATCH")]:
        monkeypatch.delenv(variable)
    # Processes that a test starts shall warn as a user's do.
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    yield
    toto_compile_patch.revert(force=True)


@pytest.fixture
def checked_distributions() -> Iterator[None]:
    """Upstream's distributions check their parameters, as in a process that has compiled nothing.

    Dynamo switches these checks off, for good and for the whole process, at its first use.
    """
    found = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(True)
    yield
    torch.distributions.Distribution.set_default_validate_args(found)
