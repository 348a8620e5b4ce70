"""AutoGluon's own copy of Toto, where the distribution ``autogluon.timeseries`` lies.

Its code of Toto needs nothing of the rest of AutoGluon, whose packages are not imported here, so
that ``pip install --no-deps autogluon.timeseries`` is enough.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import forked
import pytest
from carrier_cases import AUTOGLUON
from test_carriers import EITHER_ORDER, HERE, done

try:
    FOLDER = Path(str(importlib.metadata.distribution("autogluon.timeseries").locate_file("")))
except importlib.metadata.PackageNotFoundError:
    pytest.skip("autogluon.timeseries is not here", allow_module_level=True)

PACKAGES_AROUND_IT = f"""
import os, sys, types
parts = {AUTOGLUON!r}.split(".")[:-1]
for depth in range(1, len(parts) + 1):
    package = types.ModuleType(".".join(parts[:depth]))
    package.__path__ = [os.path.join({str(FOLDER)!r}, *parts[:depth])]
    sys.modules[package.__name__] = package
"""


@pytest.mark.parametrize("order", ["import, apply", "apply, import"])
def test_its_forecasts_are_the_same_and_fast(order: str) -> None:
    code = PACKAGES_AROUND_IT + EITHER_ORDER
    done(forked.python(code, HERE, arguments=(AUTOGLUON, order)))
