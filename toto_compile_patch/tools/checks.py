"""What a command refuses before anything long begins."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from toto_compile_patch.settings import Settings
from toto_compile_patch.tools.wording import counted

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_DEVICE = re.compile(r"cpu(:0)?|cuda(:\d+)?")


class UsageError(ValueError):
    """An argument or the environment asks for what cannot be; the message says what to do."""


_EXTRAS = {
    "tools": {"jinja2", "matplotlib", "pandas", "pyarrow", "rich"},
    "ray": {"ray"},
}


def what_is_missing(*modules: str) -> str:
    """Modules that are not installed, and how to install them."""
    tops = [module.partition(".")[0] for module in modules]
    are = "is" if len(tops) == 1 else "are"
    names = " and ".join(filter(None, (", ".join(tops[:-1]), tops[-1])))
    return f"{names} {are} missing: {pip_install_or_extra(*modules)}"


def pip_install_or_extra(*modules: str) -> str:
    """The command that installs some modules, and the extra that holds them all."""
    tops = {module.partition(".")[0] for module in modules}
    held = (name for name, holds in _EXTRAS.items() if holds.issuperset(tops))
    extra = "".join(f" (this package's extra {name})" for name in held)
    return f"{pip_install(*modules)}{extra}"


def pip_install(*modules: str) -> str:
    """The command that installs the distributions of some modules."""
    known = {"toto": "toto-ts", "pkg_resources": "'setuptools<81'", "torch": "torch==2.7.0"}
    tops = [module.partition(".")[0] for module in modules]
    return " ".join(["pip install", *(known.get(top, top.replace("_", "-")) for top in tops)])


def check_installed(*modules: str) -> None:
    """Whether packages are installed, without importing them.

    Raises:
        UsageError: some are not.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise UsageError(what_is_missing(*missing))


def check_environment() -> Settings:
    """What the environment asks ``apply()`` for.

    Raises:
        UsageError: a variable has a value that it cannot have.
    """
    try:
        return Settings.resolve()
    except ValueError as error:
        raise UsageError(error) from None


def is_stdout(path: Path | None) -> bool:
    """Whether figures go to standard output, for which ``-`` stands."""
    return str(path) == "-"


def write_whole(
    path: Path,
    content: str | bytes,
    cure: str = "choose another place, or make room and leave to write there",
) -> None:
    """Write a file, which is then whole or not there; ``-`` stands for standard output.

    Args:
        path: where to.
        content: of the file.
        cure: what to do where it cannot be written.

    Raises:
        UsageError: it cannot be written.
    """
    if isinstance(content, str):
        if is_stdout(path):
            print(content, end="")
            return
        content = content.encode(errors="replace")
    path = path.resolve()
    try:
        if path.exists() and not path.is_file():
            # A pipe or a device, which nothing may take the place of.
            path.write_bytes(content)
            return
        beside = path.with_name(path.name + ".part")
        try:
            beside.write_bytes(content)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror or error}): {cure}") from None


def write_json(path: Path | None, figures: object) -> None:
    """Keep figures, if they are wanted.

    Raises:
        UsageError: the file cannot be written.
    """
    if path is not None:
        write_whole(path, json.dumps(figures, indent=2) + "\n")


def report(path: Path | None, figures: object, show: Callable[[], None]) -> None:
    """Show figures, and keep them if that is wanted.

    Args:
        path: where to; ``-`` stands for standard output, where nothing else is shown then.
        figures: what is kept.
        show: prints what people read.

    Raises:
        UsageError: the file cannot be written.
    """
    if not is_stdout(path):
        show()
    write_json(path, figures)


def positive(text: str) -> int:
    """A whole number of at least 1, as an argument."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """A whole number of at least 0, as an argument."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"give a whole number of at least {least}, not {text!r}")
    return number


def device(text: str) -> str:
    """A device of the kinds that upstream's float64 scaler runs on, as an argument."""
    if not _DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"choose cpu, cuda or cuda:N, not {text!r}")
    return text


def check_batch(samples: int, per_batch: int | None) -> int:
    """Samples per batch: as asked, else all of them.

    Raises:
        UsageError: it does not divide the samples.
    """
    if per_batch and samples % per_batch:
        raise UsageError(
            f"--samples {samples} is not a multiple of --samples-per-batch {per_batch}: "
            "choose one that divides it"
        )
    return per_batch or max(1, samples)


def check_model(model: str) -> str:
    """A checkpoint's directory or a Hugging Face id, as given.

    Raises:
        UsageError: it is neither.
    """
    directory = Path(model)
    if not directory.is_dir():
        if directory.exists() or not _HUB_ID.fullmatch(model):
            raise UsageError(
                f"--model {model} is neither a directory nor a Hugging Face id (owner/name): "
                "correct it"
            )
        return model
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UsageError(f"--model {model} holds no {name}: give the directory of a checkpoint")
    return model


def check_writable(option: str, path: Path) -> None:
    """Whether a file can be written there.

    Raises:
        UsageError: it cannot.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no directory {path.parent}: make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} {path} cannot be written: choose another file")


def check_json(path: Path | None) -> None:
    """Whether figures can be written there; ``-`` stands for standard output.

    Raises:
        UsageError: they cannot.
    """
    if path is not None and not is_stdout(path):
        check_writable("--json", path)


def check_readable(path: str | Path) -> None:
    """Whether there is a file to read; what lies elsewhere than on this machine is not asked for.

    Raises:
        UsageError: there is none.
    """
    if "://" in str(path) or "::" in str(path):
        return
    # As pandas and fsspec expand it.
    place = Path(path).expanduser()
    if not place.exists():
        problem = f"there is no file {path}"
    elif place.is_dir():
        problem = f"{path} is a folder"
    elif not os.access(place, os.R_OK):
        problem = f"{path} may not be read"
    else:
        return
    raise UsageError(f"{problem}: give the path of a CSV or Parquet file")


def choose_device(asked: str | None) -> str:
    """The device to use.

    Args:
        asked: what ``device`` let through; None: cuda if there is one.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    count = torch.cuda.device_count()
    if asked is None:
        return "cuda" if count else "cpu"
    kind, _, index = asked.partition(":")
    if kind == "cuda" and int(index or 0) >= count:
        raise UsageError(
            f"--device {asked}: torch {torch.__version__} sees {counted(count, 'CUDA device')} on "
            "this machine: choose another one, or --device cpu"
        )
    return asked
