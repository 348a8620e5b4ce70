"""The places where Toto's code lives, and which of them ``apply()`` reaches.

Toto is installed as ``toto``, carried by AutoGluon under a name of its own, and imported from
clones in layouts of their own. A patch on one of these does nothing for a forecast that another one
makes, so that what forecasts here has to be looked for, and not taken for granted.

``apply()`` patches each carrier that is loaded, and each of the others when it is imported. One
that is known by its place is patched or raises; of anything else that looks like Toto, what is
tested code is patched, and the rest is named and left alone.

Imports nothing but Python's own modules, of which pathlib would cost more than all the rest, and
looks at code without running it: it has to answer where ``toto`` or torch is missing or broken.
"""

from __future__ import annotations

import glob
import importlib.util
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, repeat
from operator import contains
from types import FunctionType, ModuleType
from typing import Any

from toto_compile_patch.errors import UnreachedCarrierWarning
from toto_compile_patch.fingerprint import fingerprint_definitions
from toto_compile_patch.tested_code import FINGERPRINTS, INHERITED

TOTO, NAMESPACE, CLONE = "toto", "toto.toto", "inference and model"
AUTOGLUON = "autogluon.timeseries.models.toto._internal"
FORECASTERS = {
    TOTO: "toto.inference.forecaster",
    NAMESPACE: "toto.toto.inference.forecaster",
    CLONE: "inference.forecaster",
    AUTOGLUON: f"{AUTOGLUON}.forecaster",
}
"""The module that forecasts, of each carrier that is known by its place."""

SHORT_NAMES = {TOTO: TOTO, NAMESPACE: NAMESPACE, "autogluon": AUTOGLUON, "clone": CLONE}
"""What users call the known carriers, beside the packages as which they are imported."""

_TOTO_2 = "toto2"
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
    TOTO: ("toto", ".", "inference/forecaster.py"),
    NAMESPACE: ("toto", "toto", "inference/forecaster.py"),
    CLONE: ("inference", "..", "inference/forecaster.py"),
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


@dataclass(frozen=True)
class Place:
    """How the code of a carrier is imported.

    Attributes:
        imported: the modules whose import brings in all others.
        prefixes: with what the names of its modules begin.
    """

    imported: tuple[str, ...]
    prefixes: tuple[str, ...]

    def holds(self, module: str) -> bool:
        """Whether a module belongs to the carrier."""
        return module.startswith(self.prefixes)


def place_of(name: str) -> Place:
    """How the code of a carrier of some name is imported."""
    if name == AUTOGLUON or f"{name}.forecaster" in sys.modules:
        return Place((f"{name}.forecaster",), (f"{name}.",))
    root = "" if name == CLONE else f"{name}."
    folders = tuple(f"{root}{folder}." for folder in ("inference", "model", "data"))
    return Place((f"{root}inference.forecaster", f"{root}model.toto"), folders)


def found(wanted: Collection[str] | None = None) -> tuple[Carrier, ...]:
    """Every carrier that is loaded now, and every known one that could be imported.

    Args:
        wanted: names of those that ``apply()`` is to patch; None: whichever it knows.
    """
    loaded = tuple(_loaded(wanted))
    names = {carrier.name for carrier in loaded}
    return (*loaded, *(one for one in _importable(wanted) if one.name not in names))


def loaded_and_wanted(wanted: Collection[str] | None = None) -> tuple[str, ...]:
    """Names of the carriers that are loaded now and that ``apply()`` patches."""
    return tuple(name for name, kind in _by_name() if not _why_unreached(name, kind, wanted))


def unreached(wanted: Collection[str] | None = None) -> tuple[Carrier, ...]:
    """The carriers that are loaded now and that ``apply()`` does not reach."""
    return tuple(_loaded(wanted, unreached_only=True))


def makes_forecasts(kind: Any) -> bool:
    """Whether this is Toto's class of forecasters: that of any carrier, and no namesake."""
    return _is_totos(kind, "TotoForecaster")


