"""From what was seen of a script to what is wrong with it, in plain words, with the cure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools.doctor.findings import APPLY, OLDER_HUB, WITHOUT_XFORMERS, Finding

if TYPE_CHECKING:
    from toto_compile_patch.tools.doctor.script import Examination

_READS_OF_THE_CACHE = ("KVCache.", "BaseMultiheadAttention.positional_embedding")
_OFF = ("0", "false", "no", "off")
_LONG_COMPILING = 10.0
"""Seconds of compiling that nobody would ask about."""

# What an exception's text contains, what that means, and the cure.
_KNOWN_ERRORS = (
    (
        ("_from_pretrained", "proxies"),
        "huggingface_hub 1 or newer breaks upstream's Toto.from_pretrained.",
        OLDER_HUB,
    ),
    (
        ("memory_efficient_attention",),
        "xformers' attention has no kernel for this device.",
        WITHOUT_XFORMERS,
    ),
    (
        ("_standard_gamma", "not implemented"),
        "On a CPU, upstream cannot draw samples in 16 bits.",
        f"{APPLY}, whose fast path can; or a float32 model without autocast",
    ),
    (
        ("C++ compiler",),
        "torch.compile needs a C++ compiler on a CPU.",
        "install g++, or set CXX to a compiler",
    ),
    (
        ("toto", "No module named"),
        "toto is not installed.",
        "pip install toto-ts",
    ),
    (
        ("FallbackError",),
        "apply(fallback='error') forbids upstream's code, which this forecast needs.",
        "apply(fallback='upstream'), or do what the error says is in the way",
    ),
    (
        ("FailOnRecompileLimitHit",),
        "fullgraph=True turns a recompile limit into an error.",
        "leave fullgraph out, or raise torch._dynamo.config.recompile_limit",
    ),
)

# What a reason of the fast path contains, and the cure.
_KNOWN_REASONS = (
    ("training mode", "model.eval() after the forecaster was made"),
    ("hooks", "remove the hooks before forecasting"),
    ("has been replaced", "take out what replaced it"),
    ("has its own", "give the method back: what stands in for it is known to the fast path alone"),
    ("not as the model", "give the series the model's dtype and device"),
    ("unusual argument", "see the argument named"),
)


def diagnose(found: Examination, set_too_late: list[str], countable: bool) -> Iterator[Finding]:
    """All that is to be said, the gravest first.

    Args:
        found: what was seen.
        set_too_late: environment variables set after dynamo had read its own.
        countable: whether forecasts of unpatched code could be seen.
    """
    yield from _failure(found)
    yield from _unreached(found)
    nothing_compiled = list(_nothing_compiled(found))
    yield from nothing_compiled
    compiled_upstream = list(_compiled_upstream(found))
    yield from compiled_upstream
    if not nothing_compiled and not compiled_upstream:
        yield from _unpatched(found)
    yield from _before_apply(found)
    yield from _fallbacks(found)
    yield from _limits(found, bool(compiled_upstream))
    yield from _compiling(found)
    yield from _too_late(set_too_late)
    yield from _switched_off(found)
    yield from _autocast(found)
    yield from _other_runtimes(found)
    yield from _cudagraph_skips(found)
    yield from _no_forecast(found, countable)


def _failure(found: Examination) -> Iterator[Finding]:
    if not found.error:
        if found.exit_code:
            yield Finding("problem", f"The script ended with exit code {found.exit_code}.")
        return
    for parts, meaning, cure in _KNOWN_ERRORS:
        if all(part in found.error for part in parts):
            yield Finding("problem", f"The script failed: {meaning}", cure)
            return
    yield Finding("problem", f"The script failed with {_first_line(found.error)}.")


def _unreached(found: Examination) -> Iterator[Finding]:
    """Forecasts by code that apply() does not reach, or such code where no other forecast is."""
    for carrier in found.unreached:
        name = carrier["name"]
        ways = [way for way in found.forecasts if way["carrier"] == name]
        if ways:
            places = ", ".join(dict.fromkeys(way["place"] for way in ways))
            count = _forecasts(sum(way["count"] for way in ways))
            what = f"{count} by `{name}`, which apply() does not reach, at {places}."
        else:
            what = f"`{name}` is loaded, and apply() does not reach it ({carrier['folder']})."
        level = "problem" if ways or not found.forecasts else "note"
        yield Finding(level, what, carrier["advice"])


def _nothing_compiled(found: Examination) -> Iterator[Finding]:
    """Somebody asked for compiling, and no forecast was asked of a compiled model."""
    if not found.calls or not found.forecasts or _count(found, compiled=True):
        return
    lines = {_line_of(call): call for call in found.calls}
    why = "; ".join(
        f"{line} at {call['place']}: {_why_nothing(call)}" for line, call in lines.items()
    )
    if _count(found, path="fast"):
        cure = "leave that out (the fast path needs no compiling), or write toto.compile()"
    else:
        cure = (
            f"before it: {APPLY} (many times faster, without compiling); or, to compile upstream's "
            "code as it is: toto.model.compile()"
        )
    yield Finding("problem", f"NOTHING WAS COMPILED. {why}.", cure)


def _line_of(call: dict[str, Any]) -> str:
    name = {"Toto": "toto", "TotoBackbone": "model", "TotoForecaster": "forecaster"}[call["target"]]
    return f"{name}.compile()" if call["how"] == "method" else f"torch.compile({name})"


def _why_nothing(call: dict[str, Any]) -> str:
    if call["target"] == "Toto":
        return "Toto has no forward, and a forecaster calls toto.model"
    if call["how"] == "function":
        return "its result is not what the forecaster holds"
    return "no forecaster calls this model"


def _compiled_upstream(found: Examination) -> Iterator[Finding]:
    """Upstream's code in a compiled model, without the patches that are for it."""
    unpatched = [
        way
        for way in found.forecasts
        if way["path"] == "upstream"
        and way["compiled"]
        and not way["patches"]
        and not way["carrier"]
    ]
    if not unpatched or not found.counts:
        return
    counts = found.counts
    reads = sum(
        group.count
        for group in found.breaks
        if any(name.startswith(_READS_OF_THE_CACHE) for name in group.functions)
    )
    listed = sum(group.count for group in found.breaks)
    if not reads and not found.limits:
        return
    what = (
        f"Upstream's compiled model falls to pieces: {counts['graphs']} graphs, "
        f"{counts['graph_breaks']} graph breaks, {counts['recompilations']} recompilations. "
        "positional_embedding (toto/model/attention.py) reads and moves the cache's position on "
        f"the device, in each layer: {reads} of the {listed} breaks listed; what is between "
        "them is compiled again for other layers and lengths."
    )
    if found.limits:
        what += (
            f" The recompile limit was hit in {_limited(found)}, which runs uncompiled from there "
            "on; the counts are cut short by it."
        )
    else:
        what += " The recompile limit was not reached; further lengths may."
    cure = (
        f"before the first forecast: {APPLY}. The fast path makes the forecast from five graphs "
        "without breaks if the model is compiled"
    )
    yield Finding("problem", what, cure)


