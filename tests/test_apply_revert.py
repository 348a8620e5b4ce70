"""apply(), revert(), patched(), status(): the state they bring about, and how they fail."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch._dynamo
import toto.model.backbone
import toto.model.toto
import toto.model.util
import wrapt
from toto.inference.forecaster import TotoForecaster
from toto.model.attention import BaseMultiheadAttention
from toto.model.transformer import Transformer
from toto_cases import small_model

import toto_compile_patch
from toto_compile_patch import (
    PatchConflictError,
    TotoNotFoundError,
    UnsupportedTotoError,
    api,
    upstream,
)
from toto_compile_patch.patches import dynamo_config
from toto_compile_patch.settings import PATCH_NAMES

OWNERS = (
    toto.model.util,
    toto.model.backbone,
    toto.model.transformer,
    toto.model.toto.Toto,
    toto.model.backbone.TotoBackbone,
    Transformer,
    BaseMultiheadAttention,
    TotoForecaster,
)
SETTINGS = ("capture_scalar_outputs", "recompile_limit", "assume_static_by_default")


def snapshot() -> tuple[list[dict[str, int]], list[Any]]:
    """Identities of everything that every patched owner holds, and dynamo's settings."""
    owners = [
        {
            name: id(value)
            for name, value in vars(owner).items()
            if name not in ("__annotations__", "__warningregistry__")
        }
        for owner in OWNERS
    ]
    return owners, [getattr(torch._dynamo.config, name) for name in SETTINGS]


@pytest.fixture
def untouched() -> Iterator[None]:
    """What the test changes must be as it was after revert()."""
    before = snapshot()
    yield
    toto_compile_patch.revert()
    assert snapshot() == before


def applied() -> set[str]:
    return {row.name for row in toto_compile_patch.status() if row.state == "applied"}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("times", [1, 3])
def test_revert_restores_every_owner_object_for_object(times: int) -> None:
    before = snapshot()
    for _ in range(times):
        toto_compile_patch.apply()
    assert applied() == set(PATCH_NAMES)
    assert snapshot() != before
    toto_compile_patch.revert()
    assert applied() == set()


@pytest.mark.usefixtures("untouched")
def test_apply_states_the_whole_wanted_state() -> None:
    toto_compile_patch.apply(["kv_cache", "compile_method"])
    assert applied() == {"kv_cache", "compile_method"}
    toto_compile_patch.apply("positional_embedding")
    assert applied() == {"positional_embedding"}
    toto_compile_patch.apply()
    assert applied() == set(PATCH_NAMES)
    toto_compile_patch.apply([])
    assert applied() == set()


@pytest.mark.usefixtures("untouched")
def test_is_applied() -> None:
    assert not toto_compile_patch.is_applied()
    toto_compile_patch.apply(["kv_cache"])
    assert toto_compile_patch.is_applied()
    assert toto_compile_patch.is_applied("kv_cache")
    assert not toto_compile_patch.is_applied("dynamo_config")
    toto_compile_patch.revert()
    assert not toto_compile_patch.is_applied()
    with pytest.raises(ValueError, match="dynamo_config"):
        toto_compile_patch.is_applied("nonsense")


@pytest.mark.usefixtures("untouched")
def test_settings_not_named_return_to_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    from toto_compile_patch.settings import Settings, in_force

    monkeypatch.setenv("TOTO_COMPILE_PATCH_MODE", "max-autotune")
    toto_compile_patch.apply(mode="default", strict=False)
    assert (in_force().mode, in_force().strict) == ("default", False)
    toto_compile_patch.apply()
    assert (in_force().mode, in_force().strict) == ("max-autotune", True)
    toto_compile_patch.revert()
    assert in_force() == Settings()


@pytest.mark.usefixtures("untouched")
def test_the_environment_names_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH", "KV_Cache")
    toto_compile_patch.apply()
    assert applied() == {"kv_cache"}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("earlier", [False, True])
