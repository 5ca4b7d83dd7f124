#!/bin/sh
# Run as root while the image is built: a home that the service's user may write to. A volume that
# is mounted there for the first time takes its owner from here.
set -eu
install -d -o bentoml -g bentoml -m 0750 /var/lib/prompt-serve
