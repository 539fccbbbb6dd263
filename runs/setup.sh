# Sourced by the scripts beside it. They run in the repository's root, with .venv/bin/python as $PYTHON.
set -eEuo pipefail  # -E: the ERR trap holds in functions, too
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "$(basename "$0"): $*" >&2; exit 1; }
trap 'echo "$(basename "$0"), line $LINENO: failed: $BASH_COMMAND" >&2' ERR
trap 'exit 130' INT  # train.py saves on Ctrl-C and leaves with 0: without this the next command would start
trap 'exit 143' TERM

for python in python3 python3.14 python3.13 python3.12 python3.11 ""; do
  [ -n "$python" ] || die "needs Python 3.11 or later as python3"
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then break; fi
done
PYTHON=$PWD/.venv/bin/python
if [ ! -x "$PYTHON" ]; then
  "$python" -m venv .venv > /dev/null || {
    rm -rf .venv
    die "'$python -m venv' failed: install it (Debian, Ubuntu: apt install python3-venv)"
  }
fi
"$PYTHON" -m pip --version > /dev/null 2>&1 || "$PYTHON" -m ensurepip > /dev/null ||
  die ".venv has no pip: remove it, and run this again"
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets torch without 2 GB of CUDA libraries
install() {  # packages by name, in the versions that uv.lock has
  local packages
  packages=$("$PYTHON" runs/locked.py "$@") || die "uv.lock lacks one of $*"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check $packages || die "pip can't install $packages"
}
download() {  # packages of these versions, as files, into a folder: download FOLDER NAME==VERSION ...
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$@"
}
PACKAGES="torch numpy sentencepiece"

export PYTHONUNBUFFERED=1  # progress also through a pipe
# glibc gives memory as large as the 32,000-row logits back to the kernel, and takes it again page by page, at
# every step. 2 cores train the demo's first model at 3,600 tokens/s so, and at 7,000 where glibc keeps it.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000
# OpenMP's threads spin while they wait for one another, by default for long. tiny2's tokens/s on 2 idle cores
# and on cores that others use too (load 4): by default 3,000 and 200; spinning briefly, as here, 2,900 and
# 900; not at all (OMP_WAIT_POLICY=PASSIVE) 2,300 and 1,000.
export GOMP_SPINCOUNT=10000
