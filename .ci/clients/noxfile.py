"""Toto's clients, each in an environment of its own, unpatched and patched.

    nox -f .ci/clients/noxfile.py               all of them, one after the other
    nox -f .ci/clients/noxfile.py -s sktime     one of them
    nox -f .ci/clients/noxfile.py -s pin -- sktime      its pins anew, from requirements/sktime.in

Each keeps its figures in results.json; ``python .ci/tables.py`` then makes the README's table.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import nox

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CLIENTS = ("gluonts", "sktime", "foundationforecast", "gift_eval", "fev", "autogluon")
PYTHON = "3.11"

# Outside of the repository, of which tests and lint make copies.
nox.options.envdir = str(Path(tempfile.gettempdir()) / "toto_compile_patch_clients")
nox.options.sessions = CLIENTS

WITHOUT_DEPENDENCIES = {
    "foundationforecast": ("foundationforecast==0.1.17", "granite-tsfm==0.3.11"),
    "autogluon": (),
}
"""What refuses this torch, and comes without what it asks for. Of other clients that is toto-ts;
these bring Toto's code themselves."""


def run_client(session: nox.Session, client: str) -> None:
    """Run one client by upstream's code and patched, and keep the figures."""
    session.install("--no-deps", "-r", str(HERE / "requirements" / f"{client}.txt"))
    session.install("--no-deps", "--editable", str(ROOT))
    session.run(
        "python",
        str(HERE / "measure.py"),
        f"{client}_client",
        "--json",
        str(HERE / "results.json"),
        # The demo model is too small for more threads; they would wait for whatever else runs.
        env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": session.create_tmp()},
    )


def pin(session: nox.Session) -> None:
    """Write down the versions that a client's loose requirements give today."""
    (client,) = session.posargs
    loose = HERE / "requirements" / f"{client}.in"
    report = Path(session.create_tmp()) / "report.json"
    session.run(
        *("pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--report", str(report), "-r", str(loose)),
    )
    found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    # A build's own mark is no part of a version that everybody can install.
    pins = [f"{one['name']}=={one['version'].partition('+')[0]}" for one in found]
    pins += WITHOUT_DEPENDENCIES.get(client, ("toto-ts==0.2.0",))
    text = "".join(f"{line}\n" for line in sorted(pins, key=str.lower))
    loose.with_suffix(".txt").write_text(text)


for name in CLIENTS:
    run: Any = partial(run_client, client=name)
    run.__doc__ = f"Run {name} by upstream's code and patched, and keep the figures."
    nox.session(run, python=PYTHON, name=name)
nox.session(pin, python=PYTHON)
