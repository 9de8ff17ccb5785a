#!/bin/sh
# Makes a Debian in which the tests can boot a systemd.
#
#   test/debian-root.sh SUITE DIRECTORY
set -eu
suite=$1 directory=$2
echo "make   $directory"
mkdir -p dist/roots/cache
rm -rf --one-file-system "$directory" "$directory.new"
# debootstrap's mounts are in a namespace of their own: an interrupted one leaves none behind.
unshare --mount --propagation=private debootstrap --variant=minbase \
  --include="$(test/setup.sh inside)" --cache-dir="$PWD/dist/roots/cache" \
  "$suite" "$directory.new" >/dev/null
mv "$directory.new" "$directory"
touch "$directory"
