#!/usr/bin/env bash
# Did growing pay? Trains the size of a grown checkpoint from scratch, on the FLOPs that all of its stages took together,
# decayed to zero at their end, on the same data, evaluated on the same text.
#   bash runs/control.sh out/stage8/ckpt.pt 3e-4        # into out/control-3e-4; settings for train.py may follow
# Give it at least three learning rates, and compare the best: a control that is not tuned proves nothing. Compare
# against a ladder that is decayed as well, at its own horizon or by train.py --branch=decay.
# NPROC, PYTHON: as in ladder.sh. Stopped, it goes on when it is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: bash runs/control.sh CKPT LEARNING_RATE [--key=value ...]" >&2; exit 2; }
[ -n "${PYTHON:-}" ] || PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 1)')}
ladder=$1 rate=$2
shift 2

# the settings of the ladder's last stage, its sizes, and as many steps as its FLOPs buy; a 1 % warmup
mapfile -t settings < <("$PYTHON" - "$ladder" <<'PY'
import sys
from model import Config, load_checkpoint
from train import DEFAULTS

ckpt = load_checkpoint(sys.argv[1])
own = {"out_dir", "init_from", "resume", "branch", "branch_tokens", "stop_at", "freeze", "learning_rate", "horizon_tokens", "wandb_name"}
given = {k: v for k, v in ckpt["settings"].items() if k in DEFAULTS and k not in own}
given |= {k: v for k, v in ckpt["config"].items() if k in DEFAULTS}
steps = round(ckpt["ledger"]["flops"] / Config(**ckpt["config"]).flops_per_token() / given["tokens_per_step"])
given |= {"max_steps": steps, "warmup_tokens": max(1, steps // 100) * given["tokens_per_step"], "floor": 0.0}
print(*(f"--{k}={v}" for k, v in given.items()), sep="\n")
PY
)
[ ${#settings[@]} -gt 0 ] || exit 1
out=out/control-$rate
resume=$([ -e "$out/ckpt.pt" ] || [ -e "$out/ckpt.prev.pt" ] && echo --resume || true)
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$NPROC" train.py "${settings[@]}" \
  --out_dir="$out" --learning_rate="$rate" $resume "$@"
