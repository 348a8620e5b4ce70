"""The places where Toto's code lives, and which of them ``apply()`` reaches.

Toto is installed as ``toto``, carried by AutoGluon under a name of its own, and imported from
clones in layouts of their own. A patch on one of these does nothing for a forecast that another one
makes, so that what forecasts here has to be looked for, and not taken for granted.

Imports nothing but Python's own modules, and looks at code without running it: it has to answer
where ``toto`` or torch is missing or broken.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from toto_compile_patch.errors import UnreachedCarrierWarning
from toto_compile_patch.fingerprint import fingerprint_definitions
from toto_compile_patch.tested_code import FINGERPRINTS, INHERITED

AUTOGLUON = "autogluon.timeseries.models.toto._internal"
FORECASTERS = {
    "toto": "toto.inference.forecaster",
    "toto.toto": "toto.toto.inference.forecaster",
    "inference and model": "inference.forecaster",
    AUTOGLUON: f"{AUTOGLUON}.forecaster",
}
"""The module that forecasts, of each carrier that is known by its place."""

_REACHED, _CLONE, _TOTO_2 = "toto", "inference and model", "toto2"
_CLASS_OF_TOTO_2 = "Toto2Model"
_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep

# Of the classes that forecast: what makes a class of that name Toto's, and the modules that may
# define it, as they are called from the carrier's root on.
_METHODS = {
    "TotoForecaster": ("generate_mean", "generate_samples"),
    "TotoBackbone": ("backbone", "allocate_kv_cache"),
}
_MODULES = {
    "TotoForecaster": ("inference.forecaster", "forecaster"),
    "TotoBackbone": ("model.backbone", "backbone.backbone"),
}

# Where the files are that hold tested code: in toto's layout, and in AutoGluon's.
_LAYOUTS = (
    ("inference/forecaster.py", "model/*.py", "data/util/dataset.py"),
    ("forecaster.py", "dataset.py", "backbone/*.py"),
)

# Of each carrier that may be importable: its top package, the way from that package's folder to
# the carrier's, and a file that is there if it is.
_PLACES = {
    _REACHED: ("toto", ".", "inference/forecaster.py"),
    "toto.toto": ("toto", "toto", "inference/forecaster.py"),
    _CLONE: ("inference", "..", "inference/forecaster.py"),
    AUTOGLUON: ("autogluon", "timeseries/models/toto/_internal", "forecaster.py"),
    _TOTO_2: ("toto2", ".", "model.py"),
}

_logger = logging.getLogger("toto_compile_patch")


@dataclass(frozen=True)
class Carrier:
    """A place where Toto's code lives, or another model of that name.

    Attributes:
        name: the package as which it is imported.
        loaded: whether code of it that forecasts is in this process; else it can be imported.
        reached: whether ``apply()`` patches it.
        folder: where its code is; a file where it is a single one, empty where it is none.
        tested: how many of its definitions are code that was tested, by fingerprint.
        differs: names of those that patches replace or rely on and that are other code.
        advice: what to do about it where it is not reached; else empty.
    """

    name: str
    loaded: bool
    reached: bool
    folder: str
    tested: int
    differs: tuple[str, ...]
    advice: str

    @property
    def code(self) -> str:
        """What is known of its code, in words."""
        if self.name == _TOTO_2:
            return "another model"
        if not self.tested:
            return "code that was not tested"
        if self.differs:
            return f"differs in {', '.join(self.differs)}"
        return "code that was tested"

    @property
    def state(self) -> str:
        """Loaded or importable, reached or not, in words."""
        found = "loaded" if self.loaded else "importable"
        return f"{found}, {'reached' if self.reached else 'not reached'}"


def found() -> tuple[Carrier, ...]:
    """Every carrier that is loaded now, and every known one that could be imported."""
    loaded = tuple(_loaded())
    names = {carrier.name for carrier in loaded}
    return (*loaded, *(carrier for carrier in _importable() if carrier.name not in names))


def unreached() -> tuple[Carrier, ...]:
    """The carriers that are loaded now and that ``apply()`` does not reach."""
    return tuple(_loaded(unreached_only=True))


def makes_forecasts(kind: Any) -> bool:
    """Whether this is Toto's class of forecasters: that of any carrier, and no namesake."""
    return _is_totos(kind, "TotoForecaster")


