#!/usr/bin/env bash
# Runs the tests; sets up its own environment on first use. Further words go to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh -m gpu tests/unit
#   TEST_PROCESSES=0 bash scripts/test.sh     one process; default: one for every core, 0 with -m
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

use_environment dev
cd "$REPO"
case " $* " in *" -m "*) processes=0 ;; *) processes=auto ;; esac
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PYTHON" -m pytest -n "${TEST_PROCESSES:-$processes}" "$@"