def test_the_toggle_leaves_upstream_untouched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, earlier: bool
) -> None:
    if earlier:
        toto_compile_patch.apply()
    monkeypatch.setenv("TOTO_COMPILE_PATCH", "off")
    with caplog.at_level(logging.INFO, "toto_compile_patch"):
        toto_compile_patch.apply(["kv_cache"])
    assert applied() == set()
    assert not toto_compile_patch.is_applied()
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.usefixtures("untouched")
def test_one_info_line_per_apply_and_revert(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "toto_compile_patch"):
        toto_compile_patch.apply()
        toto_compile_patch.revert()
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]


@pytest.mark.usefixtures("untouched")
def test_log_level_shows_the_log_as_long_as_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    toto_compile_patch.apply(log="info")
    assert "applied: kv_cache" in capsys.readouterr().err
    toto_compile_patch.apply()
    assert capsys.readouterr().err == ""
    toto_compile_patch.apply(log="info")
    toto_compile_patch.revert()
    assert "reverted" in capsys.readouterr().err
    toto_compile_patch.revert()
    assert capsys.readouterr().err == ""


def test_the_applications_own_log_level_comes_back() -> None:
    logger = logging.getLogger("toto_compile_patch")
    logger.setLevel(logging.ERROR)
    toto_compile_patch.apply(log="debug")
    toto_compile_patch.revert()
    assert logger.level == logging.ERROR
    logger.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("untouched")
@pytest.mark.fault(
    injected="a wrong name or value",
    where="arguments of apply()",
    observed="ValueError that lists the choices",
    afterwards="what stood stands",
)
def test_bad_arguments_change_nothing() -> None:
    toto_compile_patch.apply(["kv_cache"])
    with pytest.raises(ValueError, match="kv_cash"):
        toto_compile_patch.apply(["kv_cash"])
    with pytest.raises(ValueError, match="reduce-overhead"):
        toto_compile_patch.apply(mode="fast")
    assert applied() == {"kv_cache"}


@pytest.mark.usefixtures("untouched")
def test_status_prints_as_a_table_and_is_data() -> None:
    toto_compile_patch.apply(["kv_cache"])
    status = toto_compile_patch.status()
    assert [row.name for row in status] == list(PATCH_NAMES)
    assert status[0].targets[0] == "toto.model.util.KVCache"
    lines = str(status).splitlines()
    assert any("kv_cache" in line and " applied" in line for line in lines)
    assert any("compile_method" in line and "not applied" in line for line in lines)


class TestPatched:
    @pytest.mark.usefixtures("untouched")
    def test_restores_nothing_applied(self) -> None:
        with toto_compile_patch.patched():
            assert toto_compile_patch.is_applied("kv_cache")
        assert applied() == set()

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.fault(
        injected="an error of the user's",
        where="the body of a patched() block",
        observed="it is raised",
        afterwards="what the block found stands again",
    )
    def test_restores_what_it_found_also_after_an_exception(self) -> None:
        toto_compile_patch.apply(["kv_cache"], mode="default")
        with contextlib.suppress(KeyError), toto_compile_patch.patched(["dynamo_config"]):
            assert applied() == {"dynamo_config"}
            raise KeyError
        assert applied() == {"kv_cache"}
        toto_compile_patch.revert()

    @pytest.mark.usefixtures("untouched")
    def test_decorates_a_function_that_calls_itself(self) -> None:
        seen = []

        @toto_compile_patch.patched("kv_cache")
        def countdown(n: int) -> int:
            seen.append(applied())
            return n if n == 0 else countdown(n - 1)

        assert countdown(2) == 0
        assert seen == [{"kv_cache"}] * 3
        assert countdown.__name__ == "countdown"
        assert applied() == set()

    @pytest.mark.usefixtures("untouched")
    def test_blocks_of_several_threads_may_overlap(self) -> None:
        first, second = toto_compile_patch.patched("kv_cache"), toto_compile_patch.patched()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert applied() == set(PATCH_NAMES)
        second.__exit__(None, None, None)
        assert applied() == set()

    @pytest.mark.usefixtures("untouched")
    def test_restores_what_it_found_whatever_the_environment_says_then(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        toto_compile_patch.apply(["kv_cache"])
        monkeypatch.setenv("TOTO_COMPILE_PATCH", "0")
        with toto_compile_patch.patched():
            assert applied() == set()
            monkeypatch.setenv("TOTO_COMPILE_PATCH", "nonsense")
        assert applied() == {"kv_cache"}

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.fault(
        injected="an interrupt",
        where="a patched() block that waits for another thread's change",
        observed="it is raised",
        afterwards="nothing has changed, and no block is open",
    )
    def test_an_interrupt_while_another_thread_changes_the_patches(self) -> None:
        taken, leave = threading.Event(), threading.Event()

        def change() -> None:
            with api._lock.held:
                taken.set()
                leave.wait(10)

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGUSR1, interrupt)
        other = threading.Thread(target=change)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        try:
            other.start()
            taken.wait()
            timer.start()
            with pytest.raises(KeyboardInterrupt), toto_compile_patch.patched():
                pass
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
            leave.set()
            other.join()
        assert not api._blocks
        assert applied() == set()

    def test_refuses_what_returns_before_its_body_has_run(self) -> None:
        async def coroutine() -> None:
            await asyncio.sleep(0)

        def generator() -> Iterator[int]:
            yield 1

        for function in (coroutine, generator):
            with pytest.raises(TypeError, match="with patched"):
                toto_compile_patch.patched()(function)


