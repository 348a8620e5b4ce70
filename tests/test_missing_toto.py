"""Where toto cannot be imported, everything says so, and nothing else breaks."""

from __future__ import annotations

import forked
import pytest

SCRIPT = """
import sys
# Their imports raise ModuleNotFoundError then; of AutoGluon, whose copy would serve, as well.
sys.modules["toto"] = sys.modules["autogluon"] = None
import toto_compile_patch as p
try:
    p.apply()
except p.TotoNotFoundError as error:
    assert isinstance(error, ImportError)
    assert "pip install toto-ts" in str(error)
else:
    raise SystemExit("apply() went through")
try:
    p.compile(object())
except p.TotoNotFoundError:
    pass
else:
    raise SystemExit("compile() went through")
assert not p.is_applied()
p.revert()
assert {row.state for row in p.status()} == {"unavailable"}
assert "pip install toto-ts" in str(p.status())
"""


@pytest.mark.fault(
    injected="toto or torch is not installed",
    where="apply(), status(), revert()",
    observed="TotoNotFoundError, which says what to install",
    afterwards="nothing is applied",
)
def test_without_toto() -> None:
    run = forked.python(SCRIPT)
    assert run.returncode == 0, run.stderr
