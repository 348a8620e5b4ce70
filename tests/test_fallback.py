"""What the fast path leaves to upstream, what is said of it, and what ``last_path`` tells."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from toto.inference.forecaster import TotoForecaster
from toto.model.toto import Toto
from toto_cases import PATCH, series, small_model

import toto_compile_patch
from toto_compile_patch import FallbackError, FallbackWarning, notices
from toto_compile_patch.settings import Settings
from toto_compile_patch.tools.models import DEMO

pytestmark = pytest.mark.usefixtures("checked_distributions")

HORIZON = 3 * PATCH


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, nothing has been said yet."""
    monkeypatch.setattr(notices, "_logged", {})
    monkeypatch.setattr(notices, "_warned", {})


@pytest.fixture
def applied() -> Iterator[None]:
    toto_compile_patch.apply("fast_decode")
    yield
    toto_compile_patch.revert()


def new_forecaster(seed: int = 0, **changes: Any) -> TotoForecaster:
    """A forecaster as toto-ts 0.1's quick start makes it: nobody has called ``eval()``."""
    return in_training(TotoForecaster(small_model(seed, **changes).train().model))


def in_training(forecaster: TotoForecaster) -> TotoForecaster:
    """From toto-ts 0.2.0 on, a forecaster calls ``eval()`` when it is made."""
    forecaster.model.train()
    return forecaster


def mean(forecaster: TotoForecaster, horizon: int = HORIZON) -> torch.Tensor:
    torch.manual_seed(0)
    found: torch.Tensor = forecaster.forecast(series(40), horizon).mean
    return found


def samples(forecaster: TotoForecaster) -> torch.Tensor:
    torch.manual_seed(0)
    found: torch.Tensor = forecaster.forecast(
        series(40, 2), HORIZON, num_samples=6, samples_per_batch=3
    ).samples
    return found


def taken() -> tuple[str, str]:
    path = toto_compile_patch.last_path()
    assert path is not None
    return path.taken, path.reason


