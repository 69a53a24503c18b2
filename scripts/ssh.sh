#!/usr/bin/env bash
# One run on the GPUs of several machines that share this folder and the output folder.
#
#   HOSTS="gpu1 gpu2" GPUS=8 bash scripts/ssh.sh configs/infinity_2b.yaml prompts=mine.jsonl
#
# PYTHON names the python of the environment there, e.g. .venv/bin/python; default: python3.
# The processes send each other nothing, so nothing else is needed: each takes the next batch that
# nobody holds. When a machine dies the others draw its share.
set -euo pipefail

: "${HOSTS:?name the machines, e.g. HOSTS=\"gpu1 gpu2\"}"
read -ra hosts <<<"$HOSTS"
gpus=${GPUS:-1} ssh=${SSH:-ssh} python=${PYTHON:-python3}
printf -v words ' %q' "$@"
run=$(date +%s)-$$ rank=0 jobs=() status=0
for host in "${hosts[@]}"; do
  for ((local = 0; local < gpus; local++)); do
    launch="RANK=$rank WORLD_SIZE=$((${#hosts[@]} * gpus)) LOCAL_RANK=$local"
    $ssh "$host" "cd $(printf %q "$PWD") && TORCHELASTIC_RUN_ID=$run $launch \
      $(printf %q "$python") -m stepvar_patch.cli generate$words" &
    jobs+=($!)
    rank=$((rank + 1))
  done
done
for job in "${jobs[@]}"; do wait "$job" || status=$?; done
exit "$status"
