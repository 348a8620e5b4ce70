"""``toto-compile-patch activate``: an environment variable patches any Python of an environment.

One ``.pth`` file in site-packages, of a single line, which Python executes when it starts. It acts
only while the variable says so, and does nothing where the package has been uninstalled.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
from pathlib import Path

from toto_compile_patch import import_hook
from toto_compile_patch.settings import TRUE, variable_of
from toto_compile_patch.tools.checks import UsageError, write_whole

VARIABLE = variable_of("auto")
"""The environment variable that lets an activated environment patch."""

_NAME = "toto_compile_patch_auto.pth"

# Executes the package's import hook by its path, without importing the package. Scripts see nothing
# of it before they import the package, so that it does not stay in sys.modules; unless another
# file of this kind has imported the package by then.
_ARM = """\
import sys
from importlib.machinery import PathFinder
hook = sys.modules.get({name!r})
spec = None if hook else PathFinder.find_spec({name!r}, [{folder!a}])
if spec:
    hook = sys.modules[spec.name] = type(sys)(spec.name)
    hook.__file__ = spec.origin
    try:
        spec.loader.exec_module(hook)
    finally:
        del sys.modules[spec.name]
if hook:
    hook.arm()
"""


def run(options: argparse.Namespace) -> int:
    """Write the file, and say so.

    Raises:
        UsageError: it cannot be written.
    """
    file = place()
    write_whole(
        file,
        _line(),
        "run it as a user who may write there, or in a virtual environment of your own",
    )
    print(f"wrote {file}")
    print(f"Any Python of this environment is patched while {VARIABLE}=1 is set.")
    return 0


def deactivate() -> int:
    """Remove the file, and say so.

    Raises:
        UsageError: it cannot be removed.
    """
    file = place()
    try:
        file.unlink()
    except FileNotFoundError:
        print(f"This environment is not activated: there is no {file}")
        return 0
    except OSError as error:
        raise UsageError(
            f"cannot remove {file} ({error.strerror or error}): remove it by hand, or as a user "
            "who may"
        ) from None
    print(f"removed {file}")
    print(f"{VARIABLE} does nothing in this environment any more.")
    return 0


def place() -> Path:
    """Where the file of this environment is, or would be."""
    return Path(sysconfig.get_path("purelib"), _NAME)


def is_asked_for() -> bool:
    """Whether the environment variable lets an activated environment patch."""
    return os.environ.get(VARIABLE, "").strip().lower() in TRUE


def _line() -> str:
    folder = os.path.dirname(os.path.abspath(import_hook.__file__))
    code = _ARM.format(name=import_hook.__name__, folder=folder)
    asked = f"os.environ.get({VARIABLE!r}, '').strip().lower() in {TRUE!r}"
    return f"import os; {asked} and exec({code!a}, {{}})\n"
