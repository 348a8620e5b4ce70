"""``activate`` and ``deactivate``: a variable patches, and the environment stays clean."""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import toto
import wrapt

import toto_compile_patch

PACKAGE = Path(toto_compile_patch.__file__).parent
HERE = Path(__file__).parent
COMMAND = ("-m", "toto_compile_patch")
NAME = "toto_compile_patch_auto.pth"

FORECAST = """
import sys
from toto_cases import forecast, series, tiny_model
forecast(tiny_model().model, series(40), 16)
package = sys.modules.get("toto_compile_patch")
path = package and package.last_path()
print(path and path.taken, package and package.settings.in_force().rng)
"""


class Environment(NamedTuple):
    """A virtual environment with a copy of the package, which also finds what is installed here.

    Attributes:
        python: its interpreter.
        root: its folder.
        packages: its site-packages.
    """

    python: Path
    root: Path
    packages: Path

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run its Python, with a user's environment variables."""
        kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            cwd=self.root.parent,
            env={**kept, "PYTHONWARNINGS": "ignore", **environ},
        )

    def files(self) -> dict[str, str]:
        """Every file in it, with a hash of what it holds."""
        return {
            str(file.relative_to(self.root)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in self.root.rglob("*")
            if file.is_file()
        }


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    root = tmp_path / "environment with a blank, ü and 'quotes'"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    made = Environment(root / scripts / "python", root, Path())
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(made.run("-c", code).stdout.strip())
    # As pip installs it: compiled. The rest is found where it is, and so are the tests' helpers.
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, packages / PACKAGE.name, ignore=leave_out)
    compileall.compile_dir(packages, quiet=1)
    places = {str(Path(str(module.__file__)).parents[1]) for module in (torch, toto, wrapt)}
    (packages / "others.pth").write_text("\n".join([*places, str(HERE)]))
    return made._replace(packages=packages)


@pytest.fixture
def activated(environment: Environment) -> Environment:
    assert environment.run(*COMMAND, "activate").returncode == 0
    return environment


