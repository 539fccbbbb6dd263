#!/usr/bin/env bash
# The ladder: trains a stage, grows it as the next stage's config says (_grow), trains that. Stop it at any time, and
# start it again: it goes on where it was.
#   bash runs/ladder.sh                                                  # config/stage0.py .. stage8.py
#   STAGES="config/tiny0.py config/tiny1.py" bash runs/ladder.sh --data=data/mine    # other stages; settings for all
# NPROC: processes; default: one a GPU. PYTHON: default: .venv/bin/python, else python.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${PYTHON:-}" ] || PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 1)')}
read -ra STAGES <<< "${STAGES:-$(echo config/stage?.py)}"

# SIGTERM and Ctrl-C: the training is told to save, and waited for
stop() { trap - INT TERM; kill -TERM "${child:-}" 2> /dev/null && wait "$child" || true; echo "ladder.sh: stopped; run it again to go on"; exit 1; }
trap stop INT TERM
train() { "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$NPROC" train.py "$@" & child=$!; wait "$child"; }
value() { "$PYTHON" -c 'import runpy, sys; print(runpy.run_path(sys.argv[1]).get(sys.argv[2], ""))' "$1" "$2"; }
finished() {  # whether the checkpoint has read all of its stage: train.py leaves with 0 also where it was stopped
  "$PYTHON" -c 'import sys; from checkpoint import load_checkpoint as load; c = load(sys.argv[1], whole=False, verify=False)
sys.exit(c["step"] < c["settings"]["max_steps"])' "$1"
}

for i in "${!STAGES[@]}"; do
  config=${STAGES[i]} next=${STAGES[i + 1]:-}
  out=$(value "$config" out_dir)
  [ ! -e "$out/grown.pt" ] || continue  # grow.py writes it whole or not at all
  if [ ! -e "$out/ckpt.pt" ] || ! finished "$out/ckpt.pt"; then
    resume=$([ -e "$out/ckpt.pt" ] || [ -e "$out/ckpt.prev.pt" ] && echo --resume || true)
    echo "=== $config $resume"
    train "$config" $resume "$@"
    finished "$out/ckpt.pt" || { echo "ladder.sh: stopped before the end of $config; run it again to go on"; exit 1; }
  fi
  [ -z "$next" ] || "$PYTHON" grow.py --in "$out/ckpt.pt" $(value "$next" _grow)
done
echo "the ladder is done: $out/ckpt.pt"