def said(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    """The warnings of ours that a call gives, with Python's own filters out of the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [one for one in caught if issubclass(one.category, FallbackWarning)]


DROPPING = "the model is in training mode, in which its dropout acts"


def all_dropout(model: Any) -> None:
    """It is as it was made."""


def only_attention(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def only_modules(model: Any) -> None:
    for layer in model.transformer.layers:
        layer.attention.dropout = 0.0


def one_module_in_training(model: Any) -> None:
    model.eval()
    model.transformer.layers[-1].mlp.train()


def one_attention_in_training(model: Any) -> None:
    model.eval()
    model.transformer.layers[1].attention.train()


def no_dropout_left(model: Any) -> None:
    only_attention(model)
    only_modules(model)


def others_in_training(model: Any) -> None:
    """All but what drops: norms, projections, the containers and the head."""
    for layer in model.transformer.layers:
        layer.attention.eval()
        for module in layer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()


class TestTrainingMode:
    def assert_upstreams_numbers(self, forecaster: TotoForecaster) -> None:
        """The fast path's, with all that the mode could change."""
        upstream = mean(forecaster), samples(forecaster)
        with toto_compile_patch.patched("fast_decode", rng="upstream", fallback="error"):
            fast = mean(forecaster), samples(forecaster)
            assert taken() == ("fast", "")
        for ours, theirs in zip(fast, upstream, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)

    @pytest.mark.parametrize("cache", [True, False])
    def test_without_dropout_it_is_fast(self, cache: bool) -> None:
        forecaster = new_forecaster(dropout=0.0)
        assert all(module.training for module in forecaster.model.modules())
        upstream = forecaster.forecast(series(40), HORIZON, use_kv_cache=cache).mean
        with toto_compile_patch.patched("fast_decode", fallback="error"):
            fast = forecaster.forecast(series(40), HORIZON, use_kv_cache=cache).mean
        assert taken() == ("fast", "")
        torch.testing.assert_close(fast, upstream, rtol=1e-5, atol=1e-4)

    def test_samples_without_dropout(self) -> None:
        self.assert_upstreams_numbers(new_forecaster(dropout=0.0))

    @pytest.mark.parametrize("change", [no_dropout_left, others_in_training])
    def test_where_no_dropout_acts_it_is_fast(self, change: Callable[[Any], None]) -> None:
        forecaster = new_forecaster(dropout=0.1)
        change(forecaster.model)
        assert any(module.training for module in forecaster.model.modules())
        self.assert_upstreams_numbers(forecaster)

    @pytest.mark.parametrize(
        "change",
        [
            all_dropout,
            only_attention,
            only_modules,
            one_module_in_training,
            one_attention_in_training,
        ],
    )
    def test_where_dropout_acts_it_is_upstreams(self, change: Callable[[Any], None]) -> None:
        forecaster = new_forecaster(dropout=0.1)
        change(forecaster.model)
        upstream = mean(forecaster)
        toto_compile_patch.apply("fast_decode")
        found: list[torch.Tensor] = []
        (warning,) = said(lambda: found.append(mean(forecaster)))
        assert taken() == ("upstream", DROPPING)
        assert DROPPING in str(warning.message)
        assert "call forecaster.model.eval()" in str(warning.message)
        assert torch.equal(found[0], upstream)
        forecaster.model.eval()
        assert not said(lambda: mean(forecaster))
        assert taken() == ("fast", "")

    def test_attention_without_dropout_modules(self) -> None:
        """What drops may have been taken out of a model, and attention's left in."""
        forecaster = new_forecaster(dropout=0.1)
        for layer in forecaster.model.transformer.layers:
            layer.mlp = layer.mlp[:-1]
        with toto_compile_patch.patched("fast_decode"):
            assert len(said(lambda: mean(forecaster))) == 1
            assert taken() == ("upstream", DROPPING)

    def test_a_model_from_a_checkpoint(self) -> None:
        """As loading leaves it, in toto-ts 0.1 for good."""
        toto = Toto.load_from_checkpoint(str(DEMO))
        assert toto.training
        forecaster = in_training(TotoForecaster(toto.model))
        upstream = mean(forecaster)
        with toto_compile_patch.patched(fallback="error"):
            torch.testing.assert_close(mean(forecaster), upstream, rtol=1e-5, atol=1e-4)
        assert taken() == ("fast", "")

    def test_forecasts_between_steps_of_training(self) -> None:
        forecaster = new_forecaster(dropout=0.0)
        optimizer = torch.optim.SGD(forecaster.model.parameters(), lr=1e-2)
        means = []
        for _ in range(2):
            with toto_compile_patch.patched("fast_decode", fallback="error"):
                means.append(mean(forecaster))
            torch.testing.assert_close(means[-1], mean(forecaster), rtol=1e-5, atol=1e-4)
            optimizer.zero_grad()
            inputs = series(40, 2, 1)
            found = forecaster.model(inputs.series, inputs.padding_mask, inputs.id_mask)
            found.distribution.mean.square().mean().backward()
            optimizer.step()
        assert not torch.equal(*means)


def hooked(forecaster: TotoForecaster) -> Callable[[], Any]:
    return forecaster.model.unembed.register_forward_hook(lambda *_: None).remove


def hooked_globally(forecaster: TotoForecaster) -> Callable[[], Any]:
    return torch.nn.modules.module.register_module_forward_hook(lambda *_: None).remove


def with_a_method(forecaster: TotoForecaster) -> Callable[[], Any]:
    layer = forecaster.model.transformer.layers[0]
    layer.forward = layer.forward
    return lambda: delattr(layer, "forward")


def parametrised(forecaster: TotoForecaster) -> Callable[[], Any]:
    head = forecaster.model.unembed
    torch.nn.utils.parametrizations.weight_norm(head)
    return lambda: torch.nn.utils.parametrize.remove_parametrizations(head, "weight")


def with_its_own_method(forecaster: TotoForecaster) -> Callable[[], Any]:
    forecaster.create_affine_transformed = TotoForecaster.create_affine_transformed
    return lambda: delattr(forecaster, "create_affine_transformed")


class Adapted(torch.nn.Linear):
    """What peft puts in a linear layer's place, as far as its name goes."""

    __module__ = "peft.tuners.lora.layer"


def adapted(forecaster: TotoForecaster) -> Callable[[], Any]:
    head = forecaster.model.unembed
    head.__class__ = Adapted
    return lambda: setattr(head, "__class__", torch.nn.Linear)


def training(forecaster: TotoForecaster) -> Callable[[], Any]:
    in_training(forecaster)
    return forecaster.model.eval


REASONS: dict[str, tuple[Callable[[TotoForecaster], Callable[[], Any]], str, str]] = {
    "hook": (hooked, "unembed has hooks", "remove them"),
    "global hook": (hooked_globally, "global forward hooks", "remove them"),
    "method": (with_a_method, "layers.0 has its own forward", "delete that attribute"),
    "parametrised": (parametrised, "ParametrizedLinear", "torch.nn.utils.parametrize.remove"),
    "adapter": (adapted, "unembed is a peft.tuners.lora.layer.Adapted", "merge the adapter"),
    "forecaster": (with_its_own_method, "this forecaster has its own", "forecast with a plain"),
    "training": (training, DROPPING, "call forecaster.model.eval()"),
}
"""What is in the way, what is said of it, and what to do; each gives the doing."""


@pytest.mark.parametrize("name", REASONS)
def test_each_reason_has_a_cure_that_cures(
    name: str, caplog: pytest.LogCaptureFixture, applied: None
) -> None:
    change, reason, cure = REASONS[name]
    forecaster = TotoForecaster(small_model().model)
    undo = change(forecaster)
    try:
        with caplog.at_level(logging.WARNING, "toto_compile_patch"):
            (warning,) = said(lambda: (mean(forecaster), mean(forecaster)))
        with (
            toto_compile_patch.patched("fast_decode", fallback="error"),
            pytest.raises(FallbackError) as caught,
        ):
            mean(forecaster)
    finally:
        undo()
    (line,) = caplog.records
    for text in (str(warning.message), str(caught.value), line.getMessage()):
        assert reason in text
        assert f"To have it fast: {cure}" in text
    assert "apply(fallback='upstream')" in str(warning.message)
    assert not said(lambda: mean(forecaster))
    assert taken() == ("fast", "")


class TestWhatIsSaid:
    def test_given_explicitly_upstream_only_logs(self, caplog: pytest.LogCaptureFixture) -> None:
        forecaster = new_forecaster()
        upstream = mean(forecaster)
        with (
            caplog.at_level(logging.WARNING, "toto_compile_patch"),
            warnings.catch_warnings(),
            toto_compile_patch.patched("fast_decode", fallback="upstream"),
        ):
            warnings.simplefilter("error")
            assert torch.equal(mean(forecaster), upstream)
        assert [DROPPING in record.getMessage() for record in caplog.records] == [True]
        # And where it is not given any more, there is a warning after all.
        toto_compile_patch.apply("fast_decode")
        assert len(said(lambda: mean(forecaster))) == 1

    @pytest.mark.parametrize("value", ["warn", "upstream", "error"])
    def test_the_environment_says_so_too(self, value: str) -> None:
        environ = {"TOTO_COMPILE_PATCH_FALLBACK": value.upper()}
        assert Settings.resolve(environ=environ).fallback == value

    def test_once_for_each_reason(self, applied: None) -> None:
        forecaster, other = new_forecaster(), TotoForecaster(small_model(seed=1).model)
        hooked(other)

        def call() -> None:
            for _ in range(2):
                mean(forecaster)
                mean(other)
                samples(forecaster)

        reasons = [str(warning.message) for warning in said(call)]
        assert [DROPPING in reason for reason in reasons] == [True, False]
        assert "unembed has hooks" in reasons[1]

    def test_once_for_all_threads(self, applied: None) -> None:
        forecaster = new_forecaster()
        with ThreadPoolExecutor(8) as pool:
            assert len(said(lambda: list(pool.map(mean, [forecaster] * 16)))) == 1

    def test_it_names_the_users_line(self, applied: None) -> None:
        forecaster = new_forecaster()
        line = sys._getframe().f_lineno + 1
        (warning,) = said(lambda: forecaster.forecast(series(40), HORIZON))
        assert (warning.filename, warning.lineno) == (__file__, line)

    def test_it_names_the_users_line_behind_a_library(self, tmp_path: Path, applied: None) -> None:
        predict, _ = library_in(tmp_path)
        forecaster = new_forecaster()
        line = sys._getframe().f_lineno + 1
        (warning,) = said(lambda: predict(forecaster, series(40)))
        assert (warning.filename, warning.lineno) == (__file__, line)

    def test_it_names_the_librarys_where_there_is_no_other(
        self, tmp_path: Path, applied: None
    ) -> None:
        predict, library = library_in(tmp_path)
        forecaster = new_forecaster()
        thread = threading.Thread(target=predict, args=(forecaster, series(40)))

        def call() -> None:
            thread.start()
            thread.join()

        (warning,) = said(call)
        assert (warning.filename, warning.lineno) == (str(library), 1)

    def test_nothing_where_upstream_says_it(self, applied: None) -> None:
        """Upstream's own error is enough, for arguments, types and values."""
        forecaster = TotoForecaster(small_model().model)
        single = TotoForecaster(small_model(num_layers=1, spacewise_every_n_layers=-1).model)
        gap = series(40)
        gap.series[0, 3] = torch.nan
        part = series(41, batch=1)

        def call() -> None:
            with pytest.raises(TypeError):
                forecaster.forecast(series(40), 8.0)
            with pytest.raises(RuntimeError, match="dtype"):
                forecaster.forecast(series(40, dtype=torch.float64), 8)
            with pytest.raises(ValueError, match="constraint") as caught:
                forecaster.forecast(gap, 8)
            assert caught.value.__context__ is None
            with pytest.raises(IndexError):
                single.forecast(series(40), 8)
            with pytest.raises(AssertionError, match="divisible"):
                forecaster.generate_mean(
                    part.series, 8, part.timestamp_seconds, part.time_interval_seconds
                )

        assert not said(call)
        toto_compile_patch.apply("fast_decode", fallback="error")
        assert not said(call)

    def test_after_upstream_has_accepted_what_is_unusual(self) -> None:
        forecaster = TotoForecaster(small_model().model)
        upstream = unusually(forecaster)
        toto_compile_patch.apply("fast_decode")
        found: list[torch.Tensor] = []
        (warning,) = said(lambda: found.append(unusually(forecaster)))
        assert "unusual argument: use_kv_cache" in str(warning.message)
        assert torch.equal(found[0], upstream)
        assert taken() == ("upstream", "unusual argument: use_kv_cache")
        toto_compile_patch.apply("fast_decode", fallback="error")
        with pytest.raises(FallbackError, match="unusual argument: use_kv_cache"):
            unusually(forecaster)

    def test_after_upstream_has_accepted_a_gap(self, applied: None) -> None:
        """It checks nothing where somebody has told torch so, and puts zeros for what is not."""
        forecaster = TotoForecaster(small_model().model)
        gap = series(40)
        gap.series[0, 3] = torch.nan
        torch.distributions.Distribution.set_default_validate_args(False)
        try:
            (warning,) = said(lambda: forecaster.forecast(gap, 8))
        finally:
            torch.distributions.Distribution.set_default_validate_args(__debug__)
        assert "not numbers. To have it fast: fill" in str(warning.message)


def unusually(forecaster: TotoForecaster) -> torch.Tensor:
    """A call that upstream accepts, though its signature says otherwise."""
    found: torch.Tensor = forecaster.forecast(
        series(40), HORIZON, use_kv_cache=torch.tensor(True)
    ).mean
    return found


def library_in(folder: Path) -> tuple[Callable[..., Any], Path]:
    """A library's function that forecasts, and the library's file, of one line."""
    file = folder / "site-packages" / "wrapper.py"
    code = "def predict(forecaster, inputs): return forecaster.forecast(inputs, 8)"
    names: dict[str, Any] = {"__name__": "wrapper"}
    exec(compile(code, str(file), "exec"), names)
    return names["predict"], file


class TestWarningsAsErrors:
    """Nothing is half done: the warning itself is raised, each time, and then all goes on."""

    @pytest.mark.fault(
        injected="warnings are errors",
        where="a forecast that the fast path does not know",
        observed="FallbackWarning is raised",
        afterwards="no random number is drawn; patches stand; the reason is said again",
    )
    def test_before_anything_is_computed(self, applied: None) -> None:
        forecaster = new_forecaster()
        forecaster.model.eval()
        fast = mean(forecaster)
        forecaster.model.train()
        state = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                with pytest.raises(FallbackWarning, match="training mode"):
                    forecaster.forecast(series(40), HORIZON)
                assert taken()[0] == "upstream"
                assert "it raised FallbackWarning" in taken()[1]
        assert torch.equal(torch.get_rng_state(), state)
        assert toto_compile_patch.is_applied()
        # Nobody has been told yet, so that the next forecast says it.
        assert len(said(lambda: mean(forecaster))) == 1
        forecaster.model.eval()
        assert torch.equal(mean(forecaster), fast)

    def test_after_upstream_has_forecast(self, applied: None) -> None:
        forecaster = TotoForecaster(small_model().model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                with pytest.raises(FallbackWarning, match="use_kv_cache"):
                    unusually(forecaster)
        assert "it raised FallbackWarning" in taken()[1]
        assert mean(forecaster).isfinite().all()
        assert taken() == ("fast", "")


def run_script(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A user's script in a process of its own, with Python's own filters."""
    path.write_text(code)
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": places}
    environ.pop("PYTHONWARNINGS", None)
    return subprocess.run([sys.executable, str(path)], env=environ, capture_output=True, text=True)


SCRIPT = """\
from toto.inference.forecaster import TotoForecaster
from toto_cases import series, small_model
import toto_compile_patch

toto_compile_patch.apply()
forecaster = TotoForecaster(small_model().model)
forecaster.model.train()
for _ in range(3):
    forecaster.forecast(series(40), 8)
"""


@pytest.mark.slow
def test_a_script_hears_of_it_at_its_own_line(tmp_path: Path) -> None:
    """And is ended there by the warning itself, once it turns warnings into errors."""
    script = tmp_path / "forecasts.py"
    ran = run_script(
        script,
        SCRIPT
        + "import warnings\n"
        + "warnings.simplefilter('error')\n"
        + "forecaster.model.eval().unembed.register_forward_hook(lambda *_: None)\n"
        + "forecaster.forecast(series(40), 8)\n",
    )
    heard, ended = ran.stderr.split("Traceback (most recent call last):\n")
    lines = heard.splitlines()
    (where,) = [number for number, line in enumerate(lines) if "FallbackWarning" in line]
    assert lines[where].startswith(f"{script}:9: FallbackWarning: ")
    assert "call forecaster.model.eval()" in lines[where]
    assert lines[where + 1].strip() == "forecaster.forecast(series(40), 8)"
    assert ran.returncode == 1
    last = ended.strip().splitlines()[-1]
    assert last.startswith("toto_compile_patch.errors.FallbackWarning: ")
    assert "unembed has hooks" in last


class TestTheLastAttempt:
    """``last_path`` never tells of an earlier forecast."""

    @pytest.mark.fault(
        injected="an input that upstream refuses",
        where="a forecast",
        observed="upstream's own error; last_path() says so",
        afterwards="the next forecast is as ever",
    )
    def test_one_that_raised_within_the_fast_path(self, applied: None) -> None:
        forecaster = TotoForecaster(small_model().model)
        mean(forecaster)
        spanning = series(40, 2)._replace(id_mask=torch.arange(80).reshape(2, 40))
        with pytest.raises(AssertionError, match="span"):
            forecaster.forecast(spanning, HORIZON)
        assert taken() == (
            "fast",
            "it raised AssertionError: Patches cannot span multiple datasets",
        )

    def test_one_that_raised_within_upstreams_code(self, applied: None) -> None:
        forecaster = TotoForecaster(small_model().model)
        mean(forecaster)
        with pytest.raises(RuntimeError, match="dtype"):
            forecaster.forecast(series(40, dtype=torch.float64), HORIZON)
        path, reason = taken()
        assert path == "upstream"
        assert reason.startswith("the series is torch.float64 on cpu, not as the model; it raised")

    def test_one_without_its_arguments(self, applied: None) -> None:
        forecaster = TotoForecaster(small_model().model)
        mean(forecaster)
        with pytest.raises(TypeError, match=r"generate_mean\(\) missing"):
            forecaster.generate_mean(torch.zeros(1, 1, 40))
        assert "it raised TypeError: " in taken()[1]

    def test_one_that_was_refused(self) -> None:
        forecaster = new_forecaster()
        with (
            toto_compile_patch.patched("fast_decode", fallback="error"),
            pytest.raises(FallbackError),
        ):
            mean(forecaster)
        assert taken()[0] == "upstream"
        assert taken()[1].startswith(f"{DROPPING}; it raised FallbackError: ")

    @pytest.mark.fault(
        injected="a signal",
        where="the middle of a long forecast",
        observed="KeyboardInterrupt; last_path() says so",
        afterwards="the next forecast is as ever",
    )
    def test_one_that_was_interrupted(self, applied: None) -> None:
        forecaster = TotoForecaster(small_model().model)
        mean(forecaster)
        meanwhile: list[tuple[str, str]] = []

        def interrupt(*_: Any) -> None:
            meanwhile.append(taken())
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGUSR1, interrupt)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        try:
            timer.start()
            # It would take minutes.
            with pytest.raises(KeyboardInterrupt):
                mean(forecaster, 20_000 * PATCH)
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
        assert meanwhile == [("fast", "it has not ended")]
        assert taken() == ("fast", "it raised KeyboardInterrupt")

    def test_one_within_another(self, applied: None) -> None:
        """A hook of the user's forecasts by another model; the outer forecast ends last."""
        outer, inner = (TotoForecaster(small_model(seed).model) for seed in (0, 1))
        within: list[tuple[str, str]] = []

        def forecast_within(*_: Any) -> None:
            mean(inner, PATCH)
            within.append(taken())

        outer.model.unembed.register_forward_hook(forecast_within)
        with pytest.warns(FallbackWarning, match="unembed has hooks"):
            mean(outer, PATCH)
        assert within == [("fast", "")]
        assert taken() == ("upstream", "unembed has hooks")

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    @pytest.mark.fault(
        injected="a fork",
        where="between forecasts",
        observed="the child forecasts; last_path() begins anew there",
        afterwards="the parent is as it was",
    )
    def test_a_forked_process_knows_of_none(self, tmp_path: Path) -> None:
        code = (
            "import os, torch\n"
            "torch.set_num_threads(1)\n"
            + SCRIPT.replace("forecaster.model.train()\n", "")
            + "if os.fork() == 0:\n"
            "    print('child', toto_compile_patch.last_path(), flush=True)\n"
            "    forecaster.forecast(series(40), 8)\n"
            "    print('child', toto_compile_patch.last_path().taken, flush=True)\n"
            "    os._exit(0)\n"
            "os.wait()\n"
            "print('parent', toto_compile_patch.last_path().taken)\n"
        )
        ran = run_script(tmp_path / "forks.py", code)
        assert ran.stdout.splitlines() == ["child None", "child fast", "parent fast"], ran.stderr


class NoModule:
    """What a user puts around a model: what upstream reads of it, and nothing of torch's."""

    def __init__(self, model: Any) -> None:
        self.patch_embed = model.patch_embed
        self.allocate_kv_cache = model.allocate_kv_cache
        self.eval = model.eval
        self._call = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


def test_a_model_that_is_no_module_is_upstreams_to_forecast(applied: None) -> None:
    model = small_model().model
    toto_compile_patch.revert()
    expected = mean(TotoForecaster(model))
    toto_compile_patch.apply("fast_decode", fallback="upstream")
    assert torch.equal(mean(TotoForecaster(NoModule(model))), expected)
    assert taken() == ("upstream", "the model is a NoModule, not a TotoBackbone")
