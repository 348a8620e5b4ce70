"""The public functions. Thin: what to do is decided in settings, done in registry."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeGuard, TypeVar

from toto_compile_patch import carriers as carriers_here
from toto_compile_patch import import_hook
from toto_compile_patch.carriers import Carrier
from toto_compile_patch.errors import TotoNotFoundError, UnsupportedTotoError
from toto_compile_patch.failed_forecast import FailedForecast
from toto_compile_patch.locks import Lock
from toto_compile_patch.path_taken import PathTaken, last_noted
from toto_compile_patch.settings import ENV_TOGGLE, PATCH_NAMES, Settings, put_in_force, wanted
from toto_compile_patch.table import TABLE
from toto_compile_patch.tested_code import HOW_TO_COMPARE

if TYPE_CHECKING:
    import torch
    from toto.data.util.dataset import MaskedTimeseries
    from toto.inference.forecaster import Forecast, TotoForecaster

    from toto_compile_patch.upstream import TotoCode

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M")
P = ParamSpec("P")

_logger = logging.getLogger("toto_compile_patch")
_logger.addHandler(logging.NullHandler())


@dataclass(eq=False)
class _Block:
    """A ``patched()`` block that is open, which object opened it, and what it is to restore."""

    opener: patched
    found: Settings | None


_blocks: list[_Block] = []
"""The open blocks of all threads, oldest first."""

_lock = Lock()
"""Held during every change, and while the list of blocks is read or changed. It is taken before
the registry's."""


def apply(
    patches: str | Iterable[str] | None = None,
    *,
    carriers: str | Iterable[str] | None = None,
    strict: bool | None = None,
    mode: str | None = None,
    rng: str | None = None,
    fallback: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    log: str | None = None,
) -> None:
    """Patch Toto's code in place, wherever it is: ``toto``, AutoGluon's copy, a clone.

    ``toto`` is imported, if it is installed. What is loaded is patched at once, and what is
    imported later is patched then.

    States the whole wanted state: exactly these patches and settings hold afterwards, and what
    is not named has the value of its environment variable, else its default. Call it before or
    after models and forecasters are built or compiled, as often as you like: models that are
    compiled already run the right code from their next call. All or nothing: if it raises,
    everything is as it was. An interrupt may come at any moment: ``revert()`` repairs whatever
    several of them leave.

    With ``TOTO_COMPILE_PATCH=0`` in the environment, upstream is left (or made) untouched,
    whatever the arguments say.

    Warns, once in a process, of each loaded copy of Toto's code that it does not reach, since it
    is not code that was tested (``UnreachedCarrierWarning``, and the log); ``status()`` lists them.

    Args:
        patches: names of the patches, or one comma-separated string; default: all of them.
        carriers: the copies of Toto's code to patch: ``toto``, ``autogluon``, and of clones
            ``toto.toto`` or ``clone`` (``inference`` and ``model``). Default: each that fits.
        strict: raise where the installed ``toto`` is not code that was tested, instead of
            leaving that patch out with a warning in the log; a copy that is imported later is
            left as it is instead. Default: True.
        mode: the ``torch.compile`` mode of ``compile()``. Default: ``reduce-overhead``.
        rng: ``fast``: samples of the same distribution as upstream's, from other random numbers
            (default). ``upstream``: upstream's draws in upstream's order, so that a seed gives
            upstream's samples: slow, and in need of much memory, it is for comparing the two.
        fallback: what happens to a forecast that the fast path does not know: upstream's code
            makes it, with a FallbackWarning once for each reason (``warn``, the default), or with
            a line in the log alone (``upstream``); or ``error``: FallbackError.
        runtime: how the fast path runs: ``eager``, ``compile``, ``cudagraph``,
            ``compile+cudagraph``, or ``auto`` (default): as the model was compiled, if it was
            (by ``toto.compile()``: not on a CPU); else by CUDA graphs on CUDA, eagerly elsewhere.
        precision: that of the fast path's matrix products in a float32 model: ``model``, as torch
            is set (default); ``tf32``, on CUDA; ``tf32x3``, likewise, in three passes that are as
            exact as float32; ``bf16``, weights in 16 bits and sums in 32.
        log: show the package's log on stderr from this level on (``debug``, ``info``, ...).
            Default: leave logging to the application.

    Raises:
        ValueError: an unknown name or value in an argument or environment variable.
        TotoNotFoundError: there is no Toto, or it cannot be imported.
        UnsupportedTotoError: strict, and the code to be patched was not tested.
        PatchConflictError: somebody replaced a symbol that this call has to restore.
        CompiledCodeBusyError: another thread does not leave compiled code.

    >>> import toto_compile_patch
    >>> toto_compile_patch.apply()                                      # doctest: +SKIP
    >>> toto_compile_patch.apply(["kv_cache", "positional_embedding"])  # doctest: +SKIP
    """
    # Nothing but the arguments is local yet.
    settings = Settings.resolve(**locals())
    if _wants_patches(settings):
        import_hook.follow(carrier_imported)
        try:
            _load_carriers(settings)
            _warn_of_unreached(settings)
        except BaseException:
            if not _wants_patches(wanted()):
                import_hook.unfollow()
            raise
    _bring_about(settings)