def warn_of_unreached(wanted: Collection[str] | None = None) -> None:
    """Warn of each carrier that is loaded and not reached, once in a process.

    Toto 2.0 is no copy of the code that is patched. Where Toto itself is here, a program that loads
    both means to, and ``status()`` and ``doctor`` name the other; where it is not, whoever patches
    takes one for the other. A carrier that the user leaves out is nothing to warn of.

    Raises:
        UnreachedCarrierWarning: where the caller's filters turn warnings into errors.
    """
    for carrier in unreached(wanted):
        said = (carrier.name, carrier.folder) in _warned_of
        if said or (carrier.name == _TOTO_2 and _toto_is_here()):
            continue
        if wanted is not None and carrier.name not in (*wanted, _TOTO_2):
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
    return "; ".join(
        f"{placed(carrier)} is here: {carrier.advice}" for carrier in here if carrier.advice
    )


def others_than_toto(wanted: Collection[str] | None = None) -> tuple[Carrier, ...]:
    """The other carriers, loaded or importable, that ``apply()`` patches."""
    return tuple(one for one in found(wanted) if one.reached and one.name != TOTO)


def _toto_is_here() -> bool:
    return any(carrier.name == TOTO for carrier in found())


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


def _loaded(wanted: Collection[str] | None, unreached_only: bool = False) -> Iterator[Carrier]:
    for name, kind in _by_name():
        why = _why_unreached(name, kind, wanted)
        if why or not unreached_only:
            yield _carrier(name, _folder_of(kind), loaded=True, advice=why)


def _by_name() -> list[tuple[str, type]]:
    """A class of each carrier that is loaded: two of one that was imported anew."""
    known = getattr(sys.modules.get("toto_compile_patch.upstream"), "is_of_loaded_code", None)
    found: dict[tuple[str, bool], type] = {}
    for kind in _classes():
        # Of a forecaster and a backbone, either tells where the carrier is.
        found.setdefault((_name_of(kind), known is not None and known(kind)), kind)
    return [(name, kind) for (name, _), kind in found.items()]


def _classes() -> Iterator[type]:
    """The classes of any Toto that some module holds, each once."""
    # A process has thousands of modules: no line of Python is run for each. What stands there may
    # be anything, and may import things when it is asked for a name.
    anything = tuple(sys.modules.copy().values())
    modules = compress(anything, map(ModuleType.__subclasscheck__, map(type, anything)))
    namespaces = tuple(map(_namespace_of, modules))
    seen: set[int] = set()
    for name in (*_METHODS, _CLASS_OF_TOTO_2):
        for names in compress(namespaces, map(contains, namespaces, repeat(name))):
            kind = names.get(name)
            if kind is not None and id(kind) not in seen and _is_totos(kind, name):
                seen.add(id(kind))
                yield kind


_namespace_of: Callable[[Any], dict[str, Any]] = vars(ModuleType)["__dict__"].__get__


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
    return _home_of(kind) if root is None else root or CLONE


def _folder_of(kind: type) -> str:
    start = inspect.unwrap(vars(kind).get("__init__") or kind)
    if type(start) is not FunctionType or not os.path.isfile(start.__code__.co_filename):
        return ""
    place = os.path.abspath(start.__code__.co_filename)
    depth = 1 if kind.__name__ == _CLASS_OF_TOTO_2 else _split(kind)[1]
    for _ in range(depth):
        place = os.path.dirname(place)
    return place


def _why_unreached(name: str, kind: type, wanted: Collection[str] | None) -> str:
    """What to do about a loaded carrier that apply() does not patch; empty where it does."""
    if why := _why_unwanted(name, wanted):
        return why
    upstream: Any = sys.modules.get("toto_compile_patch.upstream")
    if upstream and upstream.is_loaded(name):
        if not upstream.is_of_loaded_code(kind):
            return _IMPORTED_ANEW.format(name=name)
        return str(upstream.why_left_alone(name))
    if _split(kind)[0] is None:
        return _ELSEWHERE.format(name=f"`{name}`")
    return _why_no_match(name, _folder_of(kind), wanted)


