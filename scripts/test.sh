#!/usr/bin/env bash
# Runs the tests; sets up its own environment on first use. Further words go to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh -m gpu tests/unit
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

use_environment dev
cd "$REPO"
exec "$PYTHON" -m pytest "$@"
