"""``python -m toto_compile_patch COMMAND``."""

from __future__ import annotations

import sys

from toto_compile_patch.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
