"""What `toto-compile-patch run` adds to a Python: this folder stands first on its PYTHONPATH.

Python imports a module of this name when it starts. All that stays is the package's finder: the
folder leaves ``sys.path``, and a ``sitecustomize`` that it hid is run, or found missing, in its
place. PYTHONPATH itself stays, for the processes that this one starts.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

_FOLDER = os.path.dirname(__file__)
_PACKAGE = os.path.dirname(os.path.dirname(_FOLDER))


def _arm() -> None:
    """Execute the package's import hook by its path, without importing the package."""
    name = "toto_compile_patch.import_hook"
    hook = sys.modules.get(name)
    if not hook:
        spec = PathFinder.find_spec(name, [_PACKAGE])
        assert spec
        assert spec.loader
        hook = sys.modules[name] = type(sys)(name)
        hook.__file__ = spec.origin
        try:
            spec.loader.exec_module(hook)
        finally:
            # Scripts see nothing of it before they import the package.
            del sys.modules[name]
    hook.arm()


_arm()
sys.path[:] = [folder for folder in sys.path if folder != _FOLDER]
sys.path_importer_cache.pop(_FOLDER, None)
del sys.modules[__name__]
# Where there is no other, Python gets the very error that it expects, and goes on.
import sitecustomize  # type: ignore[import-not-found]  # noqa: E402, F401
