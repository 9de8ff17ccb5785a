#!/bin/sh
# Puts the executables, the manual pages and the units in their places, or removes exactly these.
#
#   units/install.sh install|uninstall system|user
#
# `make install` and its like call it, with the places in BINDIR, UNITDIR and MANDIR, with DESTDIR, which
# stands before each of them, and with the folder of the executables in OUT.
set -eu
action=$1 scope=$2
sockets=$(cd units && echo *.socket)

# Sockets come last: a unit is only installed when what it starts is there. The drop-ins are for the
# system installation only: a user manager can apply little of them.
if [ "$scope" = system ]; then
  systemctl=systemctl
  set -- units/*.d/*.conf units/*.service units/*.socket
else
  systemctl='systemctl --user'
  set -- units/*.service units/*.socket
fi

# Calls a command with the source and the target of each file: executables and pages first, because no unit
# may name one that is not installed yet.
each() {
  command=$1
  shift
  for socket in $sockets; do
    "$command" "$OUT/${socket%.socket}" "$DESTDIR$BINDIR/${socket%.socket}"
  done
  for page in units/man/*; do "$command" "$page" "$DESTDIR$MANDIR/man${page##*.}/${page##*/}"; done
  for unit in "$@"; do "$command" "$unit" "$DESTDIR$UNITDIR/${unit#units/}"; done
}

# A file takes the old one's place in one rename: a running executable can be replaced, and a start at
# that moment finds the old or the new one, whole.
put() {
  new=$2.new
  echo "install $2"
  mkdir -p "${2%/*}"
  rm -f "$new"
  case $1 in
    units/*)
      sed "s|@BINDIR@|$BINDIR|" "$1" > "$new"
      chmod 644 "$new"
      ;;
    *)
      cat "$1" > "$new"
      chmod 755 "$new"
      ;;
  esac
  case $2 in
    *.socket) if [ -e "$2" ] && ! cmp -s "$new" "$2"; then changed="$changed ${2##*/}"; fi ;;
  esac
  mv -fT "$new" "$2"
}

# Stops at the first failure. At the end it says what is left to do, also for the sockets that it has
# changed.
install() {
  case $BINDIR in
    '' | [!/]* | *[!A-Za-z0-9/._+:,@~-]*)
      echo "BINDIR must be an absolute path of letters, digits and /._+:,@~-, not \"$BINDIR\"" >&2
      exit 1
      ;;
  esac
  case $UNITDIR:$MANDIR in
    /*:/*) ;;
    *)
      echo "UNITDIR and MANDIR must be absolute paths, not \"$UNITDIR\" and \"$MANDIR\"" >&2
      exit 1
      ;;
  esac
  case $scope:$BINDIR/ in
    system:/home/* | system:/root/* | system:/run/user/* | system:/tmp/* | system:/var/tmp/*)
      echo "BINDIR must not be a directory that the units hide from the services, such as \"$BINDIR\"" >&2
      exit 1
      ;;
  esac
  umask 022
  changed='' new='' upgrade=''
  if [ -e "$DESTDIR$BINDIR/socket-service" ]; then upgrade=yes; fi
  trap 'rm -f "$new"' EXIT
  trap 'exit 1' HUP INT TERM
  each put "$@"
  echo "Next, on the machine where the services run: $systemctl daemon-reload"
  # The stop of its socket stops the service, too.
  case $changed in *socket-service.socket*) upgrade='' ;; esac
  if [ -n "$upgrade" ]; then echo "To start the new executable: $systemctl try-restart socket-service.service"; fi
  if [ -n "$changed" ]; then
    echo "To apply the changed socket units: $systemctl stop$changed; $systemctl start$changed"
  fi
  echo "To open the ports: $systemctl enable --now $sockets"
}

# Also what an interrupted install has left.
remove() { rm -fv "$2" "$2.new" || status=1; }

# A socket whose unit is gone goes on to listen, and systemctl cannot disable it.
uninstall() {
  if [ -z "$DESTDIR" ]; then
    for query in is-active is-enabled; do
      # shellcheck disable=SC2086 # Several words.
      if said=$($systemctl $query $sockets 2>&1) && [ "${said#Running in chroot}" = "$said" ]; then
        echo "First: $systemctl disable --now $sockets" >&2
        exit 1
      fi
      case $said in
        *'Failed to connect'*)
          # In a chroot or a container without systemd, nothing runs.
          if [ -d /run/systemd/system ]; then
            echo "$systemctl cannot tell whether the sockets are in use: log in as the user they are for" >&2
            exit 1
          fi
          ;;
      esac
    done
  fi
  status=0
  each remove "$@"
  if [ "$scope" = system ]; then
    for folder in units/*.d; do rmdir "$DESTDIR$UNITDIR/${folder#units/}" 2>/dev/null || :; done
  fi
  [ $status = 0 ] || exit $status
  echo "Next, on the machine where the services ran: $systemctl daemon-reload"
}

"$action" "$@"
