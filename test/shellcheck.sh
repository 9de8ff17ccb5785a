#!/bin/sh
# Has shellcheck read all shell scripts, by their first lines.
set -eu
if ! command -v shellcheck >/dev/null; then
  printf 'Skipped:\n  the check of the shell scripts: shellcheck is missing\n'
  exit
fi
find .ci test units -type f -exec sed -sn '1{/^#!.*sh$/F}' {} + | tr '\n' '\0' | xargs -0 shellcheck
