#!/bin/sh
# Fetches a bun, and makes FILE, in node_modules, a link to it:
#
#   test/bun.sh FILE VERSION                by npm, or by the bun on the PATH
#   test/bun.sh FILE VERSION PINNED [CPU]   by the one that the first form has fetched
#
# CPU is that of another architecture, as the packages of bun call it. That bun need not run here.
set -eu
file=$1 version=$2 pinned=${3-} cpu=${4-}

# The executables are optional dependencies of the package bun, one for each platform, of which a
# package manager installs what may run here.
fetch_pinned() {
  echo "fetch  bun $version"
  rm -rf node_modules/.fetch
  mkdir -p node_modules/.fetch
  (cd node_modules/.fetch && echo '{}' > package.json && install_bun)
  rm -rf node_modules/bun node_modules/@oven
  mv node_modules/.fetch/node_modules/bun node_modules/.fetch/node_modules/@oven node_modules
  rm -rf node_modules/.fetch
  for bun in node_modules/@oven/*/bin/bun; do
    if [ "$("$bun" --version 2>/dev/null)" = "$version" ]; then
      ln -sf "${bun#node_modules/}" "$file"
      return
    fi
  done
  echo "make: no bun $version that was fetched runs on this machine" >&2
  exit 1
}

install_bun() {
  if command -v npm >/dev/null; then
    # Without a network, npm gives up at once. A user's own settings have no effect.
    npm install --prefix . --location=project --no-global --install-strategy=hoisted --include=optional \
      --ignore-scripts --no-package-lock --no-audit --no-fund --no-progress \
      --prefer-offline --loglevel=error --fetch-retries=1 --fetch-retry-mintimeout=1000 \
      --fetch-timeout=20000 "bun@$version" >/dev/null
  elif command -v bun >/dev/null; then
    bun add --linker=hoisted --ignore-scripts --silent "bun@$version"
  else
    echo "make: npm or bun is needed to fetch bun $version: install one of them" >&2
    exit 1
  fi
}

fetch_other() {
  # The pinned one is a link to the package for this platform.
  package=$(readlink "$pinned")
  package=${package%/bin/bun}
  if [ -n "$cpu" ]; then package=@oven/bun-linux-$cpu; fi
  echo "fetch  $package $version"
  mkdir -p "$file.d"
  cd "$file.d"
  echo '{}' > package.json
  "../../$pinned" add --linker=hoisted --ignore-scripts --silent --cpu='*' "$package@$version"
  ln -sf "${file##*/}.d/node_modules/$package/bin/bun" "../${file##*/}"
}

if [ -z "$pinned" ]; then fetch_pinned; else fetch_other; fi
