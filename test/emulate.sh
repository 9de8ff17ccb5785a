#!/bin/sh
# Runs a command in which the executables of dist/ are those for the other architecture: the kernel
# starts them under qemu-user, and nobody has to know of it. Both are true only in a namespace of the
# command's own, so that nothing of the machine changes (binfmt_misc has namespaces since Linux 6.7).
set -eu
case $(uname -m) in
  x86_64) arch=arm64 machine=aarch64 elf='\xb7' ;;
  *) arch=amd64 machine=x86_64 elf='\x3e' ;;
esac
case $1 in
  run) shift; exec unshare --map-root-user --mount "$0" inside "$@" ;;
  inside) shift ;;
  # The kernel calls, with an executable.
  *) exec "qemu-$machine-static" -L "/usr/$machine-linux-gnu" "$@" ;;
esac

mount --bind -o ro "dist/$arch" dist
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
# The first 20 bytes of an ELF file, and which of their bits count.
magic="\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00$elf\x00"
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf %s ":qemu-$machine:M::$magic:$mask:$(realpath "$0"):" \
  > /proc/sys/fs/binfmt_misc/register
SLOW=4 exec "$@"
