#!/bin/sh
# What `make demo` and `make test` need, with Debian's package for each: this is the only list.
#
#   test/setup.sh demo|test   As root on Debian, installs what is missing, unless SETUP=no.
#                             Otherwise prints the command that installs it.
#   test/setup.sh list        Prints each name, and "there" or "missing".
set -u
cd "$(dirname "$0")/.." || exit
# Debian gives ordinary users no /usr/sbin.
PATH=$PATH:/usr/sbin:/sbin

# Who needs it (the tests need what the demo needs, too), a program or a file, Debian's package, and
# what does as well.
needs() {
  cat <<'LIST'
demo npm                     npm                bun node_modules/.bun-*
demo systemd-socket-activate systemd
test curl                    curl
test nc                      netcat-openbsd
test telnet                  telnet
test man                     man-db
test mandoc                  mandoc
test libsystemd.so.0         libsystemd0        /lib/*/libsystemd.so.0 /usr/lib64/libsystemd.so.0
test systemd-nspawn          systemd-container
test nsenter                 util-linux
test setpriv                 util-linux
test unshare                 util-linux
test mount                   mount
test ip                      iproute2
test ss                      iproute2
test /bin/kill               procps
test pam_systemd.so          libpam-systemd     /lib/*/security/pam_systemd.so /usr/lib64/security/pam_systemd.so
test dbus.socket             dbus-user-session  /usr/lib/systemd/user/dbus.socket
LIST
}

there() {
  for place in "$@"; do
    case $place in
      */*) [ -e "$place" ] && return ;;
      *) command -v "$place" >/dev/null && return ;;
    esac
  done
  return 1
}

# Prints what $1 needs: name, package, and whether it is there.
look() {
  needs | while read -r who name package others; do
    if [ "$1" = demo ] && [ "$who" != demo ]; then continue; fi
    # The patterns of files are to expand.
    # shellcheck disable=SC2086
    if there "$name" $others; then found=there; else found=missing; fi
    echo "$name $package $found"
  done
}

missing() {
  # shellcheck disable=SC2046
  set -- $(look "$1" | sed -n 's/.* \(.*\) missing$/\1/p' | sort -u)
  echo "$*"
}

case ${1-} in
  list) look test | cut -d ' ' -f 1,3; exit ;;
  demo | test) ;;
  *) echo "usage: test/setup.sh demo|test|list" >&2; exit 64 ;;
esac

if [ ! -e /proc/self/stat ]; then
  echo "Bun cannot run without /proc: mount -t proc proc /proc" >&2
  exit 1
fi

install='apt-get install --no-install-recommends'
packages=$(missing "$1")
if [ -n "$packages" ] && [ "${SETUP-}" != no ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "setup  $install $packages (SETUP=no leaves the machine alone)"
  # shellcheck disable=SC2086
  said=$(
    export DEBIAN_FRONTEND=noninteractive
    exec 2>&1 </dev/null
    apt-get update -qq && $install -y -qq $packages
  ) || echo "$said" >&2
  packages=$(missing "$1")
fi
[ -z "$packages" ] || echo "make $1 lacks some programs. As root on Debian: $install $packages"
