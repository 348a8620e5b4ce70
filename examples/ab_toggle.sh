#!/usr/bin/env bash
# Run a script twice, unchanged: upstream's code, then patched. The script calls apply().
#
#   bash examples/ab_toggle.sh                      the quick start, made small
#   bash examples/ab_toggle.sh SCRIPT [ARGUMENT...] a script of your own
#
# PYTHON names the interpreter (default: python).
set -euo pipefail

if [ $# -eq 0 ]; then
  set -- "$(dirname "$0")/quickstart.py" --context 512 --horizon 96 --samples 16
fi

for toggle in 0 1; do
  echo "TOTO_COMPILE_PATCH=$toggle"
  started=$SECONDS
  TOTO_COMPILE_PATCH=$toggle "${PYTHON:-python}" "$@"
  echo "whole run: $((SECONDS - started)) s"
done
