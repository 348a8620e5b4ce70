"""The finder through which the package learns that Toto's code is being imported.

Python asks it for every module before the others. Where a module may be Toto's, it lets the other
finders find it, and calls the package when that module has been executed.

A Python that is to be patched without a line of its own executes this file by its path when it
starts, before the package is imported, and calls ``arm()``. The package, if it is imported later,
gets this very module, so that there is one finder in a process. This costs about a millisecond,
because it imports next to nothing: no ``typing``, and the package not before it is needed.
"""

from __future__ import annotations

import _thread
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from types import ModuleType
    from typing import Any

_THIS = sys.modules[__name__]
_PACKAGE = "toto_compile_patch"
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder from which the package is imported."""

_TOTO = ("toto.inference.forecaster", "toto.model.toto")
"""Of toto, what forecasts and what loads a model. Nothing else that apply() imports imports these
two, so that it never waits for a module that another thread imports while that waits for them; in
the import of ``toto`` itself it would."""
_TOTO_2 = "toto2.model"
_CLASSES = {"toto.model.toto": "Toto", _TOTO_2: "Toto2Model"}
"""By which class a module is known as Toto's; all others by that which forecasts."""


def follow(told: Callable[[str], None]) -> None:
    """Have a function told of each module of Toto's code that is imported from now on.

    Whoever calls this says what is to be patched: nothing is applied automatically any more.

    Args:
        told: takes the module's name, inside of its import, whose errors it does not become.
    """
    _finder.taken.acquire(False)
    _finder.told = told
    _finder.put_in()


def unfollow() -> None:
    """Have the package told no longer, unless this process is armed.

    In an armed process the finder stays, but nothing is applied automatically any more.
    """
    _finder.taken.acquire(False)
    if not _finder.armed:
        _finder.take_out()


def arm() -> None:
    """Have apply() called once, after the first import of Toto's code or of the package.

    Where this file, or that of another copy of the package, was executed and armed before, this one
    takes its place.
    """
    for finder in list(sys.meta_path):
        if finder is not _finder and type(finder).__module__ == __name__:
            sys.meta_path.remove(finder)
    _finder.armed = True
    _finder.put_in()


class _Finder:
    """Sees modules being imported that may hold Toto's code.

    apply() comes right after the import, also of the package itself, so that what a script then
    asks for comes second and holds: its apply(), its revert(), the end of its patched().

    In an armed process it is also what finds the package: the very copy that this file belongs to,
    wherever that was imported from, without a folder on ``sys.path`` that would bring in other
    modules.

    Attributes:
        armed: whether apply() is to be called once, without anybody calling it.
        taken: held from then on.
        told: what is told of each module; None: nothing, as long as nobody has asked for patches.
    """

    def __init__(self) -> None:
        self.armed = False
        self.told: Callable[[str], None] | None = None
        self.taken = _thread.allocate_lock()

    def put_in(self) -> None:
        """Have Python ask it."""
        if not any(finder is self for finder in sys.meta_path):
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def take_out(self) -> None:
        """Have Python ask it no longer."""
        if any(finder is self for finder in sys.meta_path):
            sys.meta_path.remove(self)  # type: ignore[arg-type]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, if it is to be followed; None for any other module."""
        if name == __name__:
            return ModuleSpec(name, _Executed(), origin=__file__)  # type: ignore[arg-type]
        ours = name == _PACKAGE and self.armed
        if not ours and not _may_be_totos(name):
            return None
        spec = PathFinder.find_spec(name, [_HOME]) if ours else self._next(name, path)
        if spec and hasattr(spec.loader, "exec_module"):
            spec.loader = _Followed(spec.loader, self._after)  # type: ignore[assignment, arg-type]
        return spec

    def _next(self, name: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
        """What the finders find that Python asks after this one; those before it found nothing."""
        finders: list[Any] = list(sys.meta_path)
        # Another thread may have taken this one out meanwhile.
        after = finders.index(self) + 1 if self in finders else 0
        return _found_by(finders[after:], name, path)

    def _after(self, name: str) -> None:
        try:
            if not self._has_applied(name) and name != _PACKAGE and _is_totos(name):
                (self.told or _warn_of)(name)
        except Exception as error:
            _say(error)

    def _has_applied(self, name: str) -> bool:
        """Call apply(), if this is the import after which it is due."""
        if not self.armed or not _is_due(name):
            return False
        if not self.taken.acquire(False):
            # The script has asked for patches, or for none, or another thread is in here.
            return False
        try:
            import toto_compile_patch

            toto_compile_patch.apply()
        except Exception as error:
            _say(error, "not applied: ")
        except BaseException:
            self.taken.release()
            raise
        return True


_finder = _Finder()


class _Followed:
    """A module's loader, after whose work something else is done; the module never sees it."""

    def __init__(self, loader: Loader, after: Callable[[str], None]) -> None:
        self._loader = loader
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._after(module.__name__)


# Python leaves the frames of its import system out of a script's traceback: let this be one.
_Followed.exec_module.__code__ = _Followed.exec_module.__code__.replace(
    co_filename=PathFinder.find_spec.__code__.co_filename
)


class _Executed:
    """Loads this module into its package where it was executed by its path before."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _THIS

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = spec = PathFinder.find_spec(__name__, [os.path.dirname(__file__)])
        module.__loader__ = spec.loader if spec else None


def _may_be_totos(name: str) -> bool:
    return name == "forecaster" or name.endswith(".forecaster") or name in _CLASSES


def _is_totos(name: str) -> bool:
    """Whether an imported module is no namesake: any project may have a module of such a name."""
    return _CLASSES.get(name, "TotoForecaster") in vars(sys.modules.get(name, sys))


def _is_due(name: str) -> bool:
    """Whether apply() has something to patch after this import."""
    if name == _PACKAGE:
        return _toto_is_here() and not _is_a_command()
    return name in _TOTO or (name != _TOTO_2 and _is_totos(name))


def _is_a_command() -> bool:
    """Whether this process is a command of the package's, which applies what it needs by itself."""
    program = os.path.basename(next(iter(getattr(sys, "argv", [])), ""))
    as_module = program == "-m" and _PACKAGE in sys.orig_argv
    return as_module or program.startswith("toto-compile-patch")


def _toto_is_here() -> bool:
    """Whether ``toto`` can be imported, and is no namesake."""
    spec = _found_by(list(sys.meta_path), "toto")
    folders = (spec and spec.submodule_search_locations) or ()
    return any(os.path.isfile(os.path.join(x, "inference", "forecaster.py")) for x in folders)


def _found_by(
    finders: Sequence[Any], name: str, path: Sequence[str] | None = None
) -> ModuleSpec | None:
    for finder in finders:
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find(name, path) if find else None
        if spec:
            return spec
    return None


def _warn_of(name: str) -> None:
    """Let the package warn of code that it does not patch."""
    from toto_compile_patch.carriers import warn_of_unreached
    from toto_compile_patch.settings import Settings

    if name not in _TOTO and Settings.resolve().enabled:
        warn_of_unreached()


def _say(error: Exception, before: str = "") -> None:
    """Say in one line what failed: it is not the import's failure."""
    if sys.stderr:
        words = " ".join(str(error).split()) or type(error).__name__
        print(f"{_PACKAGE}: {before}{words}", file=sys.stderr, flush=True)
