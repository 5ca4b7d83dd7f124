#!/bin/sh
# Runs as root while the image is built. Creates a home that the service's user may write to; a new
# volume mounted there takes its owner from this folder.
set -eu
install -d -o bentoml -g bentoml -m 0750 /var/lib/prompt-serve
