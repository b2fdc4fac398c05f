#!/usr/bin/env bash
# Downloads the packages that a machine with torch and the usual scientific packages lacks for run.sh, in the versions of
# the lock file, into wheels/ beside this file. PYTHON_VERSION is that of the other machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
lock=../../requirements/trainer.txt
rm -rf wheels
for package in ultralytics pydantic pydantic-core annotated-types typing-inspection typing-extensions; do
  version=$(sed -n "s/^$package==\([^ ;]*\).*/\1/p" $lock)
  python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-3.12}" --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --dest wheels "$package==$version"
done
du -sh wheels
