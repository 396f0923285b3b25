#!/usr/bin/env bash
# Make .venv and install the package into it, editable, within the pins of constraints.txt.
#
# Usage: tools/setup_venv.sh EXTRAS STAMP, from the root of the checkout; STAMP is touched last. PYTHON and PIP_FLAGS come from make.
#
# pip takes a package whose files were half copied for an installed one, so an environment whose installation did not end is
# made anew: the mark is set before the first package and removed after the last.
set -euo pipefail

extras=$1 stamp=$2 python=${PYTHON:-python3}
mark=.venv/.installing

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "natgrad-apps needs Python 3.10 or newer; '$python' is $("$python" --version 2>&1 || true). Name another: make PYTHON=python3.11 ..." >&2
  exit 1
}
if [ -e .venv ] && { [ -e "$mark" ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
  echo "An earlier installation did not end; starting again."
  rm -rf .venv
fi
[ -e .venv ] || "$python" -m venv .venv
touch "$mark"
echo "Installing natgrad-apps[$extras] into .venv ..."
# PIP_FLAGS holds several words.
# shellcheck disable=SC2086
.venv/bin/python -m pip install --disable-pip-version-check ${PIP_FLAGS:-} -c constraints.txt -e ".[$extras]"
rm "$mark"
touch "$stamp"
