"""Look at an environment: what is installed, what apply() does in it, and its known traps.

Imports nothing that may be missing before it is asked for, and says what went wrong then.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import toto_compile_patch
from toto_compile_patch import carriers
from toto_compile_patch.api import PatchStatus
from toto_compile_patch.carriers import Carrier
from toto_compile_patch.errors import TotoCompilePatchError, TotoNotFoundError, in_a_line
from toto_compile_patch.settings import ENV_TOGGLE, PATCH_NAMES, Settings, variable_of
from toto_compile_patch.tested_code import HOW_TO_COMPARE
from toto_compile_patch.tools import activate
from toto_compile_patch.tools.checks import pip_install
from toto_compile_patch.tools.doctor.findings import (
    Examined,
    Finding,
    bearing_variables,
    compiling_switched_off,
    finding,
)
from toto_compile_patch.tools.doctor.products import BF16, Products, measure
from toto_compile_patch.tools.doctor.trial import (
    Trial,
    carrier_to_try,
    findings_of,
    try_forecasts,
)

TESTED_TORCH = ("2.7.0", "2.9.1", "2.11.0", "2.13.0", "2.15.0")
TESTED_PYTHON = ((3, 10), (3, 11), (3, 12), (3, 13))
"""Those of ``.ci/proof/noxfile.py``."""
BAD_WRAPT = "2.2.0"
LEAST_WRAPT = (1, 16)
LAYERS = 12
"""Of the published model: each is a case of its own to the compiler of upstream's code."""


@dataclass(frozen=True)
class Symbol:
    """A piece of upstream's code that is replaced or relied on.

    Attributes:
        name: dotted name.
        problem: why it is not code that was tested; else empty.
    """

    name: str
    problem: str


@dataclass(frozen=True)
class Environment(Examined):
    """What was found in an environment, which is healthy if all that was asked for is applied.

    Attributes:
        versions: of each thing that matters: what is installed; ``not installed`` where not.
        symbols: upstream's code that is replaced or relied on.
        variables: the environment variables that bear on it.
        patches: what stands after apply().
        carriers: the places where Toto's code is loaded or importable.
        trials: small forecasts that were made, or tried; none where apply() does not apply.
        products: how fast matrix products are; none where torch is missing.
    """

    versions: dict[str, str]
    symbols: list[Symbol]
    variables: dict[str, str]
    patches: list[PatchStatus]
    carriers: list[Carrier]
    trials: list[Trial]
    products: list[Products]

    all_well: ClassVar[str] = (
        "Nothing is in the way: a small forecast took the fast path. To do next: call "
        "toto_compile_patch.apply() in your program, or compare on your own data: "
        "toto-compile-patch ab"
    )

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        products = [
            {**asdict(one), "pays": one.pays, "sentence": one.sentence} for one in self.products
        ]
        return {**super().as_json(), "products": products}


def examine_environment() -> Environment:
    """Look at this process's environment; apply() in it, forecast, and take that out again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Importing torch sets some.
        variables = bearing_variables()
        versions = _versions()
        symbols = _symbols()
        patches, trials, findings = _applied_here(symbols)
        places = list(carriers.found())
        applied = {row.name for row in patches if row.state == "applied"}
        findings += _unreached(places)
        findings += _activation()
        findings += _version_traps(versions)
        findings += _compiler_traps(versions, applied)
        products, of_products = _products(versions)
        findings += of_products
    seen = (versions, symbols, variables, patches, places, trials, products)
    return Environment(*seen, findings=findings)


def version(distribution: str) -> str:
    """Of an installed distribution, without importing it; empty where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _versions() -> dict[str, str]:
    found = {
        "Python": platform.python_version(),
        "toto": _distributions_of_toto(),
        "toto_compile_patch": toto_compile_patch.__version__,
        "torch": version("torch"),
        "CUDA": _cuda(),
        "triton": version("triton"),
        "C++ compiler": shutil.which(_compiler()),
        **{name: version(name) for name in ("xformers", "wrapt", "huggingface_hub", "numpy")},
    }
    return {name: text or "not installed" for name, text in found.items()}


def _distributions_of_toto() -> str:
    names = importlib.metadata.packages_distributions().get("toto", [])
    if not names and carriers.folders_of_package("toto"):
        return "of no distribution"
    return ", ".join(f"{name} {version(name)}" for name in dict.fromkeys(names))


