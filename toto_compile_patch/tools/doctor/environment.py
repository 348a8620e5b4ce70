"""Look at an environment: what is installed, what apply() does in it, and its known traps.

Imports nothing that may be missing before it is asked for, and says what went wrong then.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import toto_compile_patch
from toto_compile_patch import carriers
from toto_compile_patch.carriers import Carrier
from toto_compile_patch.errors import TotoCompilePatchError, TotoNotFoundError
from toto_compile_patch.settings import (
    ENV_TOGGLE,
    PATCH_NAMES,
    Settings,
    variable_of,
)
from toto_compile_patch.tools.doctor.findings import (
    OLDER_HUB,
    WITHOUT_XFORMERS,
    Finding,
    bearing_variables,
    problems,
)

TESTED_TORCH = ("2.7.0", "2.13.0")
TESTED_PYTHON = ((3, 10), (3, 11), (3, 12))
BAD_WRAPT = "2.2.0"
LEAST_WRAPT = (1, 16)
LAYERS = 12
"""Of the published model: each is a case of its own to the compiler of upstream's code."""

_COMPILED_RUNTIMES = ("compile", "compile+cudagraph")


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
class Row:
    """What became of one patch: its name, its state, and what there is to say about it."""

    name: str
    state: str
    detail: str


@dataclass(frozen=True)
class Environment:
    """What was found.

    Attributes:
        versions: of each thing that matters: what is installed; ``not installed`` where not.
        symbols: upstream's code that is replaced or relied on.
        variables: the environment variables that bear on it.
        patches: what stands after apply().
        carriers: the places where Toto's code is loaded or importable.
        findings: what is in the way, traps, and what is good to know.
    """

    versions: dict[str, str]
    symbols: list[Symbol]
    variables: dict[str, str]
    patches: list[Row]
    carriers: list[Carrier]
    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        """Whether everything that was asked for is applied."""
        return not problems(self.findings)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"healthy": self.healthy, **asdict(self)}