def _unpatched(found: Examination) -> Iterator[Finding]:
    count = sum(way["count"] for way in found.forecasts if _is_unpatched(way))
    if count and not _count(found, path="fast"):
        if found.variables.get(ENV_TOGGLE, "").strip().lower() in _OFF:
            cure = f"unset {ENV_TOGGLE}, whose 0 leaves upstream untouched"
        else:
            cure = f"before the first forecast: {APPLY}"
        yield Finding("problem", f"{_forecasts(count)} by upstream's code, unpatched.", cure)


def _before_apply(found: Examination) -> Iterator[Finding]:
    fast = [way["first"] for way in found.forecasts if way["path"] == "fast"]
    early = [way for way in found.forecasts if _is_unpatched(way)]
    if not fast or not early:
        return
    count = sum(way["count"] for way in early)
    when = "before apply()" if early[0]["first"] < min(fast) else "after revert()"
    places = ", ".join(dict.fromkeys(way["place"] for way in early))
    what = f"{_forecasts(count)} unpatched, {when}, at {places}."
    yield Finding("problem", what, "apply() at the script's start, or patched() around all of them")


def _fallbacks(found: Examination) -> Iterator[Finding]:
    counts: Counter[str] = Counter()
    places: dict[str, dict[str, None]] = {}
    for way in found.forecasts:
        if way["path"] == "upstream" and way["reason"]:
            counts[way["reason"]] += way["count"]
            places.setdefault(way["reason"], {})[way["place"]] = None
    for reason, count in counts.most_common():
        what = (
            f"{_forecasts(count)} by upstream's code although patched, at "
            f"{', '.join(places[reason])}: {reason}."
        )
        cure = next((text for part, text in _KNOWN_REASONS if part in reason), "")
        yield Finding("problem", what, cure or "see 'The patches' in the README")


