#!/bin/sh
# Packs the executables that `make` has built into dist/socket-service_VERSION_ARCH.deb.
#
#   units/debian/build.sh VERSION ARCH
set -eu
version=$1 arch=$2
echo "build  dist/socket-service_${version}_$arch.deb"
rm -rf dist/deb
mkdir -p dist/deb
cp -r units/debian dist/deb
ln -s "$PWD" dist/deb/root
# The date of the files is the last commit's, and without git that of package.json, so that two builds
# are the same.
date=${SOURCE_DATE_EPOCH:-$(git -c safe.directory="$PWD" log -1 --format=%ct 2>/dev/null || stat --format=%Y package.json)}
cat > dist/deb/debian/changelog <<CHANGELOG
socket-service ($version) unstable; urgency=medium

  * See the README.

 -- $(sed -n 's/^Maintainer: //p' units/debian/control)  $(date --utc -Rd "@$date")
CHANGELOG
cd dist/deb
# The job server of the make that called this is not ours.
MAKEFLAGS='' DEB_HOST_ARCH=$arch DEB_RULES_REQUIRES_ROOT=no DH_QUIET=1 \
  debian/rules --silent binary >/dev/null
rm -r ../deb