_IMPORTED_ANEW = (
    "{name} was imported anew since apply() first ran, and the new classes are not patched: "
    "import it once, in a new process"
)


def _why_unwanted(name: str, wanted: Collection[str] | None) -> str:
    """Why a carrier is none of those that apply() would patch; empty where it is."""
    if name == _TOTO_2:
        return (
            "Toto 2.0 (toto-2) is another model, which this package does not patch; the one that "
            "it patches is installed by pip install toto-ts"
        )
    if wanted is not None and name not in wanted:
        return "apply(carriers=...) or TOTO_COMPILE_PATCH_CARRIERS leaves it out"
    return ""


def _why_no_match(name: str, folder: str, wanted: Collection[str] | None) -> str:
    """What to do about code that was not tested; empty where apply() insists on the place."""
    if name in (TOTO, NAMESPACE, AUTOGLUON) or (wanted is not None and name in wanted):
        return ""
    tested, differs = _compared(folder)
    if tested and not differs:
        return ""
    named = "`inference` and `model`" if name == CLONE else f"`{name}`"
    return _ELSEWHERE.format(name=named)


_ELSEWHERE = (
    "its code is not code that was tested, and its forecasts are not patched; write `from "
    "toto.inference.forecaster import TotoForecaster` and `from toto.model.toto import Toto` (pip "
    "install toto-ts) instead of importing from {name}"
)


# What could be imported.


def _importable(wanted: Collection[str] | None) -> Iterator[Carrier]:
    for name, (top, way, file) in _PLACES.items():
        for location in folders_of_package(top):
            folder = os.path.normpath(os.path.join(location, way))
            if os.path.isfile(os.path.join(folder, file)):
                why = _why_unwanted(name, wanted) or _why_no_match(name, folder, wanted)
                carrier = _carrier(name, folder, loaded=False, advice=why)
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


def _carrier(name: str, folder: str, *, loaded: bool, advice: str) -> Carrier:
    tested, differs = (0, ()) if name == _TOTO_2 else _compared(folder)
    return Carrier(name, loaded, not advice, folder, tested, differs, advice)


def _compared(folder: str) -> tuple[int, tuple[str, ...]]:
    """How many definitions are tested code, and which others are not, by what the files say."""
    found = fingerprints_in(folder)
    tested = {name for name, digits in found.items() if digits & KNOWN[name]}
    return len(tested), tuple(name for name in KNOWN if name in found and name not in tested)


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
    root = glob.escape(folder)
    return sorted(file for pattern in layout for file in glob.glob(os.path.join(root, pattern)))


def _definitions_in(file: str) -> dict[str, str]:
    try:
        changed = os.stat(file).st_mtime_ns
    except OSError:
        return {}
    return _definitions(file, changed)


@lru_cache(maxsize=128)
def _definitions(file: str, changed: int) -> dict[str, str]:
    try:
        return fingerprint_definitions(_text(file), KNOWN)
    except (SyntaxError, ValueError):
        return {}


def _text(file: str) -> str:
    try:
        with open(file, encoding="utf-8") as opened:
            return opened.read()
    except (OSError, ValueError):
        return ""


def qualified(symbol: str) -> str:
    """The name of a definition within its module: carriers' modules have other names."""
    *_, owner, name = symbol.split(".")
    return f"{owner}.{name}" if owner[:1].isupper() else name


KNOWN = {qualified(symbol): digits for symbol, digits in FINGERPRINTS.items()}
"""The fingerprints of tested code, by the names of definitions within their modules."""

KNOWN |= {qualified(symbol): set() for symbol in INHERITED}
