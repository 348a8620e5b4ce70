"""``ab``: the user's series forecast by upstream's code and patched, side by side."""

from toto_compile_patch.tools.ab.command import run

__all__ = ["run"]
