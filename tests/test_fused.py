"""Kernels of our own: what they compute, that they compile, and where there are none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from toto_compile_patch.decode import fused, linear

PROGRAMS = Path(__file__).parent


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAMS / program)], capture_output=True, text=True
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter does not know this numpy")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_interpreted_they_compute_their_formulas() -> None:
    pytest.importorskip("triton")
    assert "attentions" in run("kernel_checks.py")


@pytest.mark.slow
def test_they_compile_for_gpus_of_all_generations() -> None:
    pytest.importorskip("triton")
    assert run("compiled_kernels.py").split() == ["70", "75", "80", "86", "90", "100"]


class TestWhereThereAreNone:
    @pytest.fixture(autouse=True)
    def unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fused, "_why_not", {})
        monkeypatch.setattr(fused, "_given_up", set())

    def reason(self, caplog: pytest.LogCaptureFixture) -> str:
        with caplog.at_level("INFO", "toto_compile_patch"):
            assert not fused.are_there(0)
            assert not fused.are_there(0)
        (record,) = caplog.records
        return record.getMessage()

    def test_triton_is_missing(self, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
        monkeypatch.setitem(sys.modules, "triton", None)
        assert self.reason(caplog).endswith("triton is not installed")

    def test_it_cannot_compile(self, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU, for which it can")
        assert "compiling them failed (" in self.reason(caplog)

    @pytest.mark.parametrize(
        ("capability", "version", "given_up"),
        [
            ((12, 0), "3.3.0", fused.OF_BLOCKS),
            ((12, 0), "3.3.1", ()),
            ((12, 0), "3.10.0", ()),
            ((9, 0), "3.3.0", ()),
        ],
    )
    def test_triton_is_too_old_for_some(
        self,
        capability: tuple[int, int],
        version: str,
        given_up: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Not found out by compiling them, which would print pages."""
        triton = pytest.importorskip("triton")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(triton, "__version__", version)
        fused.are_there(3)
        assert {(3, name) for name in given_up} == fused._given_up

    def test_one_cannot_be_launched(self, caplog: pytest.LogCaptureFixture) -> None:
        """As on a GPU that is too small for it; here, with a tensor that is on none."""
        pytest.importorskip("triton")
        rows = torch.randn(2, 8)
        with caplog.at_level("INFO", "toto_compile_patch"):
            found = fused._by_kernel("gated", linear.gated_unit)(rows)
        assert torch.equal(found, linear.gated_unit(rows))
        (record,) = caplog.records
        assert record.getMessage().startswith("torch's operators compute gated on GPU None: ")
        assert fused._given_up == {(None, "gated")}

    def test_memory_that_is_missing_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu_kernels = pytest.importorskip("toto_compile_patch.decode.gpu_kernels")

        def without_memory(up: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(gpu_kernels, "gated", without_memory)
        with pytest.raises(torch.OutOfMemoryError):
            fused._by_kernel("gated", linear.gated_unit)(torch.ones(2, 8))
        assert not fused._given_up

    def test_a_limit_of_time_is_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Triton wraps what is raised while it compiles."""
        gpu_kernels = pytest.importorskip("toto_compile_patch.decode.gpu_kernels")

        def out_of_time(*_: Any) -> None:
            raise TimeoutError

        def compiled(up: torch.Tensor) -> torch.Tensor:
            try:
                signal.raise_signal(signal.SIGUSR1)
            except TimeoutError:
                raise ValueError("it cannot be compiled") from None
            return up

        monkeypatch.setattr(gpu_kernels, "gated", compiled)
        before = signal.signal(signal.SIGUSR1, out_of_time)
        try:
            with pytest.raises(ValueError, match="cannot be compiled"):
                fused._by_kernel("gated", linear.gated_unit)(torch.ones(2, 8))
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert not fused._given_up

    def test_in_a_capture_that_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("triton")
        monkeypatch.setattr(fused, "capturing", lambda: True)
        with pytest.raises(Exception, match=r"Triton|driver|NVIDIA"):
            fused._by_kernel("gated", linear.gated_unit)(torch.ones(2, 8))
        assert not fused._given_up

    def test_a_capture_asks_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fused, "capturing", lambda: True)
        assert not fused.are_there(0)
        assert not fused._why_not


def test_operators_are_defined_again_after_an_interrupt() -> None:
    schema = "halved_for_a_test(Tensor rows) -> Tensor"
    rows = torch.ones(2)
    try:
        for factor in (0.5, 0.25):
            halved = fused.operator(schema, lambda rows, by=factor: rows * by)
            assert torch.equal(halved(rows), rows * factor)
    finally:
        fused._libraries.pop("halved_for_a_test")._destroy()


def test_only_float32_on_a_gpu_is_served() -> None:
    assert not fused.serves(torch.ones(2))
