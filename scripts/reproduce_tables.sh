#!/usr/bin/env bash
# Makes all tables of configs/tables/; run it again to resume.
#
#   bash scripts/reproduce_tables.sh                      embedded model, all pictures: hours on 2 cores
#   bash scripts/reproduce_tables.sh images=12            a first look
#   bash scripts/reproduce_tables.sh model=infinity_2b    needs the weights, see docs/evaluation.md
#
# It forwards to `stepvar table`; further words replace values of every table's config.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

use_environment eval
configs=$REPO/configs/tables
[[ $PWD -ef $REPO ]] && configs=configs/tables
for table in text_to_image equal_flops scores restoration ratio_sweep; do
  "$PYTHON" -P -m stepvar_patch.cli table "$configs/$table.yaml" "$@"
done
