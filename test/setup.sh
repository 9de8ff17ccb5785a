#!/bin/sh
# What `make demo`, `test`, `check`, `deb` and `debian-root` need, with Debian's package for each: this is
# the only list.
#
#   test/setup.sh TARGET... [ARCH]   As root on Debian, installs what is missing, unless SETUP=no. Otherwise
#                                    prints the command that installs it, and fails if deb or debian-root
#                                    cannot do without. ARCH, arm64 or amd64, is another architecture.
#   test/setup.sh list     Prints each name of the tests, and "there" or "missing".
#   test/setup.sh inside   Prints the packages that a root has, with commas.
set -u
cd "$(dirname "$0")/.." || exit
# Debian gives ordinary users no /usr/sbin.
PATH=$PATH:/usr/sbin:/sbin

# Who needs it (`inside` is what the tests run in a root of `make debian-root`), a program or a file,
# Debian's package, and what does as well.
needs() {
  cat <<'LIST'
demo,test,check       npm                     npm                bun node_modules/.bun-*
demo,test,inside      systemd-socket-activate systemd
test,inside           curl                    curl
test,inside           nc                      netcat-openbsd
test,inside           telnet                  telnet
test,inside           man                     man-db
test,inside           mandoc                  mandoc
test                  libsystemd.so.0         libsystemd0        /lib/*/libsystemd.so.0 /usr/lib64/libsystemd.so.0
test                  systemd-nspawn          systemd-container
test                  nsenter                 util-linux
test,inside           setpriv                 util-linux
test,deb              dh                      debhelper
test,deb              dpkg-parsechangelog     dpkg-dev
test,deb              xz                      xz-utils
test                  lintian                 lintian
test,inside           nginx                   nginx-light
check,inside          shellcheck              shellcheck
debian-root           debootstrap             debootstrap
test,debian-root,inside unshare                 util-linux
test,inside           mount                   mount
test,inside           ip                      iproute2
test,inside           ss                      iproute2
test,inside           /bin/kill               procps
test,inside           pam_systemd.so          libpam-systemd     /lib/*/security/pam_systemd.so /usr/lib64/security/pam_systemd.so
test,inside           dbus.socket             dbus-user-session  /usr/lib/systemd/user/dbus.socket
inside                dbus-daemon             dbus
inside                make                    make
arm64                 qemu-aarch64-static     qemu-user-static
arm64                 ld-linux-aarch64.so.1   libc6-arm64-cross  /usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1
amd64                 qemu-x86_64-static      qemu-user-static
amd64                 ld-linux-x86-64.so.2    libc6-amd64-cross  /usr/x86_64-linux-gnu/lib/ld-linux-x86-64.so.2
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

# Prints what these need: name, package, and whether it is there.
look() {
  needs | while read -r who name package others; do
    wanted=
    for one in "$@"; do case ,$who, in *,"$one",*) wanted=yes ;; esac; done
    [ -n "$wanted" ] || continue
    # The patterns of files are to expand.
    # shellcheck disable=SC2086
    if there "$name" $others; then found=there; else found=missing; fi
    echo "$name $package $found"
  done
}

missing() {
  # shellcheck disable=SC2046
  set -- $(look "$@" | sed -n 's/.* \(.*\) missing$/\1/p' | sort -u)
  echo "$*"
}

case ${1-} in
  list) look test | cut -d ' ' -f 1,3; exit ;;
  inside) look inside | cut -d ' ' -f 2 | sort -u | paste -sd ,; exit ;;
  demo | test | check | deb | debian-root) ;;
  *) echo "usage: test/setup.sh demo|test|check|deb|debian-root [ARCH]|list|inside" >&2; exit 64 ;;
esac

if [ ! -e /proc/self/stat ]; then
  echo "Bun cannot run without /proc: mount -t proc proc /proc" >&2
  exit 1
fi

install='apt-get install --no-install-recommends'
packages=$(missing "$@")
if [ -n "$packages" ] && [ "${SETUP-}" != no ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "setup  $install $packages (SETUP=no leaves the machine alone)"
  # shellcheck disable=SC2086
  said=$(
    export DEBIAN_FRONTEND=noninteractive
    exec 2>&1 </dev/null
    apt-get update -qq && $install -y -qq $packages
  ) || echo "$said" >&2
  packages=$(missing "$@")
fi
[ -z "$packages" ] || echo "make $1 lacks some programs. As root on Debian: $install $packages"
# The other two do what they can, and say what they have skipped.
for mode in "$@"; do
  case $mode in deb | debian-root) [ -z "$(missing "$mode")" ] || exit 1 ;; esac
done