def examine_environment() -> Environment:
    """Look at this process's environment; apply() in it, and take that out again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Importing torch sets some.
        variables = bearing_variables()
        versions = _versions()
        symbols = _symbols()
        patches, stops = _applied_here(symbols)
        places = list(carriers.found())
        findings = [
            *stops,
            *_unreached(places),
            *_traps(versions, {row.name for row in patches if _stands(row)}),
        ]
    return Environment(versions, symbols, variables, patches, places, findings)


def _stands(row: Row) -> bool:
    return row.state == "applied"


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
        "C++ compiler": _compiler(),
        "xformers": version("xformers"),
        "wrapt": version("wrapt"),
        "huggingface_hub": version("huggingface_hub"),
        "numpy": version("numpy"),
    }
    return {name: text or "not installed" for name, text in found.items()}


def _distributions_of_toto() -> str:
    names = importlib.metadata.packages_distributions().get("toto", [])
    if not names and _found("toto"):
        return "of no distribution"
    return ", ".join(f"{name} {version(name)}" for name in dict.fromkeys(names))


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        return False


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
    found = shutil.which(os.environ.get("CXX") or _default_compiler())
    return found or ""


def _default_compiler() -> str:
    return "clang++" if sys.platform == "darwin" else "g++"


def _symbols() -> list[Symbol]:
    """The fingerprint of all that is replaced or relied on; nothing where toto is missing."""
    try:
        from toto_compile_patch import upstream
        from toto_compile_patch.sites import AttributeSite
        from toto_compile_patch.table import TABLE

        sites = [site for patch in TABLE for site in patch.sites()]
    except Exception:
        # apply() meets the same, and says it in better words.
        return []
    places: list[tuple[Any, str]] = []
    for site in sites:
        if isinstance(site, AttributeSite):
            places += [(site.owner, site.attribute), *site.needs]
    places += upstream.BYPASSED
    names = {upstream.symbol(*place): place for place in places}
    return [Symbol(name, upstream.why_unknown(*place) or "") for name, place in names.items()]


def _applied_here(symbols: list[Symbol]) -> tuple[list[Row], list[Finding]]:
    """What stands under apply(), and what is in its way."""
    try:
        settings = Settings.resolve()
        with toto_compile_patch.patched():
            rows = _rows()
    except Exception as error:
        return _rows(), [_stopped(error, symbols)]
    if not settings.enabled:
        what = f"{ENV_TOGGLE}={os.environ[ENV_TOGGLE]}: apply() leaves upstream untouched."
        return rows, [Finding("problem", what, f"unset {ENV_TOGGLE}")]
    left_out = [row for row in rows if row.name in settings.patches and not _stands(row)]
    return rows, [
        Finding("problem", f"Patch {row.name} is {row.state}: {row.detail}.", _cure_of(row.detail))
        for row in left_out
    ]


def _rows() -> list[Row]:
    try:
        return [Row(row.name, row.state, row.detail) for row in toto_compile_patch.status()]
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return [Row(name, "unavailable", said) for name in PATCH_NAMES]


def _stopped(error: Exception, symbols: list[Symbol]) -> Finding:
    what = str(error) if isinstance(error, TotoCompilePatchError) else f"{error!r}"
    if isinstance(error, ValueError):
        what, cure = str(error), "set that variable to one of these, or unset it"
    elif isinstance(error, TotoNotFoundError):
        what = f"toto cannot be imported ({error.__cause__})."
        cure = _cure_of_missing(getattr(error.__cause__, "name", None) or "")
    elif foreign := [symbol.name for symbol in symbols if symbol.problem]:
        cure = f"apply(strict=False) leaves out what does not fit ({', '.join(foreign)})"
    else:
        cure = _cure_of(what)
    return Finding("problem", f"apply() fails: {what}", cure)


def _cure_of(message: str) -> str:
    if "source is not that of" in message:
        return "pip install 'toto-ts>=0.1.3,<0.3', or take out what replaced it"
    return ""


def _cure_of_missing(module: str) -> str:
    """How to get a module that an import of toto did not find."""
    top = module.split(".")[0]
    if top == "torch":
        return "pip install torch==2.7.0"
    if top == "pkg_resources":
        return "pip install 'setuptools<81'"
    if top in ("", "toto"):
        return "pip install toto-ts; on another torch than 2.7.0, with --no-deps: see the README"
    return f"pip install {top.replace('_', '-')}"


def _unreached(places: list[Carrier]) -> Iterator[Finding]:
    """What apply() does not reach: in the way where there is nothing else, or else a trap."""
    level = "trap" if any(carrier.reached for carrier in places) else "problem"
    for carrier in places:
        if not carrier.reached:
            what = f"apply() does not reach {carriers.placed(carrier)}."
            yield Finding(level, what, carrier.advice)


def _traps(versions: dict[str, str], applied: set[str]) -> Iterator[Finding]:
    checks: tuple[Callable[[dict[str, str], set[str]], Finding | None], ...] = (
        _hub,
        _wrapt,
        _torch,
        _python,
        _xformers,
        _toto_compile,
        _recompile_limit,
        _nothing_compiles,
        _without_compiler,
        _without_triton,
    )
    for check in checks:
        if finding := check(versions, applied):
            yield finding


def _hub(versions: dict[str, str], applied: set[str]) -> Finding | None:
    if numbers(versions["huggingface_hub"])[:1] < (1,):
        return None
    what = f"huggingface_hub {versions['huggingface_hub']}: Toto.from_pretrained raises TypeError."
    return Finding("trap", what, OLDER_HUB)


def _wrapt(versions: dict[str, str], applied: set[str]) -> Finding | None:
    found = versions["wrapt"]
    if found != BAD_WRAPT and LEAST_WRAPT <= numbers(found) < (3,):
        return None
    what = f"wrapt {found}: this package needs 1.16 to 2, and not {BAD_WRAPT}."
    return Finding("problem", what, f"pip install 'wrapt>=1.16,!={BAD_WRAPT},<3'")


def _torch(versions: dict[str, str], applied: set[str]) -> Finding | None:
    found = versions["torch"]
    if not numbers(found) or found.split("+")[0] in TESTED_TORCH:
        return None
    tested = " and ".join(TESTED_TORCH)
    if numbers(found) < (2, 7):
        return Finding("problem", f"torch {found} is too old.", "pip install torch==2.7.0")
    what = f"torch {found} has not been tested; {tested} have."
    return Finding("note", what, "python -m pytest, in a clone of this package, tests yours")


def _python(versions: dict[str, str], applied: set[str]) -> Finding | None:
    if sys.version_info[:2] in TESTED_PYTHON:
        return None
    what = f"Python {versions['Python']} has not been tested; 3.10 to 3.12 have."
    return Finding("note", what, "python -m pytest, in a clone of this package, tests yours")


def _xformers(versions: dict[str, str], applied: set[str]) -> Finding | None:
    if not numbers(versions["xformers"]) or numbers(versions["CUDA"]):
        return None
    what = "xformers without a GPU: upstream's attention asks for it, and it has no CPU kernels."
    return Finding("trap", what, WITHOUT_XFORMERS)


def _toto_compile(versions: dict[str, str], applied: set[str]) -> Finding | None:
    if "compile_method" in applied or not _toto_works():
        return None
    what = "toto.compile() compiles nothing here: Toto has no forward, forecasters call toto.model."
    return Finding("trap", what, "apply() with compile_method, or toto.model.compile()")


def _recompile_limit(versions: dict[str, str], applied: set[str]) -> Finding | None:
    if "dynamo_config" in applied or not _toto_works():
        return None
    try:
        from torch._dynamo import config
    except Exception:
        return None
    limit: int = config.recompile_limit
    if limit >= LAYERS:
        return None
    what = (
        f"torch._dynamo.config.recompile_limit is {limit}: upstream's code, compiled, needs more "
        f"for {LAYERS} layers, and runs uncompiled from there on."
    )
    cure = "apply() with dynamo_config, or torch._dynamo.config.recompile_limit = 64"
    return Finding("trap", what, cure)


def _nothing_compiles(versions: dict[str, str], applied: set[str]) -> Finding | None:
    names = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
    found = [name for name in names if os.environ.get(name, "0") not in ("", "0")]
    if not found:
        return None
    return Finding("trap", f"{found[0]} is set: torch.compile does nothing.", f"unset {found[0]}")


def _without_compiler(versions: dict[str, str], applied: set[str]) -> Finding | None:
    if numbers(versions["CUDA"]) or versions["C++ compiler"] != "not installed":
        return None
    level = "problem" if _compile_asked_for() else "trap"
    wanted = os.environ.get("CXX") or _default_compiler()
    what = f"There is no C++ compiler ({wanted}): torch.compile cannot work on a CPU."
    return Finding(level, what, "install g++ (apt-get install g++), or set CXX to a compiler")


def _without_triton(versions: dict[str, str], applied: set[str]) -> Finding | None:
    if not numbers(versions["CUDA"]) or _found("triton"):
        return None
    level = "problem" if _compile_asked_for() else "trap"
    return Finding(
        level, "There is no Triton: torch.compile cannot work on a GPU.", "pip install triton"
    )


def _compile_asked_for() -> bool:
    return os.environ.get(variable_of("runtime"), "").strip().lower() in _COMPILED_RUNTIMES


def _toto_works() -> bool:
    return sys.modules.get("toto.inference.forecaster") is not None