def _warn_of_unreached(settings: Settings) -> None:
    """Warn of loaded copies of Toto's code that ``apply()`` does not reach.

    It is done before anything changes: a caller's filters may turn the warning into an error.
    """
    with _lock.held:
        try:
            _show_log(settings.log)
            carriers_here.warn_of_unreached(settings.carriers)
        finally:
            _show_log_as_wanted()


def _load_carriers(settings: Settings) -> tuple[str, ...]:
    """Import ``toto``, where it is wanted and installed, and find the classes of each carrier that
    is loaded.

    No lock is held meanwhile: an import may have to wait for another thread's.

    Returns:
        Names of those that were not known before.

    Raises:
        TotoNotFoundError: there is nothing to patch, now or later.
        UnsupportedTotoError: a carrier lacks what all that were tested have.
    """
    _registry()
    upstream = importlib.import_module("toto_compile_patch.upstream")
    if settings.wants(carriers_here.TOTO):
        _load_toto(upstream, settings)
    elif settings.carriers and not carriers_here.others_than_toto(settings.carriers):
        names = ", ".join(f"`{name}`" for name in settings.carriers)
        raise TotoNotFoundError(
            f"none of the carriers that are wanted is installed or on the path: {names}. Install "
            "it, or leave out carriers (TOTO_COMPILE_PATCH_CARRIERS) to patch whatever is here"
        )
    found = carriers_here.loaded_and_wanted(settings.carriers)
    new = tuple(name for name in found if not upstream.is_loaded(name))
    for name in new:
        upstream.load(name)
    return new


def _load_toto(upstream: ModuleType, settings: Settings) -> None:
    """Import ``toto``; where it is not installed, another carrier may be all that there is.

    Raises:
        TotoNotFoundError: it cannot be imported, or there is no other carrier.
        UnsupportedTotoError: it lacks what all that were tested have.
    """
    try:
        upstream.load(carriers_here.TOTO)
    except ImportError as error:
        is_missing = (error.name or "").partition(".")[0] == carriers_here.TOTO
        if is_missing and carriers_here.others_than_toto(settings.carriers):
            return
        advice = carriers_here.instead_of_toto() or (
            "pip install toto-ts; on a torch other than the one that it pins, pip install "
            "--no-deps toto-ts and what it imports"
        )
        raise TotoNotFoundError(f"toto cannot be imported ({error}): {advice}") from error
    except AttributeError as error:
        raise UnsupportedTotoError(
            f"this toto is not one that was tested ({error}). {HOW_TO_COMPARE}."
        ) from error


def carrier_imported(name: str) -> None:
    """Patch a carrier that has just been imported, if the patches are to stand.

    The import hook calls it, inside of that import.

    Args:
        name: the module that was imported.
    """
    settings = wanted()
    if not _wants_patches(settings):
        return
    late = _load_carriers(settings)
    with _lock.held:
        settings = wanted()
        if late and _wants_patches(settings):
            _bring_about(settings, late=late)
    if _wants_patches(settings):
        _warn_of_unreached(settings)


