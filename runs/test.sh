#!/usr/bin/env bash
# The tests, in a process a core, of one thread each. Arguments go to pytest: bash runs/test.sh -k resume
. "$(dirname "$0")/setup.sh"
install $PACKAGES pytest transformers safetensors pyarrow tiktoken matplotlib pytest-xdist gguf
export OMP_NUM_THREADS=1
export CUDA_VISIBLE_DEVICES=  # on a GPU two runs of one seed differ in bits, and tests compare bits
"$PYTHON" -m pytest -q -n auto test_grow.py tests "$@"
