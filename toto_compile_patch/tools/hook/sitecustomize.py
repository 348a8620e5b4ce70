"""What `toto-compile-patch run` adds to a Python: this folder stands first on its PYTHONPATH.

Python imports a module of this name when it starts. All that stays is one finder: the folder
leaves ``sys.path``, and a ``sitecustomize`` that it hid is run, or found missing, in its place.
PYTHONPATH itself stays, for the processes that this one starts. It costs about a millisecond, so
it imports next to nothing: no ``typing``, and the package not before it is wanted.
"""

from __future__ import annotations

import _thread
import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_FOLDER = os.path.dirname(__file__)
_PACKAGE = "toto_compile_patch"
_AFTER = (_PACKAGE, "toto.inference.forecaster", "toto.model.toto")
"""Of toto, what forecasts and what loads a model. Nothing else that apply() imports imports these
two, so that it never waits for a module that another thread imports while that waits for them; in
the import of ``toto`` itself it would."""
_NOT_REACHED = (
    "inference.forecaster",
    "toto.toto.inference.forecaster",
    "autogluon.timeseries.models.toto._internal.forecaster",
    "toto2.model",
)
"""What forecasts by other copies of Toto's code, and by Toto 2.0: the package warns of those, and
of Toto 2.0 where Toto itself is not here."""
_HOME = os.path.dirname(os.path.dirname(os.path.dirname(_FOLDER)))


class _Hook:
    """Calls apply() once, right after the first import of a module in _AFTER.

    After the package's own, so that what a script then asks of it comes second and holds: its
    apply(), its revert(), the end of its patched().

    It is also what finds the package: the very copy that `run` belongs to, wherever that was
    imported from, without a folder on ``sys.path`` that would bring in other modules.
    """

    def __init__(self) -> None:
        self._taken = _thread.allocate_lock()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _AFTER and name not in _NOT_REACHED:
            return None
        ours = name == _PACKAGE
        spec = PathFinder.find_spec(name, [_HOME]) if ours else self._others(name, path)
        if spec and spec.loader:
            spec.loader = _Followed(spec.loader, self._after)  # type: ignore[assignment]
        return spec

    def _others(self, name: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
        """What the other finders find."""
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path) if find else None
            if spec:
                return spec
        return None

    def _can_apply(self) -> bool:
        """Whether ``toto`` is here, and no namesake."""
        spec = self._others("toto")
        folders = (spec and spec.submodule_search_locations) or ()
        return any(os.path.isfile(os.path.join(x, "inference", "forecaster.py")) for x in folders)

    def _after(self, name: str) -> None:
        if name in _NOT_REACHED:
            _warn_of(name)
            return
        if name == _PACKAGE and not self._can_apply():
            return
        if f"{_PACKAGE}.upstream" in sys.modules or not self._taken.acquire(False):
            # The script's own apply() is importing toto, or another thread is in here.
            return
        try:
            import toto_compile_patch

            toto_compile_patch.apply()
        except Exception as error:
            _say(f"not applied: {' '.join(str(error).split()) or type(error).__name__}")
        except BaseException:
            self._taken.release()
            raise


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


def _warn_of(name: str) -> None:
    """Let the package warn, where the module is no namesake: any project may have such a name."""
    names = vars(sys.modules.get(name, sys))
    if "TotoForecaster" not in names and "Toto2Model" not in names:
        return
    try:
        from toto_compile_patch.carriers import warn_of_unreached
        from toto_compile_patch.settings import Settings

        if Settings.resolve().enabled:
            warn_of_unreached()
    except Exception as error:
        _say(" ".join(str(error).split()))


def _say(message: str) -> None:
    if sys.stderr:
        print(f"{_PACKAGE}: {message}", file=sys.stderr, flush=True)


sys.meta_path.insert(0, _Hook())
sys.path[:] = [folder for folder in sys.path if folder != _FOLDER]
sys.path_importer_cache.pop(_FOLDER, None)
del sys.modules[__name__]
# Where there is no other, Python gets the very error that it expects, and goes on.
import sitecustomize  # type: ignore[import-not-found]  # noqa: E402, F401