def _wants_patches(settings: Settings | None) -> TypeGuard[Settings]:
    """Whether settings ask for any patch."""
    return settings is not None and settings.enabled and bool(settings.patches)


def _bring_about(
    settings: Settings | None, force: bool = False, late: Collection[str] = ()
) -> None:
    """Make settings hold, None being upstream's own code; whatever fails, all is as it was."""
    enabled = settings is not None and settings.enabled
    registry = _registry() if enabled or _registry_loaded() else None
    if enabled:
        # Again: what a patched() block found may be what is brought about.
        import_hook.follow(carrier_imported)
    with _lock.held:
        try:
            if settings:
                _show_log(settings.log)
            applied: tuple[str, ...] = ()
            if registry:
                applied = registry.change(settings, force=force, late=late)
            else:
                put_in_force(settings)
            if "fast_decode" not in applied:
                _free_prepared()
            if settings is None:
                _logger.info("reverted: upstream runs unpatched")
            elif enabled:
                _logger.info("applied: %s", ", ".join(applied) or "nothing")
            else:
                _logger.info("%s=0: upstream runs unpatched", ENV_TOGGLE)
        finally:
            if not _wants_patches(wanted()):
                import_hook.unfollow()
            _show_log_as_wanted()


def revert(*, force: bool = False) -> None:
    """Take every patch out: upstream's attributes are again the very objects they were.

    Compiled models run upstream's code from their next call. Does nothing where nothing is
    applied.

    Args:
        force: restore upstream's own even where somebody replaced a symbol after us.

    Raises:
        PatchConflictError: somebody replaced a symbol after us; nothing has changed.
        CompiledCodeBusyError: another thread does not leave compiled code; nothing has changed.

    >>> import toto_compile_patch
    >>> toto_compile_patch.revert()                                     # doctest: +SKIP
    """
    _bring_about(None, force)


