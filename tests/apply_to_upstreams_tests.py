"""A pytest plugin that applies the patches: ``pytest -p apply_to_upstreams_tests``."""

from __future__ import annotations

import toto_compile_patch

toto_compile_patch.apply()


def pytest_unconfigure() -> None:
    """The patches stood until the end, or the run would prove nothing."""
    if not toto_compile_patch.is_applied():
        raise RuntimeError("the patches did not stand until the end of upstream's tests")
