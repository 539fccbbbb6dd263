#!/usr/bin/env bash
# One GPU, one evening: grow 61M parameters to 117M by width, as the ladder begins, then to 168M and 271M by
# depth. All stages read the same number of tokens, so that depth doubles at a quarter and at half of the
# FLOPs. All are decayed at the end. Then a sample, the curves, and a stock Llama.
#   python prepare.py --input fineweb-edu --out data/babel  # or any text: 5.0G tokens are read
#   bash runs/evening.sh                                    # settings of train.py may follow: --batch_size=16
#   REHEARSE=1 bash runs/evening.sh                         # config/tiny?.py on data/demo, ten steps each
# To expect on an H100 at 40 % MFU: 3.2 hours, at most 37 GB of its memory (10 with --recompute), 25 GB of
# disk. That is arithmetic (ladder.py plan), not yet a measurement. Stopped, it goes on when started again.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${PYTHON:-}" ] || PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)
stages=(config/stage0.py config/stage1.py config/evening1.py config/evening2.py) last=out/evening2
if [ -n "${REHEARSE:-}" ]; then
  stages=(config/tiny0.py config/tiny1.py config/tiny2.py) last=out/tiny2
  set -- --max_steps=10 "$@"
else
  set -- --tokens_per_step=262144 --max_steps=4800 "$@"
  no_gpu="evening.sh: no GPU; REHEARSE=1 bash runs/evening.sh runs on a CPU"
  "$PYTHON" -c "import torch; torch.cuda.is_available() or exit('$no_gpu')"
  "$PYTHON" runs/ladder.py plan "${stages[@]}" --gpu h100 --count 1 "$@"
fi
"$PYTHON" runs/ladder.py run "${stages[@]}" --nproc 1 "$@"
"$PYTHON" sample.py --in "$last/ckpt.pt" --prompt "Once upon a time" --tokens 100
"$PYTHON" sample.py --in "$last/ckpt.pt" --check
names=("${stages[@]#config/}")
metrics=("${names[@]/%.py//metrics.jsonl}")
"$PYTHON" runs/picture.py "${metrics[@]/#/out/}" --out "$last/loss.png"
[ -e "$last/hf" ] || "$PYTHON" export.py --in "$last/ckpt.pt" --out "$last/hf" --dtype bfloat16
echo "the evening is done: $last/ckpt.pt, $last/loss.png, $last/hf"