def _cuda() -> str:
    try:
        import torch
    except Exception as error:
        return f"torch cannot be imported ({type(error).__name__}: {error})"
    if torch.cuda.is_available():
        return f"{torch.version.cuda}, {torch.cuda.get_device_name()}"
    return "no device" if torch.version.cuda else "none: this torch is for CPUs"


def _compiler() -> str:
    """The compiler that inductor looks for."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def _symbols() -> list[Symbol]:
    """The fingerprint of all that is replaced or relied on; nothing where toto is missing."""
    try:
        from toto_compile_patch import upstream
        from toto_compile_patch.sites import AttributeSite
        from toto_compile_patch.table import TABLE

        upstream.load(carriers.TOTO)
        sites = [site for code in upstream.codes() for patch in TABLE for site in patch.sites(code)]
    except Exception:
        # apply() meets the same, and says it in better words.
        return []
    names: dict[str, str] = {}
    for site in sites:
        if isinstance(site, AttributeSite):
            for place in ((site.owner, site.attribute), *site.needs):
                names[upstream.symbol(*place)] = upstream.why_unknown(*place) or ""
    return [Symbol(name, problem) for name, problem in names.items()]


def _applied_here(
    symbols: list[Symbol],
) -> tuple[list[PatchStatus], list[Trial], list[Finding]]:
    """What stands under apply(), the forecasts made with that, and what is in its way."""
    trials: list[Trial] = []
    try:
        settings = Settings.resolve()
        with toto_compile_patch.patched(runtime=_UNCOMPILED.get(settings.runtime)):
            rows = _rows()
            left_out = _left_out_of(rows, settings)
            carrier = carrier_to_try(carriers.found(settings.carriers))
            if settings.enabled and "fast_decode" not in {row.name for row in left_out}:
                trials = try_forecasts(carrier)
    except Exception as error:
        return _rows(), [], [_stopped(error, symbols)]
    if not settings.enabled:
        off = finding("toggled off", variable=ENV_TOGGLE, text=os.environ[ENV_TOGGLE])
        return rows, [], [off]
    findings = [
        finding("patch left out", **asdict(row), cure=_cure_of(row.detail)) for row in left_out
    ]
    findings += findings_of(trials, carrier)
    if settings.runtime in _UNCOMPILED:
        asked = {"variable": variable_of("runtime"), "runtime": settings.runtime}
        findings.append(finding("not tried compiled", **asked))
    return rows, trials, findings


_UNCOMPILED = {"compile": "eager", "compile+cudagraph": "cudagraph"}
"""The runtimes that compile, which takes a minute, and what is tried in their place."""


def _left_out_of(rows: list[PatchStatus], settings: Settings) -> list[PatchStatus]:
    """The patches that were asked for and do not stand."""
    stand = ("applied", "nothing to patch")
    asked = settings.patches if settings.enabled else ()
    return [row for row in rows if row.name in asked and row.state not in stand]


def _products(versions: dict[str, str]) -> tuple[list[Products], list[Finding]]:
    """How fast matrix products are, and whether a precision that is asked for is in vain."""
    if not numbers(versions["torch"]):
        return [], []
    try:
        found = measure()
    except Exception as error:
        return [], [finding("not measured", error=in_a_line(error))]
    variable = variable_of("precision")
    asked = os.environ.get(variable, "").strip().lower() == BF16
    in_vain = asked and all(one.pays is False for one in found if one.precision == BF16)
    return found, [finding("bf16 does not pay", variable=variable)] if in_vain else []


def _rows() -> list[PatchStatus]:
    try:
        return list(toto_compile_patch.status())
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return [PatchStatus(name, "unavailable", (), said) for name in PATCH_NAMES]


def _stopped(error: Exception, symbols: list[Symbol]) -> Finding:
    what = str(error) if isinstance(error, TotoCompilePatchError | ValueError) else repr(error)
    cure = _cure_of(what)
    if isinstance(error, ValueError):
        cure = "set that variable to one of these, or unset it"
    elif isinstance(error, TotoNotFoundError):
        what = f"toto cannot be imported ({error.__cause__})."
        module = getattr(error.__cause__, "name", None) or "toto"
        cure = pip_install(module)
        if module.partition(".")[0] == "toto":
            cure += "; on another torch than 2.7.0, with --no-deps: see the README"
    elif foreign := ", ".join(symbol.name for symbol in symbols if symbol.problem):
        what = what.partition(f" {HOW_TO_COMPARE}")[0]
        cure = f"{HOW_TO_COMPARE}; apply(strict=False) leaves out what does not fit ({foreign})"
    return finding("apply fails", why=what, cure=cure)


def _cure_of(message: str) -> str:
    foreign = "source is not that of" in message
    return "pip install 'toto-ts>=0.1.3,<0.3', or take out what replaced it" if foreign else ""


def _unreached(places: list[Carrier]) -> Iterator[Finding]:
    """What apply() does not reach: in the way where there is nothing else, or else a trap."""
    level = "trap" if any(carrier.reached for carrier in places) else "problem"
    for carrier in places:
        if not carrier.reached:
            place = carriers.placed(carrier)
            yield finding("carrier out of reach", level=level, place=place, advice=carrier.advice)


def _activation() -> Iterator[Finding]:
    """What an environment variable does here without anybody calling apply()."""
    file = activate.place()
    if file.exists():
        yield finding("activated", file=file, variable=activate.VARIABLE)
    elif activate.is_asked_for():
        yield finding("not activated", variable=activate.VARIABLE)


def _version_traps(versions: dict[str, str]) -> Iterator[Finding]:
    """Versions that do not work, or that nobody has tested."""
    hub, wrapt, torch = (versions[name] for name in ("huggingface_hub", "wrapt", "torch"))
    if numbers(hub) >= (1,):
        yield finding("newer hub", version=hub)
    if wrapt == BAD_WRAPT or not LEAST_WRAPT <= numbers(wrapt) < (3,):
        yield finding("other wrapt", version=wrapt, bad=BAD_WRAPT)
    if () < numbers(torch) < (2, 7):
        yield finding("old torch", version=torch)
    elif numbers(torch) and torch.split("+")[0] not in TESTED_TORCH:
        yield finding("untested", what=f"torch {torch}", tested=", ".join(TESTED_TORCH))
    if sys.version_info[:2] not in TESTED_PYTHON:
        tested = ", ".join(f"{major}.{minor}" for major, minor in TESTED_PYTHON)
        yield finding("untested", what=f"Python {versions['Python']}", tested=tested)


def _compiler_traps(versions: dict[str, str], applied: set[str]) -> Iterator[Finding]:
    """What keeps code from being compiled, or from being worth it.

    Args:
        versions: what is installed.
        applied: the patches that apply() brings about here.
    """
    has_gpu = bool(numbers(versions["CUDA"]))
    compiles = os.environ.get(variable_of("runtime"), "").strip().lower().startswith("compile")
    level = "problem" if compiles else "trap"
    toto_works = "toto.inference.forecaster" in sys.modules
    if toto_works:
        yield from _left_out(level)
    limit = getattr(sys.modules.get("torch._dynamo.config"), "recompile_limit", LAYERS)
    if numbers(versions["xformers"]) and not has_gpu:
        yield finding("xformers on a CPU")
    # Where nothing is applied at all, it is said why.
    is_applied = toto_works and bool(applied)
    if is_applied and "compile_method" not in applied:
        yield finding("compile compiles nothing")
    if is_applied and "dynamo_config" not in applied and limit < LAYERS:
        yield finding("low recompile limit", limit=limit, layers=LAYERS)
    yield from compiling_switched_off(dict(os.environ), "trap")
    if not has_gpu and versions["C++ compiler"] == "not installed":
        yield finding("no C++ compiler", level=level, wanted=_compiler())
    if has_gpu and not carriers.folders_of_package("triton"):
        yield finding("no Triton", level=level)


def _left_out(level: str) -> Iterator[Finding]:
    """What else than patches this torch lacks private names for."""
    from toto_compile_patch import private_names as names

    for what in (names.COMPILED, names.PACKED, names.LOG_SUMS, names.SLOW_BF16):
        if why := names.why_without(what):
            asked = level if what == names.COMPILED else "trap"
            yield finding("without a private name", level=asked, what=what, why=why)