class TestSomebodyElse:
    """A third party that patches the same symbols."""

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.fault(
        injected="another plugin's patch, after ours",
        where="a patched method",
        observed="revert() raises PatchConflictError, which names the symbol and the other",
        afterwards="nothing has changed; revert() works once theirs is out",
    )
    def test_a_later_patch_is_not_overwritten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        toto_compile_patch.apply()
        ours = BaseMultiheadAttention.positional_embedding

        def theirs(*args: Any) -> Any:
            return ours(*args)

        with monkeypatch.context() as context:
            context.setattr(BaseMultiheadAttention, "positional_embedding", theirs)
            with pytest.raises(PatchConflictError) as caught:
                toto_compile_patch.revert()
            assert "BaseMultiheadAttention.positional_embedding" in str(caught.value)
            assert __name__ in str(caught.value)
            # Nothing has changed, not even where nobody interfered.
            assert toto_compile_patch.is_applied("kv_cache")
            rows = {row.name: row for row in toto_compile_patch.status()}
            assert rows["positional_embedding"].state == "replaced"
            assert __name__ in rows["positional_embedding"].detail
            toto_compile_patch.apply()
            assert BaseMultiheadAttention.positional_embedding is theirs
        toto_compile_patch.revert()

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.fault(
        injected="another plugin's wrapper, after ours",
        where="a patched method",
        observed="revert() raises PatchConflictError",
        afterwards="revert(force=True) restores every object of upstream's",
    )
    def test_force_restores_upstreams_own(self) -> None:
        toto_compile_patch.apply()
        wrapt.wrap_function_wrapper(
            Transformer, "forward", lambda call, _, args, kwargs: call(*args, **kwargs)
        )
        with pytest.raises(PatchConflictError, match=__name__):
            toto_compile_patch.revert()
        toto_compile_patch.revert(force=True)

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.fault(
        injected="another plugin puts our function back",
        where="a method, after revert(force=True)",
        observed="status() names the symbol",
        afterwards="revert() takes it out",
    )
    def test_one_who_puts_ours_back_after_we_were_taken_out(self) -> None:
        toto_compile_patch.apply()
        ours = Transformer.forward
        Transformer.forward = lambda *args: ours(*args)
        toto_compile_patch.revert(force=True)
        Transformer.forward = ours
        assert "Transformer.forward" in str(toto_compile_patch.status())
        toto_compile_patch.revert()
        assert Transformer.forward is not ours

    @pytest.mark.usefixtures("untouched")
    def test_what_somebody_put_back_is_applied_though_nothing_is_wanted(self) -> None:
        toto_compile_patch.apply("compile_method")
        ours = vars(toto.model.toto.Toto)["compile"]
        toto_compile_patch.revert()
        toto.model.toto.Toto.compile = ours
        assert toto_compile_patch.is_applied()
        toto_compile_patch.revert()
        assert not toto_compile_patch.is_applied()

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.fault(
        injected="another plugin's lambda, before ours",
        where="a method to be patched",
        observed="UnsupportedTotoError, which names it",
        afterwards="nothing is applied; strict=False leaves out what needs it",
    )
    def test_a_lambda_before_us_is_refused_as_anything_else_is(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Transformer.forward
        with monkeypatch.context() as context:
            context.setattr(Transformer, "forward",
                            lambda *args: original(*args))  # fmt: skip
            with pytest.raises(UnsupportedTotoError, match=r"Transformer\.forward"):
                toto_compile_patch.apply()
            toto_compile_patch.apply(strict=False)
            assert applied() == set(PATCH_NAMES) - {"positional_embedding", "fast_decode"}
            toto_compile_patch.revert()

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.parametrize("by_wrapt", [True, False])
    @pytest.mark.fault(
        injected="another plugin's patch, before ours",
        where="a method that ours relies on",
        observed="UnsupportedTotoError, which names it",
        afterwards="nothing is applied; strict=False leaves out what needs it; apply() works once "
        "theirs is out",
    )
    def test_an_earlier_patch_is_refused_or_left_out(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by_wrapt: bool
    ) -> None:
        original = vars(BaseMultiheadAttention)["run_attention"]
        samples_of_upstreams = vars(TotoForecaster)["generate_samples"]
        if by_wrapt:
            theirs: Any = wrapt.FunctionWrapper(original, lambda call, _, args, kw: call(*args))
        else:

            def theirs(*args: Any) -> Any:
                return original(*args)

        with monkeypatch.context() as context:
            context.setattr(BaseMultiheadAttention, "run_attention", theirs)
            with pytest.raises(UnsupportedTotoError, match=r"toto(-ts)? 0\..*run_attention"):
                toto_compile_patch.apply()
            assert applied() == set()
            toto_compile_patch.apply(strict=False)
            assert applied() == set(PATCH_NAMES) - {"positional_embedding", "fast_decode"}
            told = [record.getMessage() for record in caplog.records]
            left_out = [line.split()[1] for line in told if line.endswith("; patch left out")]
            assert left_out == ["positional_embedding", "fast_decode"]
            assert not toto_compile_patch.is_applied()
            rows = {row.name: row for row in toto_compile_patch.status()}
            assert rows["positional_embedding"].state == "unavailable"
            # Nor is the half of a patch put in that would fit.
            assert vars(TotoForecaster)["generate_samples"] is samples_of_upstreams
            toto_compile_patch.revert()
        toto_compile_patch.apply()
        assert applied() == set(PATCH_NAMES)
        toto_compile_patch.revert()

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.fault(
        injected="somebody sets a dynamo setting",
        where="while ours holds",
        observed="their value holds",
        afterwards="their value stays after revert()",
    )
    def test_a_setting_changed_since_is_theirs_and_stays(self) -> None:
        limit = torch._dynamo.config.recompile_limit
        toto_compile_patch.apply()
        torch._dynamo.config.recompile_limit = 123
        assert toto_compile_patch.is_applied()
        toto_compile_patch.revert()
        assert torch._dynamo.config.recompile_limit == 123
        torch._dynamo.config.recompile_limit = limit

    @pytest.mark.usefixtures("untouched")
    @pytest.mark.fault(
        injected="somebody replaces the whole entry of a dynamo setting",
        where="while ours holds",
        observed="revert() raises PatchConflictError, which names the setting",
        afterwards="revert(force=True) brings torch's own entry back",
    )
    def test_an_entry_of_a_setting_that_is_not_ours(self) -> None:
        toto_compile_patch.apply()
        entries = torch._dynamo.config._config  # type: ignore[attr-defined]
        entries["recompile_limit"] = copy.copy(entries["recompile_limit"])
        [row] = [row for row in toto_compile_patch.status() if row.name == "dynamo_config"]
        assert row.state == "replaced"
        with pytest.raises(PatchConflictError, match=r"config\.recompile_limit has another entry"):
            toto_compile_patch.revert()
        assert applied() == set(PATCH_NAMES) - {"dynamo_config"}
        toto_compile_patch.revert(force=True)

    @pytest.mark.usefixtures("untouched")
    def test_a_setting_that_torch_no_longer_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as context:
            context.delitem(
                torch._dynamo.config._config,  # type: ignore[attr-defined]
                "capture_scalar_outputs",
            )
            with pytest.raises(UnsupportedTotoError, match="capture_scalar_outputs: this torch"):
                toto_compile_patch.apply()
            toto_compile_patch.apply(strict=False)
            assert applied() == set(PATCH_NAMES) - {"dynamo_config"}
            toto_compile_patch.revert()


def fail_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th replacement of an attribute fail."""
    calls = []
    real = wrapt.apply_patch

    def apply_patch(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise RuntimeError("no")
        return real(*args)

    monkeypatch.setattr(wrapt, "apply_patch", apply_patch)


@pytest.mark.usefixtures("untouched")
@pytest.mark.fault(
    injected="an error",
    where="the fourth attribute that apply() replaces",
    observed="it is raised",
    afterwards="what stood before stands; apply() works",
)
def test_a_failure_half_way_leaves_nothing_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    toto_compile_patch.apply(["compile_method"])
    with monkeypatch.context() as context:
        fail_at(4, context)
        with pytest.raises(RuntimeError, match="no"):
            toto_compile_patch.apply(["kv_cache", "positional_embedding", "dynamo_config"])
    assert applied() == {"compile_method"}
    toto_compile_patch.apply()
    assert applied() == set(PATCH_NAMES)


@pytest.mark.usefixtures("untouched")
def test_the_users_own_settings_come_back() -> None:
    for name, value in (("capture_scalar_outputs", True), ("recompile_limit", 99)):
        before = getattr(torch._dynamo.config, name)
        setattr(torch._dynamo.config, name, value)
        toto_compile_patch.apply()
        assert getattr(torch._dynamo.config, name) == value
        toto_compile_patch.revert()
        assert getattr(torch._dynamo.config, name) == value
        setattr(torch._dynamo.config, name, before)


@pytest.mark.usefixtures("untouched")
@pytest.mark.fault(
    injected="an error",
    where="the fourth attribute that revert(force=True) restores",
    observed="it is raised",
    afterwards="somebody's later patch and setting are as they were; revert() names them",
)
def test_a_failure_half_way_leaves_what_others_did_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their patch over ours, which was to be overridden, and their value of a setting."""
    limit = torch._dynamo.config.recompile_limit
    toto_compile_patch.apply()
    ours = TotoForecaster.generate_mean

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    TotoForecaster.generate_mean = theirs
    torch._dynamo.config.recompile_limit = 123
    with monkeypatch.context() as context:
        fail_at(4, context)
        with pytest.raises(RuntimeError, match="no"):
            toto_compile_patch.revert(force=True)
    assert TotoForecaster.generate_mean is theirs
    assert applied() == set(PATCH_NAMES) - {"fast_decode"}
    assert torch._dynamo.config.recompile_limit == 123
    with pytest.raises(PatchConflictError, match="generate_mean"):
        toto_compile_patch.revert()
    toto_compile_patch.revert(force=True)
    assert torch._dynamo.config.recompile_limit == 123
    torch._dynamo.config.recompile_limit = limit


@pytest.mark.usefixtures("untouched")
def test_settings_hold_in_other_threads_and_leave_them_again() -> None:
    def read() -> list[Any]:
        found: list[Any] = []
        thread = threading.Thread(
            target=lambda: found.extend(getattr(torch._dynamo.config, name) for name in SETTINGS)
        )
        thread.start()
        thread.join()
        return found

    before = read()
    thread = threading.Thread(target=toto_compile_patch.apply)
    thread.start()
    thread.join()
    assert read()[:2] == [True, 64]
    assert torch._dynamo.config.recompile_limit == 64
    toto_compile_patch.revert()
    assert read() == before


@pytest.mark.usefixtures("untouched")
def test_a_forecast_within_another_leaves_the_settings_to_that_one() -> None:
    """A hook of the user's, or what the backend runs, may forecast with a compiled model, too."""
    model, before = small_model().model, torch._dynamo.config.assume_static_by_default
    seen = []
    with dynamo_config._cached_forecast(model):
        with dynamo_config._cached_forecast(model):
            seen.append(torch._dynamo.config.assume_static_by_default)
        seen.append(torch._dynamo.config.assume_static_by_default)
    assert seen == [False, False]
    assert torch._dynamo.config.assume_static_by_default is before is True


def test_status_tells_apart_what_several_carriers_have() -> None:
    rows = [
        api.PatchStatus(name, "applied", ("KVCache",), carrier=carrier)
        for carrier in ("toto", "toto.toto")
        for name in ("kv_cache", "compile_method")
    ]
    lines = str(api.Status(rows)).splitlines()
    assert [line.split()[0] for line in lines if line] == [
        *("toto:", "kv_cache", "compile_method"),
        *("toto.toto:", "kv_cache", "compile_method"),
    ]
    assert lines[3] == ""
    assert str(api.Status(rows[:2])).splitlines() == lines[1:3]


@pytest.fixture
def half_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of Toto's code is loaded that has a forecaster, and no model."""
    for name in ("toto.toto.inference.forecaster", "toto.toto.model.toto"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    methods = {"generate_mean": print, "generate_samples": print}
    kind = type("TotoForecaster", (), {"__module__": "toto.toto.inference.forecaster", **methods})
    monkeypatch.setattr(sys.modules[kind.__module__], "TotoForecaster", kind, raising=False)


@pytest.mark.usefixtures("untouched", "half_a_copy")
@pytest.mark.fault(
    injected="a copy of Toto's code that lacks a class",
    where="loaded after apply()",
    observed="apply() raises UnsupportedTotoError, which names the copy and the class",
    afterwards="what stood stands; status() tells of it, and of the copy",
)
def test_a_copy_that_lacks_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    toto_compile_patch.apply(carriers="toto")
    with pytest.raises(UnsupportedTotoError, match=r"of toto\.toto have no TotoBackbone"):
        toto_compile_patch.apply()
    assert toto_compile_patch.is_applied()
    toto_compile_patch.revert()
    status = toto_compile_patch.status()
    assert {(row.carrier, row.state) for row in status} == {("toto", "not applied")}
    assert "toto.toto" in {carrier.name for carrier in status.carriers if carrier.loaded}


@pytest.mark.usefixtures("untouched")
def test_a_toto_that_cannot_be_imported_is_not_taken_for_another_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Toto 2.0 is here as well, and is not what is in the way."""
    monkeypatch.setattr(upstream, "_codes", {})
    # It is imported anew, and lacks what it imports.
    monkeypatch.delitem(sys.modules, "toto.inference.forecaster")
    monkeypatch.setitem(sys.modules, "einops", None)
    of_toto_2 = ModuleType("toto2.model")
    kind = type("Toto2Model", (), {"__module__": of_toto_2.__name__})
    monkeypatch.setattr(of_toto_2, "Toto2Model", kind, raising=False)
    monkeypatch.setitem(sys.modules, of_toto_2.__name__, of_toto_2)
    with pytest.raises(TotoNotFoundError, match=r"einops.*pip install .*toto-ts") as caught:
        toto_compile_patch.apply()
    assert "Toto 2.0" not in str(caught.value)


@pytest.mark.usefixtures("untouched")
def test_a_revert_while_a_copy_is_imported_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import takes as long as it likes, and another thread may revert meanwhile."""
    load = api._load_carriers

    def slowly(settings: Any) -> tuple[str, ...]:
        load(settings)
        toto_compile_patch.revert()
        return ("toto",)

    toto_compile_patch.apply()
    with monkeypatch.context() as context:
        context.setattr(api, "_load_carriers", slowly)
        api.carrier_imported("toto.model.toto")
    assert applied() == set()
