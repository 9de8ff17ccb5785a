#!/bin/sh
# Passes the tests that start none of the executables on other versions of Bun: on VERSIONS, or on the
# oldest, which is that of "engines", and the newest. `make test` has the pinned one.
#
#   test/versions.sh PINNED "VERSIONS" [TESTS...]
set -eu
pinned=$1 versions=$2
shift 2
if [ -z "$versions" ]; then
  newest=$("$pinned" info bun version)
  versions="$(sed -n 's/.*"bun": ">=\(.*\)"/\1/p' package.json) $newest"
fi
if [ $# = 0 ]; then
  set -- test/unit test/activate/hot test/activate/wrapped test/activate/register \
    test/package/readme test/package/frameworks
fi
for version in $versions; do
  bun=node_modules/.bun-$version
  if [ "$bun" != "$pinned" ]; then
    MAKEFLAGS='' make --no-print-directory "$bun"
    echo "test   on bun $version"
    "$bun" test "$@"
  fi
done
