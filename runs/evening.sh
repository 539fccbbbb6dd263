#!/usr/bin/env bash
# One GPU, one evening: grow 117M parameters, 4 layers of 1024, to 168M and 271M by doubling the depth when an
# eighth and a quarter of the FLOPs are spent, as the recipe says (docs/evidence.md). All are decayed at the end.
# Then a sample, the curves, and a stock Llama.
#   python prepare.py --input fineweb-edu --out data/babel  # or any text: 3.5G tokens are read
#   bash runs/evening.sh                                    # settings of train.py may follow: --batch_size=16
#   REHEARSE=1 bash runs/evening.sh                         # config/tiny?.py on data/demo, ten steps each
# To expect on an H100 at 40 % MFU: 3.2 hours, at most 37 GB of its memory (10 with --recompute), 20 GB of
# disk. That is arithmetic (ladder.py plan), not yet a measurement. Stopped, it goes on when started again.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${PYTHON:-}" ] || PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)
stages=(config/evening?.py) last=out/evening2
if [ -n "${REHEARSE:-}" ]; then
  stages=(config/tiny?.py) last=out/tiny2
  set -- --max_steps=10 "$@"
else
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
