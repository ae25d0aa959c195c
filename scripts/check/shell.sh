#!/bin/sh
# The shell scripts: shellcheck, where it is installed, has nothing to warn of; and the script for GPU
# machines, which no test here can run whole, lists its steps.
set -eu
cd "$(dirname "$0")/../.."
if command -v shellcheck >/dev/null 2>&1; then
    shellcheck --severity=warning .ci/run scripts/*.sh scripts/*/*.sh examples/*.sh
else
    echo "shell.sh: shellcheck is not here; left out"
fi
bash scripts/gpu/run.sh --list
