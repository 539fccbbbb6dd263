#!/usr/bin/env bash
# The tests. Arguments go to pytest: bash runs/test.sh -k resume
. "$(dirname "$0")/setup.sh"
install $PACKAGES pytest transformers safetensors pyarrow tiktoken matplotlib
"$PYTHON" -m pytest -q test_grow.py tests "$@"
