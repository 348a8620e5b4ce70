"""Run one client of Toto by upstream's code and patched, compare, and keep the figures.

It wants an environment that holds the client; ``noxfile.py`` makes one for each and calls this:

    python .ci/clients/measure.py gluonts_client --json .ci/clients/results.json

Exit code 1 where the fast path was not taken, where patched is not faster, or where the two do not
say the same.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from sides import Client, ClientError, client_of, measure

from toto_compile_patch.tools.workers import WorkerError, call_apart


def main() -> int:
    arguments = _parser().parse_args()
    client = client_of(arguments.client)
    print(f"{client.name} {importlib.metadata.version(client.distribution)}", flush=True)
    try:
        cases = measure(arguments.client, lambda said: print(f"  {said}", flush=True))
        for check in client.checks:
            print(f"  {check.__name__}", flush=True)
            call_apart(check)
    except (ClientError, WorkerError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        _keep(arguments.json, arguments.client, _record(client, cases))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("client", help="a module of this folder that defines CLIENT")
    parser.add_argument("--json", type=Path, help="keep the figures in this file, beside others")
    return parser


def _record(client: Client, cases: dict[str, dict[str, float]]) -> dict[str, Any]:
    from toto_compile_patch.tools import machine

    return {
        "client": client.name,
        "version": importlib.metadata.version(client.distribution),
        "recipe": client.recipe,
        "pitfalls": client.pitfalls,
        "machine": machine.name(torch.device("cpu")),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "cases": cases,
    }


def _keep(file: Path, name: str, record: dict[str, Any]) -> None:
    """Put a client's record among those of the others."""
    records = json.loads(file.read_text()) if file.exists() else {}
    records[name] = record
    file.write_text(json.dumps(dict(sorted(records.items())), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
