#!/bin/sh
# Becomes the service with at most $1 open descriptors.
# shellcheck disable=SC3045 # Debian's sh has it.
ulimit -n "$1"
exec "$(dirname "$0")/../../dist/socket-service"
