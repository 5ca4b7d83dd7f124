# Helpers of the journeys: run a line as it is typed, and check what came of it.
#
# A script sources this file. A check that fails prints the step, the line and what it printed, with
# the end of the service's log, and ends the script.
# shellcheck shell=bash

set -Eeuo pipefail

STEP="before the first step"
LINE="none"
OUT=$PWD/.stdout
ERR=$PWD/.stderr
HEADERS=$PWD/.headers
LOG=$PWD/service.log
SERVICE=
SERVE="bentoml serve prompt_serve.service.bento:PromptServe"
touch "$OUT" "$ERR" "$HEADERS" "$LOG"

step() { # step TEXT: name what follows
  STEP=$1
  printf '\n== %s\n' "$STEP"
}

fail() { # fail REASON: say where, and end
  trap - ERR
  {
    printf '\nFAILED in step: %s\nline: %s\nreason: %s\n' "$STEP" "$LINE" "$1"
    printf -- '--- standard output\n%s\n' "$(head -c 3000 "$OUT" | tr -d '\0')"
    printf -- '--- standard error\n%s\n' "$(head -c 3000 "$ERR" | tr -d '\0')"
    printf -- '--- headers\n%s\n' "$(cat "$HEADERS")"
    printf -- '--- log of the service\n%s\n' "$(tail -n 20 "$LOG")"
  } >&2
  exit 1
}

# --- Lines of a shell

works() { # works LINE: it ends with exit code 0
  fails 0 "$1"
}

fails() { # fails CODE LINE: it ends with this exit code, and without a traceback
  local code=0
  LINE=$2
  printf '$ %s\n' "$LINE"
  : >"$HEADERS"
  bash -euo pipefail -c "$LINE" >"$OUT" 2>"$ERR" </dev/null || code=$?
  [ "$code" = "$1" ] || fail "exit code $code, expected $1"
  if grep -q Traceback "$ERR"; then fail "a traceback"; fi
}

prints() { # prints TEXT...: standard output has each of them
  _has "$OUT" "standard output" "$@"
}

notes() { # notes TEXT...: standard error has each of them
  _has "$ERR" "standard error" "$@"
}

lacks() { # lacks TEXT...: neither output has any of them
  local text
  for text in "$@"; do
    if grep -qF -- "$text" "$OUT" "$ERR"; then fail "it has '$text'"; fi
  done
}

notes_lines() { # notes_lines N: standard error has so many lines
  local count
  count=$(grep -c . "$ERR" || true)
  [ "$count" = "$1" ] || fail "$count lines on standard error, expected $1"
}

json() { # json EXPRESSION: true of `docs`, the JSON documents of standard output, or of the one `doc`
  python - "$1" "$OUT" <<'PYTHON' || fail "not so: $1"
import json, sys

text, docs, position = open(sys.argv[2]).read().strip(), [], 0
while position < len(text):
    doc, position = json.JSONDecoder().raw_decode(text, position)
    docs.append(doc)
    position += len(text[position:]) - len(text[position:].lstrip())
doc = docs[0] if len(docs) == 1 else None
sys.exit(not eval(sys.argv[1], {"docs": docs, "doc": doc}))
PYTHON
}

value() { # value EXPRESSION: print it, of the JSON document of standard output
  python -c 'import json, sys; doc = json.load(open(sys.argv[2])); print(eval(sys.argv[1]))' "$1" "$OUT"
}

_has() { # _has FILE NAME TEXT...
  local file=$1 name=$2 text
  shift 2
  for text in "$@"; do
    grep -qF -- "$text" "$file" || fail "$name lacks '$text'"
  done
}

# --- Requests

http() { # http STATUS ARGUMENTS: curl with these; the body is standard output
  local status
  LINE="curl $2"
  printf '$ %s\n' "$LINE"
  : >"$OUT"
  status=$(bash -euo pipefail -c "curl -sS -D '$HEADERS' -o '$OUT' -w '%{http_code}' $2" 2>"$ERR") ||
    fail "no answer"
  [ "$status" = "$1" ] || fail "status $status, expected $1"
}

header() { # header TEXT...: the headers have each of them, in any case
  local text
  for text in "$@"; do
    grep -qiF -- "$text" "$HEADERS" || fail "no header '$text'"
  done
}

problem() { # problem STATUS CODE ARGUMENTS: the answer is this problem document
  http "$1" "$3"
  header "content-type: application/problem+json"
  json "doc['status'] == $1 and doc['code'] == '$2' and doc['detail']"
}

# --- The service

choose_port() { # set PORT to a free one, and U to the address
  PORT=$(python -c 'from tests.service.process import free_port; print(free_port())')
  U=http://localhost:$PORT
  export PORT U
}

serve() { # serve [OPTION...]: start the service in the background; return when it is ready
  LINE="$SERVE --port $PORT $*"
  printf '$ %s &\n' "$LINE"
  # shellcheck disable=SC2086
  $SERVE --port "$PORT" "$@" >"$LOG" 2>&1 </dev/null &
  SERVICE=$!
  for _ in $(seq 900); do
    if curl -fs -o "$OUT" "$U/readyz" 2>"$ERR"; then return; fi
    kill -0 "$SERVICE" 2>/dev/null || fail "the service ended"
    sleep 0.1
  done
  fail "the service is not ready after 90 s"
}

stop() { # send SIGTERM; the service ends, with exit code 0
  local code=0 pid=$SERVICE
  LINE="kill -TERM (the service)"
  printf '$ %s\n' "$LINE"
  SERVICE=
  kill -TERM "$pid"
  wait "$pid" || code=$?
  [ "$code" = 0 ] || fail "the service ended with exit code $code"
}

skip() { # skip REASON: leave out a part; the test shows the reason
  printf 'SKIPPED: %s\n' "$1"
}

_end() {
  if [ -n "$SERVICE" ]; then
    kill -TERM "$SERVICE" 2>/dev/null || true
    wait "$SERVICE" 2>/dev/null || true
  fi
}

trap 'fail "the script itself: $BASH_COMMAND"' ERR
trap _end EXIT