def _with_arguments_of(
    function: Callable[P, None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give a method the arguments of a function, for type checkers, editors and ``help()``."""

    def with_its_signature(method: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        this, *_ = inspect.signature(method).parameters.values()
        signature = inspect.signature(function)
        parameters = [this, *signature.parameters.values()]
        method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return method

    return with_its_signature


class patched:
    """Patch for the length of a ``with`` block or of a call, then restore what was found.

    Takes what ``apply()`` takes. Patches are the process's, not a thread's: where blocks of
    several threads overlap, the last one opened decides, and the last one closed restores. Where
    an interrupt comes while a block is left, what it applied may stand until the next ``revert()``.

    >>> import toto_compile_patch
    >>> with toto_compile_patch.patched():                              # doctest: +SKIP
    ...     forecast = forecaster.forecast(inputs, prediction_length=96)
    >>> @toto_compile_patch.patched("kv_cache")                         # doctest: +SKIP
    ... def backtest(): ...
    """

    @_with_arguments_of(apply)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._arguments = inspect.signature(apply).bind(*args, **kwargs).arguments
        patches = self._arguments.get("patches")
        if patches is not None and not isinstance(patches, str):
            # An iterator would have nothing left for a second block.
            self._arguments["patches"] = tuple(patches)

    def __enter__(self) -> None:
        block = _Block(self, wanted())
        try:
            with _lock.held:
                block.found = wanted()
                _blocks.append(block)
                apply(**self._arguments)
        except BaseException:
            # Python will not call __exit__. Where apply() itself failed, nothing has changed.
            if block in _blocks:
                _close(block, changed=wanted() is not block.found)
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _lock.held:
            _close([block for block in _blocks if block.opener is self][-1], changed=True)

    def __call__(self, function: F) -> F:
        if (
            inspect.iscoroutinefunction(function)
            or inspect.isgeneratorfunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise TypeError(
                f"{function.__name__} returns before its body has run: use `with patched():` inside"
            )

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with patched(**self._arguments):
                return function(*args, **kwargs)

        return call  # type: ignore[return-value]


def _close(block: _Block, changed: bool) -> None:
    """Restore what a block found, if anything changed, or leave that to one opened later."""
    with _lock.held:
        later = _blocks[_blocks.index(block) + 1 :]
        try:
            if later:
                later[0].found = block.found
            elif changed:
                _bring_about(block.found)
        finally:
            _blocks.remove(block)


@dataclass(frozen=True)
class PatchStatus:
    """What is found of one patch.

    Attributes:
        name: the patch.
        state: ``applied``, ``not applied``, ``replaced`` (by somebody else), ``unavailable``, or
            ``nothing to patch`` where the carrier has no such code.
        targets: dotted names of the symbols that it replaces.
        detail: who replaced what, or why it is unavailable; else empty.
        carrier: the package whose code it is; empty where none is loaded.
    """

    name: str
    state: str
    targets: tuple[str, ...]
    detail: str = ""
    carrier: str = ""


class Status(tuple[PatchStatus, ...]):
    """The rows of ``status()``; prints as a table.

    Attributes:
        carriers: the places where Toto's code is loaded or importable, and whether ``apply()``
            reaches them; no part of the tuple itself.
    """

    carriers: tuple[Carrier, ...]

    def __new__(cls, rows: Iterable[PatchStatus] = (), carriers: Iterable[Carrier] = ()) -> Status:
        self = super().__new__(cls, rows)
        self.carriers = tuple(carriers)
        return self

    def __repr__(self) -> str:
        lines: list[str] = []
        several = len({row.carrier for row in self}) > 1
        for before, row in zip((None, *self), self, strict=False):
            if several and (before is None or before.carrier != row.carrier):
                lines += ["", f"{row.carrier}:"] if lines else [f"{row.carrier}:"]
            first, *others = row.targets or ("",)
            lines.append(f"{row.name:<22}{row.state:<14}{first}")
            lines += [f"{'':<36}{target}" for target in others]
            if row.detail:
                lines.append(f"{'':<22}{row.detail}")
        if self.carriers:
            lines += ["", "Toto's code:"]
        for carrier in self.carriers:
            lines.append(f"{carrier.name:<21} {carrier.state}: {carrier.code}")
            if carrier.folder:
                lines.append(f"{'':<22}{carrier.folder}")
            if carrier.advice:
                lines.append(f"{'':<22}{carrier.advice}")
        return "\n".join(lines)

    __str__ = __repr__


def status() -> Status:
    """Look at the live attributes and say what stands: for each carrier of Toto's code that is
    loaded, one row per patch, in the table's order.

    Its ``carriers`` are the places where Toto's code is loaded or importable: a patch that stands
    does nothing for forecasts by one that is not reached.

    >>> import toto_compile_patch
    >>> rows = toto_compile_patch.status()                              # doctest: +SKIP
    >>> [row.name for row in rows if row.state == "applied"]            # doctest: +SKIP
    """
    return Status(_patch_rows(), carriers_here.found(_carriers_wanted()))


def _patch_rows() -> list[PatchStatus]:
    """A row for each patch and carrier, also where no Toto is installed or supported."""
    try:
        registry = _registry()
        _load_carriers(wanted() or Settings())
    except (TotoNotFoundError, UnsupportedTotoError) as error:
        if not _codes():
            return [PatchStatus(name, "unavailable", (), str(error)) for name in PATCH_NAMES]
    rows = []
    with registry.lock.held:
        for code in _codes():
            for patch in TABLE:
                state, detail = registry.state_of(patch, code)
                targets = tuple(site.symbol for site in patch.sites(code))
                rows.append(PatchStatus(patch.name, state.value, targets, detail, code.carrier))
    return rows


def _carriers_wanted() -> tuple[str, ...] | None:
    """The carriers that the last apply() was to patch; None: whichever fits."""
    settings = wanted()
    return settings.carriers if settings else None


def _codes() -> tuple[TotoCode, ...]:
    """The code of the carriers that are loaded; none where torch is missing."""
    if not _registry_loaded():
        return ()
    from toto_compile_patch import upstream

    return upstream.codes()


def is_applied(name: str | None = None) -> bool:
    """Whether a patch stands now; without a name, whether all that were last asked for do.

    It speaks of the patches alone: forecasts by a copy of Toto's code that ``apply()`` does not
    reach are upstream's, whatever it says. ``status().carriers`` tells of such copies.

    The live attributes are asked. Where they disagree with what was asked for, they decide: False
    if any patch that is wanted does not stand, and True if any stands although none is wanted
    (somebody put it back, or interrupts kept a ``revert()`` from ending).

    Raises:
        ValueError: an unknown name.
    """
    if name is not None and name not in PATCH_NAMES:
        raise ValueError(f"unknown patch {name!r}; known patches: {', '.join(PATCH_NAMES)}")
    if not _registry_loaded():
        return False
    settings = wanted()
    asked = settings.patches if settings and settings.enabled else ()
    rows = [row for row in _rows_to_judge(settings) if name in (None, row.name)]
    if name is not None or asked:
        judged = [row for row in rows if name is not None or row.name in asked]
        return bool(judged) and all(row.state == "applied" for row in judged)
    return any(row.state == "applied" for row in rows)


def _rows_to_judge(settings: Settings | None) -> list[PatchStatus]:
    """The rows of the carriers that are wanted, where there is something to patch."""
    return [
        row
        for row in _patch_rows()
        if row.state != "nothing to patch" and (settings is None or settings.wants(row.carrier))
    ]


def compile(model: M, mode: str | None = None, **kwargs: Any) -> M:
    """Compile, in place, the backbone that a forecaster really calls.

    ``toto.compile()`` compiles nothing upstream, and ``torch.compile(toto)`` never does.

    Args:
        model: a ``Toto``, a ``TotoBackbone`` or a ``TotoForecaster``.
        mode: a ``torch.compile`` mode. Default: that of ``apply()``, else of
            ``TOTO_COMPILE_PATCH_MODE``, else ``reduce-overhead``.
        **kwargs: passed on to ``torch.nn.Module.compile`` (``backend``, ``dynamic``, ...).

    Returns:
        The same object, for chaining. A backbone that is wrapped by ``torch.compile`` already
        keeps the mode that it was wrapped with.

    Raises:
        TypeError: something else was given.
        ValueError: an unknown mode.

    >>> forecaster = toto_compile_patch.compile(TotoForecaster(toto.model))  # doctest: +SKIP
    """
    settings = wanted()
    chosen = Settings.resolve(mode=mode or (settings.mode if settings else None)).mode
    from toto_compile_patch.decode.compile_call import without_compiling

    backbone = _backbone_of(model)
    if without_compiling(backbone) is not backbone:
        _logger.info("the model is wrapped by torch.compile already; left as it is")
        return model
    by_inductor = kwargs.get("backend", "inductor") == "inductor" and "options" not in kwargs
    if mode is not None or by_inductor:
        kwargs["mode"] = chosen
    backbone.compile(**kwargs)
    return model


def last_path() -> PathTaken | None:
    """Which code made this thread's last forecast: the fast path, or upstream's and why.

    None before the first forecast with ``fast_decode`` applied; but where a copy of Toto's code
    that ``apply()`` does not reach is loaded, whose forecasts cannot be seen, ``taken`` is then
    ``unreached``, and the reason names it.

    >>> toto_compile_patch.last_path()                                  # doctest: +SKIP
    PathTaken(taken='fast', reason='', runtime='eager', graphs=0, graph_bytes=0)
    """
    path = last_noted()
    if path is None and (others := carriers_here.unreached(_carriers_wanted())):
        names = ", ".join(carriers_here.placed(carrier) for carrier in others)
        return PathTaken(
            "unreached",
            f"no forecast of this thread was made by a class that apply() reaches; it does not "
            f"reach {names}: see status()",
        )
    return path


def refresh(model: Any) -> None:
    """Have a model's weights prepared anew at its next forecast.

    Each forecast sees by itself what torch did to a weight, and any edit of a whole row, column or
    head, by whatever way. Any other edit that torch does not know of, through ``weight.data``,
    numpy, a storage, DLPack or a fused optimizer, it sees within 512 forecasts: call this after an
    edit of a few elements, or of a block of a matrix.

    Args:
        model: a ``Toto``, a ``TotoBackbone`` or a ``TotoForecaster``.

    Raises:
        TypeError: something else was given.
    """
    backbone = _backbone_of(model)
    from toto_compile_patch.decode.compile_call import without_compiling
    from toto_compile_patch.decode.forecast import forget_prepared

    forget_prepared(without_compiling(backbone))


def _backbone_of(model: Any) -> Any:
    """The backbone of a model; where ``torch.compile`` has wrapped it, the wrapper."""
    _load_carriers(wanted() or Settings())
    from toto_compile_patch.decode.compile_call import without_compiling
    from toto_compile_patch.upstream import code_of

    backbone, code = model, code_of(model)
    if code and not isinstance(model, code.TotoBackbone):
        backbone = getattr(model, "model", None)
    found = without_compiling(backbone)
    code = code_of(found)
    if code is None or not isinstance(found, code.TotoBackbone):
        raise TypeError(
            f"give a Toto, a TotoBackbone or a TotoForecaster, not {type(model).__name__}"
        )
    return backbone


def warmup(
    forecaster: TotoForecaster,
    inputs: MaskedTimeseries,
    prediction_length: int,
    num_samples: int | None = None,
    samples_per_batch: int = 10,
    use_kv_cache: bool = True,
    *,
    runs: int = 2,
    **kwargs: Any,
) -> float:
    """Run the forecast that the user will run, so that compilation is over when it counts.

    The fast path draws nothing from torch's random generators here. What upstream's code draws,
    where it makes the forecast, is drawn: to set a generator back would repeat what other threads
    have drawn meanwhile.

    Args:
        forecaster: what will make the forecasts.
        inputs: a series of the shape that will be used.
        prediction_length: horizon in time steps.
        num_samples: number of samples; None for a mean forecast.
        samples_per_batch: how many of them upstream's code draws at once; it must divide them.
        use_kv_cache: whether to forecast as upstream does with a key/value cache.
        runs: how often; a CUDA graph is recorded in the second run.
        **kwargs: passed on to ``TotoForecaster.forecast``.

    Returns:
        Seconds that it took.

    >>> seconds = warmup(forecaster, inputs, 96, num_samples=256)       # doctest: +SKIP
    """
    import torch

    if runs < 1:
        raise ValueError(f"runs must be at least 1, not {runs}")
    on_gpu = inputs.series.is_cuda
    taken: list[float] = []
    with _nothing_drawn():
        for _ in range(runs):
            start = time.perf_counter()
            forecaster.forecast(
                inputs,
                prediction_length=prediction_length,
                num_samples=num_samples,
                samples_per_batch=samples_per_batch,
                use_kv_cache=use_kv_cache,
                **kwargs,
            )
            if on_gpu:
                torch.cuda.synchronize(inputs.series.device)
            taken.append(time.perf_counter() - start)
    _logger.info(
        "warm-up: %s s (%s)", ", ".join(f"{seconds:.3g}" for seconds in taken), last_path()
    )
    return sum(taken)


def forecast_many(
    forecaster: TotoForecaster,
    windows: Iterable[MaskedTimeseries],
    prediction_length: int,
    num_samples: int | None = None,
    samples_per_batch: int = 10,
    use_kv_cache: bool = True,
    *,
    future_exogenous_variables: Iterable[torch.Tensor | None] | None = None,
    seed: int | Iterable[int] | None = None,
    memory: int = 2**30,
) -> Iterator[Forecast | FailedForecast]:
    """Forecast many windows, of any lengths and numbers of variates, those of one shape together.

    Each forecast is what ``forecaster.forecast`` gives for that window alone: the same mean, up to
    rounding, and samples of the same distribution. Windows are read ahead, until those of a shape
    fill a group, and a forecast comes as soon as its group, and those before it, are made: a source
    that waits for a forecast before it gives the next window is for ``forecaster.forecast``. Where
    ``fast_decode`` is not applied, or with ``rng="upstream"``, or where the fast path does not know
    the model or the forecaster has methods of its own, windows are forecast one by one: the same
    code serves both sides of a comparison.

    A window that cannot be forecast costs itself alone: a ``FailedForecast`` stands in its place,
    which holds its error, and raises it when it is asked for a mean or samples. So does one that
    holds nothing but padding, though ``forecaster.forecast`` makes numbers of it.

    Args:
        forecaster: makes the forecasts.
        windows: the series to forecast, ``[batch] variate time_steps``, in any number.
        prediction_length: horizon in time steps.
        num_samples: number of samples of each; None for mean forecasts.
        samples_per_batch: how many of them upstream's code draws at once; it must divide them.
        use_kv_cache: whether to forecast as upstream does with a key/value cache.
        future_exogenous_variables: for each window, known future values of its last variates,
            ``[batch] exogenous_variables future_time_steps``, or None.
        seed: of the samples: one number, from which each window's own follows by its place in the
            order, or one for each window; None: one number, drawn from torch's generator. Whatever
            stands beside a window, its random numbers are the same. Upstream's code, where it
            forecasts, draws from torch's generator, which is begun anew for each window if a seed
            is given.
        memory: bytes that a group's arithmetic may take, beside the model; windows that wait for
            their group, and forecasts that wait for those before them, may take as many again.

    Returns:
        An iterator of forecasts, in the order of the windows; each has a batch of 1 where its
        window has none.

    Raises:
        TypeError: no ``TotoForecaster``, or a single window instead of several, was given.
        ValueError: a number is too small, or ``num_samples`` is no multiple of
            ``samples_per_batch``; later, that there are not as many seeds, or futures, as windows.

    >>> for forecast in forecast_many(forecaster, windows, 96, 256, 256, seed=0):  # doctest: +SKIP
    ...     print(forecast.median)
    """
    _registry()
    from toto_compile_patch import many

    asked = many.Asked(
        forecaster,
        prediction_length,
        num_samples,
        samples_per_batch,
        use_kv_cache,
        memory,
        reseeds=num_samples is not None and seed is not None,
    ).checked(windows)
    return many.forecasts(asked, many.in_order(windows, future_exogenous_variables, seed, asked))


def _nothing_drawn() -> AbstractContextManager[None]:
    """Keep this thread's fast forecasts from drawing from torch's random generators."""
    _registry()
    from toto_compile_patch.decode.random_numbers import nothing_drawn

    return nothing_drawn()


def _free_prepared() -> None:
    """Give back the memory that the fast path holds beside the models."""
    if "toto_compile_patch.decode.forecast" in sys.modules:
        from toto_compile_patch.decode.forecast import forget_prepared

        forget_prepared()


def _registry_loaded() -> bool:
    """False as long as nothing can have been applied, without importing toto to find out."""
    return "toto_compile_patch.registry" in sys.modules


def _registry() -> ModuleType:
    """The registry, whose import imports torch."""
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise TotoNotFoundError(f"torch cannot be imported ({error}): pip install torch") from error
    try:
        import toto_compile_patch.registry as registry

        importlib.import_module("toto_compile_patch.tracing")
    except (ImportError, AttributeError) as error:
        raise UnsupportedTotoError(
            f"this torch is not one that was tested ({error}): install one that was, such as "
            "pip install torch==2.7.0"
        ) from error
    return registry


class _ShownLog(logging.StreamHandler):  # type: ignore[type-arg]
    """Shows the package's log on what is ``sys.stderr`` when a line is logged.

    Attributes:
        level_before: the logger's level before this was added to it, and again when it is removed.
    """

    level_before = logging.NOTSET

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


_shown_log = _ShownLog()
_shown_log.setFormatter(logging.Formatter("%(name)s: %(message)s"))


def _show_log_as_wanted() -> None:
    settings = wanted()
    _show_log(settings.log if settings else None)


def _show_log(level: str | None) -> None:
    """Show the package's log on stderr from a level on, or no longer."""
    if _shown_log not in _logger.handlers:
        _shown_log.level_before = _logger.level
    if level is not None:
        _logger.addHandler(_shown_log)
        _logger.setLevel(level.upper())
    elif _shown_log in _logger.handlers:
        _logger.setLevel(_shown_log.level_before)
        _logger.removeHandler(_shown_log)
