"""Arguments, environment and defaults: neither toto nor torch is needed for any of it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from toto_compile_patch import apply, patched
from toto_compile_patch.settings import PATCH_NAMES, SETTINGS, Settings


def test_importing_the_package_imports_neither_torch_nor_toto() -> None:
    code = (
        "import sys, toto_compile_patch as p\n"
        "p.is_applied(), p.revert()\n"
        "print([m for m in ('torch', 'toto', 'wrapt', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_defaults() -> None:
    settings = Settings.resolve(environ={})
    assert settings == Settings(
        enabled=True,
        patches=PATCH_NAMES,
        strict=True,
        mode="reduce-overhead",
        rng="fast",
        fallback="warn",
        runtime="auto",
        precision="model",
        log=None,
    )


def test_every_setting_is_a_keyword() -> None:
    arguments = inspect.signature(apply).parameters
    assert list(arguments) == ["patches", "carriers", *(setting.name for setting in SETTINGS)]
    assert all(argument.default is None for argument in arguments.values())
    assert inspect.signature(patched).parameters == arguments


def test_what_is_no_setting() -> None:
    with pytest.raises(TypeError, match="speed"):
        Settings.resolve(environ={}, speed="high")
    with pytest.raises(TypeError, match="speed"):
        patched(speed="high")  # type: ignore[call-arg]


@pytest.mark.parametrize("text", ["1", "true", "YES", " on ", ""])
def test_toggle_on(text: str) -> None:
    settings = Settings.resolve(environ={"TOTO_COMPILE_PATCH": text})
    assert settings.enabled
    assert settings.patches == PATCH_NAMES


@pytest.mark.parametrize("text", ["0", "False", "NO", "off"])
def test_toggle_off_wins_over_arguments(text: str) -> None:
    assert not Settings.resolve("kv_cache", environ={"TOTO_COMPILE_PATCH": text}).enabled


def test_toggle_names_patches_in_any_case_and_order() -> None:
    environ = {"TOTO_COMPILE_PATCH": "Dynamo_Config, kv_cache"}
    assert Settings.resolve(environ=environ).patches == ("kv_cache", "dynamo_config")
    assert Settings.resolve(["compile_method"], environ=environ).patches == ("compile_method",)


@pytest.mark.parametrize("variable", ["TOTO_COMPILE_PATCH", "TOTO_COMPILE_PATCH_MODE"])
def test_nonsense_in_the_environment_names_variable_and_choices(variable: str) -> None:
    with pytest.raises(ValueError, match=variable) as caught:
        Settings.resolve(environ={variable: "maybe"})
    assert "kv_cache" in str(caught.value) or "reduce-overhead" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TOTO_COMPILE_PATCH_STRICT", "2"),
        ("TOTO_COMPILE_PATCH_LOG", "loud"),
        ("TOTO_COMPILE_PATCH_RUNTIME", "graph"),
        ("TOTO_COMPILE_PATCH_PRECISION", "int8"),
    ],
)
def test_other_nonsense_in_the_environment(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=variable):
        Settings.resolve(environ={variable: text})


def test_arguments_win_over_the_environment() -> None:
    environ = {
        "TOTO_COMPILE_PATCH_STRICT": "0",
        "TOTO_COMPILE_PATCH_MODE": "default",
        "TOTO_COMPILE_PATCH_LOG": "DEBUG",
        "TOTO_COMPILE_PATCH_RUNTIME": "Compile+CudaGraph",
        "TOTO_COMPILE_PATCH_PRECISION": "bf16",
    }
    read = Settings.resolve(environ=environ)
    assert (read.strict, read.mode, read.log) == (False, "default", "debug")
    assert (read.runtime, read.precision) == ("compile+cudagraph", "bf16")
    told = Settings.resolve(strict=True, mode="max-autotune", log="info", environ=environ)
    assert (told.strict, told.mode, told.log) == (True, "max-autotune", "info")


@pytest.mark.parametrize("keyword", ["rng", "fallback", "runtime", "precision", "mode"])
def test_nonsense_in_an_argument_names_it_and_the_choices(keyword: str) -> None:
    with pytest.raises(ValueError, match=f"{keyword}='maybe': choose one of"):
        Settings.resolve(environ={}, **{keyword: "maybe"})


@pytest.mark.parametrize("patches", [["kv_cash"], "kv_cache,kv_cash", [""]])
def test_unknown_patch_lists_the_known_ones(patches: object) -> None:
    with pytest.raises(ValueError, match="positional_embedding"):
        Settings.resolve(patches, environ={})  # type: ignore[arg-type]


@pytest.mark.parametrize("patches", [3, [3], [None]])
def test_patches_of_the_wrong_type(patches: object) -> None:
    with pytest.raises(TypeError, match="patches"):
        Settings.resolve(patches, environ={})  # type: ignore[arg-type]


def test_strict_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="strict"):
        Settings.resolve(strict="no", environ={})  # type: ignore[arg-type]
