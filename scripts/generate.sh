#!/usr/bin/env bash
# Draws the prompts of a file with the embedded model; sets up its own environment on first use.
#
#   bash scripts/generate.sh configs/prompts/demo.txt
#   bash scripts/generate.sh mine.csv output=outputs/mine seed=7 preview=true
#
# It forwards to `stepvar generate configs/generate.yaml`, whose every value can be replaced.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [[ $# -lt 1 || $1 == -* ]]; then
  say "usage: bash scripts/generate.sh PROMPTS [key=value ...]"
  exit 2
fi
use_environment
config=$REPO/configs/generate.yaml
[[ $PWD -ef $REPO ]] && config=configs/generate.yaml
exec "$PYTHON" -P -m stepvar_patch.cli generate "$config" "prompts=$1" "${@:2}"
