"""Build what would be published, and look at what is in it.

    pip install build twine check-wheel-contents
    python .ci/proof/release.py

Keeps what it found in results/release.json, from which ``python .ci/tables.py`` makes the table of
docs/proof/release.md. Exit code 1 where something is not as it should be. Looks at the files that
git knows, as they lie there, so that nothing else of the folder has a part in it.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / ".ci" / "proof" / "results" / "release.json"
PACKAGE = "toto_compile_patch"
BESIDE_THE_PACKAGE = (
    *("README.md", "LICENSE", "MANIFEST.in", "pyproject.toml", "setup.cfg", "setup.py"),
    ".ci/lint.txt",
)
"""What a wheel is built from, with the package itself."""
MADE = ("PKG-INFO", f"{PACKAGE}.egg-info")
"""What building adds to the source."""


def main() -> int:
    """Build, look, and keep what was found; 1 where something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        checks = dict(look(Path(folder)))
    found = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("build", "twine", "check-wheel-contents")},
        "checks": checks,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    for name, result in checks.items():
        print(f"{name}: {result}")
    return int(any(result.startswith("WRONG") for result in checks.values()))


def look(folder: Path) -> Iterator[tuple[str, str]]:
    """What is looked at, and how it is."""
    source = copy_of_the_source(folder / "source")
    sdist = built("--sdist", source, folder / "sdist")
    wheel = built("--wheel", source, folder / "wheel")
    again = built("--wheel", unpacked(sdist, folder / "unpacked"), folder / "again")
    modules = {name for name in known_to_git() if name.startswith(f"{PACKAGE}/")}
    within = contents(wheel)
    yield "files of the wheel", difference(package_files(within), modules)
    yield "files of the sdist", difference(source_files(sdist), {*modules, *BESIDE_THE_PACKAGE})
    same = within == contents(again)
    yield "wheel that the sdist builds", "the same" if same else "WRONG: it differs"
    yield "check-wheel-contents", run("check_wheel_contents", str(wheel))
    yield "twine check --strict", run("twine", "check", "--strict", str(wheel), str(sdist))
    yield "installed wheel", said_by_the_command(wheel, folder / "environment")


def known_to_git() -> list[str]:
    """The files of the repository, new ones too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def copy_of_the_source(folder: Path) -> Path:
    """What git knows, in a folder where building may leave what it makes."""
    for name in known_to_git():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def built(what: str, source: Path, folder: Path) -> Path:
    """The one file that building makes."""
    command = [sys.executable, "-m", "build", what, "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    [made] = folder.iterdir()
    return made


def unpacked(sdist: Path, folder: Path) -> Path:
    """The one folder that an sdist holds."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [top] = folder.iterdir()
    return top


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def package_files(within: dict[str, bytes]) -> set[str]:
    """Those of a wheel that are not about it."""
    return {name for name in within if not name.split("/")[0].endswith(".dist-info")}


def source_files(sdist: Path) -> set[str]:
    """Those of an sdist that building did not make."""
    with tarfile.open(sdist) as archive:
        names = {one.name.partition("/")[2] for one in archive if one.isfile()}
    return {name for name in names if not name.startswith(MADE)}


def difference(found: set[str], wanted: set[str]) -> str:
    """How many files there are, or which lack or are too many."""
    if found == wanted:
        return f"the {len(found)} that belong there"
    return f"WRONG: lacks {sorted(wanted - found)}, has {sorted(found - wanted)} as well"


def run(*command: str) -> str:
    """Whether a module's command succeeds; else the last line that it prints."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode == 0:
        return "passed"
    return f"WRONG: {(done.stdout + done.stderr).strip().splitlines()[-1]}"


def said_by_the_command(wheel: Path, folder: Path) -> str:
    """What the command of the wheel says of its version, with nothing else installed."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    options = ("--quiet", "--no-deps", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", "install", *options, str(wheel)], check=True)
    done = subprocess.run(
        [folder / "bin" / "toto-compile-patch", "--version"], capture_output=True, text=True
    )
    wanted = f"toto-compile-patch {wheel.name.split('-')[1]}"
    said = done.stdout.strip()
    return f"`{said}`" if said == wanted else f"WRONG: {said or done.stderr.strip()}"


def table() -> str:
    """What was found, in Markdown."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    lines = ["| what is looked at | |", "| --- | --- |"]
    lines += [f"| {name} | {result} |" for name, result in found["checks"].items()]
    tools = ", ".join(f"{name} {found[name]}" for name in ("build", "twine"))
    return "\n".join([*lines, "", f"Python {found['python']}, {tools}, {found['date']}."])


if __name__ == "__main__":
    sys.exit(main())
