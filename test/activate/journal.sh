#!/bin/sh
# Becomes the service $1 as if its stderr were the journal.
JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)
export JOURNAL_STREAM
exec "$(dirname "$0")/../../dist/$1"