def warn_of_unreached() -> None:
    """Warn of each carrier that is loaded and not reached, once in a process.

    Toto 2.0 is no copy of the code that is patched. Where Toto itself is here, a program that loads
    both means to, and ``status()`` and ``doctor`` name the other; where it is not, whoever patches
    takes one for the other.

    Raises:
        UnreachedCarrierWarning: where the caller's filters turn warnings into errors.
    """
    for carrier in unreached():
        said = (carrier.name, carrier.folder) in _warned_of
        if said or (carrier.name == _TOTO_2 and _toto_is_here()):
            continue
        message = f"apply() does not reach {placed(carrier)}: {carrier.advice}"
        _logger.warning("%s", message)
        warnings.warn(message, UnreachedCarrierWarning, stacklevel=_levels_of_this_package())
        _warned_of.add((carrier.name, carrier.folder))


_warned_of: set[tuple[str, str]] = set()


def instead_of_toto() -> str:
    """What is here where ``toto`` is not, and what to do about it; empty where nothing is."""
    if _toto_is_here():
        return ""
    here = found()
    return "; ".join(f"{placed(carrier)} is here: {carrier.advice}" for carrier in here)


def _toto_is_here() -> bool:
    return any(carrier.reached for carrier in found())


def placed(carrier: Carrier) -> str:
    """A carrier's name, and where its code is."""
    return f"`{carrier.name}` ({carrier.folder})" if carrier.folder else f"`{carrier.name}`"


def _levels_of_this_package() -> int:
    """The ``stacklevel`` with which the caller's warning names the line that called the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN_FOLDER):
        level, frame = level + 1, frame.f_back
    return level


# What is loaded.


def _loaded(unreached_only: bool = False) -> Iterator[Carrier]:
    seen: dict[tuple[str, bool], type] = {}
    for kind in _classes():
        key = _name_of(kind), _reached(kind)
        # Of a forecaster and a backbone, either tells where the carrier is.
        seen.setdefault(key, kind)
    for (name, reached), kind in seen.items():
        if not (unreached_only and reached):
            yield _carrier(name, _folder_of(kind), loaded=True, reached=reached)


def _classes() -> Iterator[type]:
    """The classes of any Toto that some module holds, each once."""
    seen: set[int] = set()
    for module in sys.modules.copy().values():
        # What stands there may be anything, and may import things when it is asked for a name.
        if not issubclass(type(module), ModuleType):
            continue
        names = object.__getattribute__(module, "__dict__")
        for name in (*_METHODS, _CLASS_OF_TOTO_2):
            kind = names.get(name)
            if kind is not None and id(kind) not in seen and _is_totos(kind, name):
                seen.add(id(kind))
                yield kind


def _is_totos(kind: Any, name: str) -> bool:
    """Whether a class of such a name is Toto's own, and neither a namesake nor a subclass of it."""
    if not issubclass(type(kind), type):
        return False
    if name == _CLASS_OF_TOTO_2:
        return _home_of(kind).split(".")[0] == _TOTO_2
    if any(base.__name__ == name for base in kind.__mro__[1:]):
        return False
    return all(callable(vars(kind).get(method)) for method in _METHODS[name])


def _home_of(kind: type) -> str:
    return str(getattr(kind, "__module__", ""))


def _split(kind: type) -> tuple[str | None, int]:
    """The package that is a carrier's root, and how many names lead from it to a class's module.

    None where the module's name follows no known layout.
    """
    home = f".{_home_of(kind)}"
    for inner in _MODULES.get(kind.__name__, ()):
        if home.endswith(f".{inner}") and home != ".forecaster":
            return home[1 : -len(inner) - 1], inner.count(".") + 1
    return None, 0


def _name_of(kind: type) -> str:
    if kind.__name__ == _CLASS_OF_TOTO_2:
        return _TOTO_2
    root, _ = _split(kind)
    return _home_of(kind) if root is None else root or _CLONE


def _folder_of(kind: type) -> str:
    start = inspect.unwrap(vars(kind).get("__init__") or kind)
    if type(start) is not FunctionType or not os.path.isfile(start.__code__.co_filename):
        return ""
    file = Path(os.path.abspath(start.__code__.co_filename))
    if kind.__name__ == _CLASS_OF_TOTO_2:
        return str(file.parent)
    _, depth = _split(kind)
    return str(file.parents[depth - 1] if depth else file)


def _reached(kind: type) -> bool:
    """Whether a class is the one that apply() patches, or would patch."""
    patched = getattr(sys.modules.get("toto_compile_patch.upstream"), kind.__name__, None)
    if patched is not None:
        return kind is patched
    return _name_of(kind) == _REACHED