def _limits(found: Examination, said: bool) -> Iterator[Finding]:
    if found.limits and not said:
        what = f"The recompile limit was hit in {_limited(found)}, which runs uncompiled since."
        cure = "raise torch._dynamo.config.recompile_limit, or see below what varies"
        yield Finding("problem", what, cure)


def _compiling(found: Examination) -> Iterator[Finding]:
    """Compiling that took long, and longer than all that it was for."""
    seconds = found.seconds or {}
    compiling, forecasting = seconds.get("compiling", 0.0), seconds.get("forecasting", 0.0)
    if compiling < _LONG_COMPILING or compiling <= forecasting or not found.forecasts:
        return
    what = (
        f"Compiling took {compiling:.0f} s, and all forecasts together {forecasting:.1f} s beside "
        "that: less than it cost to compile them."
    )
    cure = (
        "make many forecasts in one process; and keep what was compiled from one run to the next, "
        "in a TORCHINDUCTOR_CACHE_DIR that lasts"
    )
    if any(way["device"] == "cpu" for way in found.forecasts):
        cure = (
            "on a CPU, where compiling gains little, leave out toto.compile(), torch.compile and "
            f"runtime='compile'; or {cure}"
        )
    yield Finding("problem", what, cure)


def _too_late(names: list[str]) -> Iterator[Finding]:
    for name in names:
        what = f"{name} was set too late: torch reads it once, when torch._dynamo is imported."
        option = name.removeprefix("TORCHDYNAMO_").lower()
        cure = f"set it in the shell, or before importing torch; or torch._dynamo.config.{option}"
        yield Finding("problem", what, cure)


def _switched_off(found: Examination) -> Iterator[Finding]:
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if found.variables.get(name, "0") not in ("", "0"):
            yield Finding("problem", f"{name} is set: torch.compile does nothing.", f"unset {name}")


def _autocast(found: Examination) -> Iterator[Finding]:
    ways = [way for way in found.forecasts if way["autocast"]]
    if ways:
        count = sum(way["count"] for way in ways)
        what = f"{_forecasts(count)} within torch.autocast({ways[0]['autocast']!r})."
        cure = "leave it out; for matrix products in 16 bits alone: apply(precision='bf16')"
        yield Finding("note", what, cure)


def _other_runtimes(found: Examination) -> Iterator[Finding]:
    counts: Counter[tuple[str, str]] = Counter()
    for way in found.forecasts:
        if way["path"] == "fast" and way["reason"]:
            counts[way["runtime"], way["reason"]] += way["count"]
    for (runtime, reason), count in counts.items():
        yield Finding("note", f"{_forecasts(count)} in runtime {runtime}: {reason}.")


def _cudagraph_skips(found: Examination) -> Iterator[Finding]:
    for reason, count in found.skips.items():
        cure = "on a CPU: mode='default'" if "cpu device" in reason else ""
        yield Finding("note", f"{count} graphs not captured as CUDA graphs: {reason}.", cure)


def _no_forecast(found: Examination, countable: bool) -> Iterator[Finding]:
    if not countable:
        yield Finding("note", "Forecasts of this toto's unpatched code could not be counted.")
    elif not found.forecasts:
        what = "No forecast was seen. Those of processes that the script starts are not seen."
        yield Finding("note", what)


def _is_unpatched(way: dict[str, Any]) -> bool:
    others = way["reason"] or way["patches"] or way["carrier"]
    return way["path"] == "upstream" and not others


def _count(found: Examination, **fields: object) -> int:
    return sum(
        way["count"]
        for way in found.forecasts
        if all(way[name] == value for name, value in fields.items())
    )


def _limited(found: Examination) -> str:
    names = (name for group in found.limits for name in group.functions)
    return ", ".join(dict.fromkeys(names))


def _forecasts(count: int) -> str:
    return f"{count} forecast{'s were' if count > 1 else ' was'} made"


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), text).rstrip(".")
