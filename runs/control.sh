#!/usr/bin/env bash
# Did growing pay? Trains the size of a grown checkpoint from scratch, on the FLOPs that all of its stages took together,
# decayed to zero at their end, on the same data, evaluated on the same text.
#   bash runs/control.sh out/stage8/ckpt.pt 3e-4        # into out/control-3e-4; settings for train.py may follow
# Give it at least three learning rates, and compare the best: a control that is not tuned proves nothing. Compare
# against a ladder that is decayed as well, at its own horizon or by train.py --branch=decay.
# NPROC, PYTHON: as in ladder.sh; OUT: the folder. Stopped, it goes on when it is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: bash runs/control.sh CKPT LEARNING_RATE [--key=value ...]" >&2; exit 2; }
[ -n "${PYTHON:-}" ] || PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 1)')}
ladder=$1 rate=$2
shift 2

# the settings of the ladder's last stage, its sizes, and as many steps as the ladder's FLOPs buy
settings=$("$PYTHON" - "$ladder" <<'PY'
import sys
from checkpoint import load_checkpoint
from model import Config
from train import DEFAULTS

try:
    ckpt = load_checkpoint(sys.argv[1], whole=False, verify=False)
except ValueError as e:
    sys.exit(f"control.sh: {e}")
own = {"out_dir", "init_from", "resume", "branch", "branch_tokens", "stop_at", "freeze", "learning_rate", "horizon_tokens", "wandb_name"}
given = {k: v for k, v in (ckpt["settings"] | ckpt["config"]).items() if k in DEFAULTS and k not in own}
steps = round(ckpt["ledger"]["flops"] / Config(**ckpt["config"]).flops_per_token() / given["tokens_per_step"])
print(*(f"--{k}={v}" for k, v in (given | {"max_steps": steps, "floor": 0.0}).items() if v != ""), sep="\n")
PY
)
IFS=$'\n' read -r -d '' -a settings <<< "$settings" || true  # macOS's bash has no mapfile
out=${OUT:-out/control-$rate}
resume=$([ -e "$out/ckpt.pt" ] || [ -e "$out/ckpt.prev.pt" ] && echo --resume || true)
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$NPROC" train.py "${settings[@]}" \
  --out_dir="$out" --learning_rate="$rate" $resume "$@"
