"""Fingerprints tell code apart, and nothing else."""

from __future__ import annotations

import functools

import pytest
import wrapt

from toto_compile_patch.fingerprint import fingerprint, fingerprint_source

SOURCE = '''
def scale(self, values: list[int], by: int = 2) -> list[int]:
    """Multiply."""
    total: int = 0  # a comment
    return [f"{v * by}!r" for v in values]
'''


@pytest.mark.parametrize(
    "same",
    [
        SOURCE.replace("# a comment", ""),
        SOURCE.replace('    """Multiply."""\n', ""),
        SOURCE.replace(": list[int]", "").replace("-> list[int]", "").replace(": int", ""),
        SOURCE.replace("v * by", "v*by").replace("\n    return", "\n\n\n    return"),
        "\n".join("        " + line for line in SOURCE.split("\n")),
    ],
)
def test_layout_comments_and_annotations_do_not_count(same: str) -> None:
    assert fingerprint_source(same) == fingerprint_source(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"), [("v * by", "v + by"), ("= 2", "= 3"), ("total", "other"), ("!r", "!s")]
)
def test_code_counts(old: str, new: str) -> None:
    assert fingerprint_source(SOURCE.replace(old, new)) != fingerprint_source(SOURCE)


def test_the_fingerprint_does_not_depend_on_the_python_version() -> None:
    # A constant: the same on every Python that the tests are run with.
    assert fingerprint_source(SOURCE) == "1eacaec1c9bf4826"


def test_a_wrapper_has_no_fingerprint_of_its_own() -> None:
    def plain(x: int) -> int:
        return x

    wrapped = wrapt.FunctionWrapper(plain, lambda call, _, args, kwargs: call(*args, **kwargs))
    assert fingerprint(plain) is not None
    assert fingerprint(wrapped) is None
    assert fingerprint(functools.partial(plain, 1)) is None
    assert fingerprint(functools.wraps(plain)(lambda x: x + 1)) != fingerprint(plain)
