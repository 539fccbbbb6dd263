#!/usr/bin/env bash
# The tests. Arguments go to pytest: bash runs/test.sh -k resume
. "$(dirname "$0")/setup.sh"
install $PACKAGES pytest==9.2.0 transformers==5.23.0 safetensors==0.8.0 pyarrow==26.0.1 tiktoken==0.14.0 matplotlib==3.11.2
"$PYTHON" -m pytest -q test_grow.py "$@"
