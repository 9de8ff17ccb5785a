#!/bin/sh
# Becomes the service with at most $1 open descriptors.
ulimit -n "$1"
exec "$(dirname "$0")/../../dist/socket-service"
