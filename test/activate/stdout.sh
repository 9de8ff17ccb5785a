#!/bin/sh
# Becomes socket-service-inet with its stdout redirected as $1 says, and number 3 closed.
eval "exec $1"
exec "$(dirname "$0")/../../dist/socket-service-inet" 3>&-