# What could be imported.


def _importable() -> Iterator[Carrier]:
    for name, (top, way, file) in _PLACES.items():
        for location in folders_of_package(top):
            folder = os.path.normpath(os.path.join(location, way))
            if os.path.isfile(os.path.join(folder, file)):
                carrier = _carrier(name, folder, loaded=False, reached=name == _REACHED)
                if _is_a_carrier(carrier, os.path.join(folder, file)):
                    yield carrier
                break


def _is_a_carrier(carrier: Carrier, file: str) -> bool:
    """Whether it is what its place makes one expect: ``inference`` may be anybody's name."""
    if carrier.name == _TOTO_2:
        return re.search(rf"^class {_CLASS_OF_TOTO_2}\b", _text(file), re.M) is not None
    return carrier.tested > 0


def folders_of_package(name: str) -> list[str]:
    """The folders of a package that stands at the top, without importing it."""
    if name in sys.modules:
        return _strings(getattr(sys.modules[name], "__path__", ()))
    try:
        spec = importlib.util.find_spec(name)
    except Exception:
        # Anybody's finder is asked, and whatever ails it, no package is found.
        return []
    return _strings(spec.submodule_search_locations or ()) if spec else []


def _strings(paths: Iterable[Any]) -> list[str]:
    return [path for path in paths if isinstance(path, str)]


# What is known of it.


def _carrier(name: str, folder: str, *, loaded: bool, reached: bool) -> Carrier:
    tested, differs = (0, ()) if name == _TOTO_2 else _compared(folder)
    advice = "" if reached else _advice(name)
    return Carrier(name, loaded, reached, folder, tested, differs, advice)


def _advice(name: str) -> str:
    if name == _TOTO_2:
        return (
            "Toto 2.0 (toto-2) is another model, which this package does not patch; the one that "
            "it patches is installed by pip install toto-ts"
        )
    if name == _REACHED:
        return (
            "toto was imported anew since apply() first ran, and the new classes are not patched: "
            "import it once, in a new process"
        )
    if name == AUTOGLUON:
        return (
            "AutoGluon forecasts with a copy of Toto, which this version does not patch; for "
            "patched forecasts, use toto.inference.forecaster.TotoForecaster (pip install toto-ts)"
        )
    named = "`inference` and `model`" if name == _CLONE else f"`{name}`"
    return (
        "its forecasts are not patched; write `from toto.inference.forecaster import "
        "TotoForecaster` and `from toto.model.toto import Toto` (pip install toto-ts) instead of "
        f"importing from {named}"
    )


def _compared(folder: str) -> tuple[int, tuple[str, ...]]:
    """How many definitions are tested code, and which others are not, by what the files say."""
    found = fingerprints_in(folder)
    tested = {name for name, digits in found.items() if digits & _TESTED[name]}
    return len(tested), tuple(name for name in _TESTED if name in found and name not in tested)


def fingerprints_in(folder: str) -> dict[str, set[str]]:
    """The fingerprints of what patches replace or rely on, by qualified name, in a carrier's files.

    Args:
        folder: the carrier's; or a file, where it is a single one.
    """
    found: dict[str, set[str]] = {}
    for file in _files(folder):
        for name, digits in _definitions_in(file).items():
            found.setdefault(name, set()).add(digits)
    return found


def _files(folder: str) -> list[str]:
    if not folder or not os.path.isdir(folder):
        return [folder] if folder else []
    layout = _LAYOUTS[0 if os.path.isdir(os.path.join(folder, "inference")) else 1]
    return sorted(str(file) for pattern in layout for file in Path(folder).glob(pattern))


def _definitions_in(file: str) -> dict[str, str]:
    try:
        changed = os.stat(file).st_mtime_ns
    except OSError:
        return {}
    return _definitions(file, changed)


@lru_cache(maxsize=128)
def _definitions(file: str, changed: int) -> dict[str, str]:
    try:
        return fingerprint_definitions(_text(file), _TESTED)
    except (SyntaxError, ValueError):
        return {}


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def qualified(symbol: str) -> str:
    """The name of a definition within its module: carriers' modules have other names."""
    *_, owner, name = symbol.split(".")
    return f"{owner}.{name}" if owner[:1].isupper() else name


_TESTED = {qualified(symbol): digits for symbol, digits in FINGERPRINTS.items()}
_TESTED |= {qualified(symbol): set() for symbol in INHERITED}
