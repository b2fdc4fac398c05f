#!/usr/bin/env bash
# Runs the checks of the trainer on this machine's GPU; README.md beside this file explains them.
#   tests/gpu/run.sh               less than eight minutes on an H100 with 16 cores
#   tests/gpu/run.sh --only ranks  a part of it
#   tests/gpu/run.sh --cpu         without a GPU, with everything tiny: tests the checks themselves
# It uses the checkout's environment (`make env`), or else python3 with the packages of wheels.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" > /dev/null || python=python3
export PYTHONPATH="$root:$root/operator:$root/trainer:$root/tests"
export PYTHONUNBUFFERED=1 YOLO_OFFLINE=1 YOLO_AUTOINSTALL=0
if ! "$python" -c 'import pydantic, ultralytics' 2> /dev/null; then
  packages=$(mktemp -d)
  trap 'rm -rf "$packages"' EXIT
  # Beside the packages that the machine has, such as torch, and not in their place.
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$packages" "$here"/wheels/*.whl
  export PYTHONPATH="$packages:$PYTHONPATH"
fi
"$python" -m gpu "$@"