def test_activation_and_deactivation_leave_an_environment_as_it_was(
    environment: Environment,
) -> None:
    before, file = environment.files(), environment.packages / NAME
    for _ in range(2):
        done = environment.run(*COMMAND, "activate")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"wrote {file}\n")
        assert "TOTO_COMPILE_PATCH_AUTO=1" in done.stdout
    added = environment.files().items() - before.items()
    assert [name for name, _ in added] == [str(file.relative_to(environment.root))]
    assert len(file.read_text().splitlines()) == 1
    # Whatever runs meanwhile leaves nothing either.
    assert environment.run("-c", "pass", TOTO_COMPILE_PATCH_AUTO="1").returncode == 0
    done = environment.run(*COMMAND, "deactivate", TOTO_COMPILE_PATCH_AUTO="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"removed {file}\n")
    assert environment.files() == before
    done = environment.run(*COMMAND, "deactivate")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"This environment is not activated: there is no {file}\n"


@pytest.mark.parametrize("command", ["activate", "deactivate"])
def test_what_cannot_be_changed_is_refused_in_one_line(
    command: str, environment: Environment
) -> None:
    file = environment.packages / NAME
    file.mkdir()
    done = environment.run(*COMMAND, command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{command}: error: cannot ")
    cures = {
        "activate": ": run it as a user who may write there, or in a virtual environment of your",
        "deactivate": ": remove it by hand, or as a user who may",
    }
    assert cures[command] in done.stderr
    assert str(file) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may write anywhere")
def test_site_packages_that_are_not_ones_own(environment: Environment) -> None:
    environment.packages.chmod(0o555)
    try:
        done = environment.run(*COMMAND, "activate")
    finally:
        environment.packages.chmod(0o755)
    assert done.returncode == 2
    assert "(Permission denied): run it as a user who may write there" in done.stderr


@pytest.mark.parametrize(
    ("text", "acts"),
    [("1", True), ("true", True), (" Yes ", True), ("ON", True), ("", False), ("0", False),
     ("2", False), ("off", False)],
)  # fmt: skip
def test_what_the_variable_may_be(text: str, acts: bool, activated: Environment) -> None:
    code = "import sys; print(any('toto_compile' in type(x).__module__ for x in sys.meta_path))"
    done = activated.run("-c", code, TOTO_COMPILE_PATCH_AUTO=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{acts}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"_AUTO": "1", "_RNG": "upstream"}, "fast upstream"),
        ({"_AUTO": "1", "": "0"}, "None fast"),
        ({"_RNG": "upstream"}, "None None"),
    ],
)
def test_a_script_without_a_line_for_it(
    variables: dict[str, str], expected: str, activated: Environment
) -> None:
    environ = {f"TOTO_COMPILE_PATCH{name}": text for name, text in variables.items()}
    done = activated.run("-c", FORECAST, **environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")


@pytest.mark.slow
def test_a_setting_that_does_not_exist_is_one_line(activated: Environment) -> None:
    code = "import toto.model.toto\nprint('ran')"
    variables = {"TOTO_COMPILE_PATCH_AUTO": "1", "TOTO_COMPILE_PATCH_RUNTIME": "warp"}
    done = activated.run("-c", code, **variables)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.startswith("toto_compile_patch: not applied: TOTO_COMPILE_PATCH_RUNTIME")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_run_in_an_activated_environment_applies_once(activated: Environment) -> None:
    script = activated.root.parent / "script.py"
    script.write_text(
        "import sys, toto_compile_patch, toto.inference.forecaster\n"
        "print([type(x).__module__ for x in sys.meta_path].count('toto_compile_patch.import_hook'))"
    )
    variables = {"TOTO_COMPILE_PATCH_AUTO": "1", "TOTO_COMPILE_PATCH_LOG": "info"}
    done = activated.run(*COMMAND, "run", str(script), **variables)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr.count(": applied: ") == 1


def test_run_where_something_has_imported_the_package_before(activated: Environment) -> None:
    (activated.packages / "earlier.pth").write_text("import toto_compile_patch\n")
    script = activated.root.parent / "script.py"
    script.write_text(
        "import sys\n"
        "from toto_compile_patch import import_hook\n"
        "print([x.armed for x in sys.meta_path if type(x).__module__ == import_hook.__name__])\n"
        "print(import_hook._finder in sys.meta_path)\n"
    )
    for variables in ({}, {"TOTO_COMPILE_PATCH_AUTO": "1"}):
        done = activated.run(*COMMAND, "run", str(script), **variables)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[True]\nTrue\n", "")


def test_an_activation_where_something_has_imported_the_package_before(
    activated: Environment,
) -> None:
    (activated.packages / "earlier.pth").write_text("import toto_compile_patch\n")
    code = (
        "import sys; from toto_compile_patch import import_hook as hook\n"
        "print(hook._finder in sys.meta_path and hook._finder.armed)"
    )
    done = activated.run("-c", code, TOTO_COMPILE_PATCH_AUTO="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_what_a_process_without_toto_pays(activated: Environment) -> None:
    code = "import sys; print(sorted(sys.modules), len(sys.meta_path))"
    off, other = activated.run("-c", code), activated.run("-c", code, TOTO_COMPILE_PATCH_AUTO="off")
    assert off.stdout == other.stdout
    assert activated.run(*COMMAND, "deactivate").returncode == 0
    assert activated.run("-c", code).stdout == off.stdout
    assert activated.run(*COMMAND, "activate").returncode == 0
    code = "import sys; print(*sys.modules, sep='\\n')"
    without = activated.run("-c", code)
    on = activated.run("-c", code, TOTO_COMPILE_PATCH_AUTO="1")
    more = set(on.stdout.split()) - set(without.stdout.split())
    assert on.stderr == ""
    assert {name.partition(".")[0] for name in more} <= {"__future__", "importlib", "warnings"}


def test_nothing_is_said_where_the_package_has_been_uninstalled(activated: Environment) -> None:
    shutil.rmtree(activated.packages / PACKAGE.name)
    done = activated.run("-c", "print('ran')", TOTO_COMPILE_PATCH_AUTO="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_its_commands_wait_for_nothing_that_is_applied(activated: Environment) -> None:
    flags = ("-X", "importtime")
    done = activated.run(*flags, *COMMAND, "deactivate", TOTO_COMPILE_PATCH_AUTO="1")
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "toto_compile_patch.tools.activate" in imported
    assert not {"torch", "toto"} & imported


@pytest.mark.slow
def test_the_doctor_names_an_activation(activated: Environment) -> None:
    def doctor(**environ: str) -> str:
        # Wide enough for any path: a line that is wrapped may cut it.
        said = activated.run(*COMMAND, "doctor", COLUMNS="400", **environ).stdout
        return " ".join(said.split())

    said = doctor(TOTO_COMPILE_PATCH_AUTO="1")
    assert f"This environment is activated ({activated.packages / NAME})" in said
    assert "Nothing is in the way: a small forecast took the fast path" in said
    assert activated.run(*COMMAND, "deactivate").returncode == 0
    said = doctor(TOTO_COMPILE_PATCH_AUTO="1")
    assert "TOTO_COMPILE_PATCH_AUTO is set, and does nothing" in said
    assert "toto-compile-patch activate" in said
