#!/usr/bin/env bash
# An engineer with a folder of images: train, serve, upload, ask, go back.
#
# The folder `colors` has the folders `train` and `test`, each with one folder of images per class.
set -euo pipefail
source "$(dirname "$0")/expect.sh"

step "train with the defaults"
works 'prompt-serve train colors/train --out colors.safetensors'
prints "4 classes; images: 40 train" "cross-validation" "zero-shot class-vectors" "colors.safetensors"

step "inspect the file"
works 'prompt-serve inspect colors.safetensors'
prints "name             colors" "classes          4: blue, green, red, yellow" "class-vectors"
works 'cat colors.safetensors | prompt-serve inspect - --json'
json 'doc["name"] == "colors"'

step "serve"
choose_port
serve
export PROMPT_SERVE_URL=$U

step "upload under the name of the file; the name inside differs"
works 'prompt-serve tasks upload colors.safetensors --tag prod --tag old'
prints "colors is served: 4 classes"
works 'cp colors.safetensors colors-v2.safetensors'
works 'prompt-serve tasks upload colors-v2.safetensors --json'
notes "Note: the file itself says 'colors'" "--name"
json 'doc["name"] == "colors-v2" and doc["tags"] == []'
works 'mkdir prompts; cp colors.safetensors prompts/shades.safetensors; cp colors.safetensors prompts'
works 'prompt-serve tasks upload prompts/ --tag old'
prints "2 tasks are served"
notes "1 file holds another name (shades.safetensors: 'colors')"
works 'prompt-serve tasks delete shades'
works 'prompt-serve tasks list'
prints "name       version" "colors-v2" "old prod"

step "tags: add at upload, add and remove afterwards"
works 'prompt-serve tasks upload colors.safetensors --tag eu --json'
json 'doc["tags"] == ["eu", "old", "prod"]'
works 'prompt-serve tasks tag colors --add new --remove old --json'
json 'doc["tags"] == ["eu", "new", "prod"]'
works 'prompt-serve tasks tag colors'
prints "colors: eu new prod"
works 'prompt-serve tasks list --tag prod --json'
json '[one["name"] for one in docs] == ["colors"]'

step "classify an image, a folder, standard input"
works 'prompt-serve classify colors/test/red/00.png --task colors --top-k 1'
prints "colors/test/red/00.png  colors" "red"
works 'prompt-serve classify colors/test --task colors --json'
json 'len(docs) == 16'
json 'all(d["predictions"][0]["classes"][0]["class_name"] == d["source"].split("/")[2] for d in docs)'
works 'cat colors/test/blue/01.png | prompt-serve classify - --task colors --json'
json 'doc["predictions"][0]["classes"][0]["class_name"] == "blue"'

step "score a folder by tag, by all tasks, and through pipes"
works 'prompt-serve score colors/test --tag prod --out scores.csv --json'
json '(doc["images"], doc["rows"]) == (16, 16)'
works 'head -1 scores.csv'
prints "source,task,version,class_name,probability,unknown"
works 'prompt-serve score colors/test --task "*" --out scores.jsonl'
prints "scores.jsonl: 16 images, 32 rows"
works 'cat scores.jsonl'
json '{d["task"] for d in docs} == {"colors", "colors-v2"} and not any(d["error"] for d in docs)'
works 'find colors/test/red -name "*.png" | prompt-serve score - --task colors --out - --no-progress'
json 'len(docs) == 4 and {d["class_name"] for d in docs} == {"red"}'
works 'prompt-serve score colors/test --task "*" --top-tasks 1 --out - --format csv --no-progress | tail -n +2 | wc -l'
prints "16"

step "wrong words: the right one is named, and the exit code is 2"
fails 2 'prompt-serve clasify colors/test --task colors'
notes "Did you mean 'classify'?"
fails 2 'prompt-serve tasks uplaod colors.safetensors'
notes "Did you mean 'upload'?"
fails 2 'prompt-serve train colors/train --method clas-vectors --out x.safetensors'
notes "Did you mean 'class-vectors'?"
fails 2 'prompt-serve score colors/test --task colors --outt x.csv'
notes "Did you mean" "'--out'"
fails 2 'prompt-serve classify colors/test/red/00.png --task colours'
notes "No task named 'colours' is loaded. Did you mean 'colors'"
notes_lines 1

step "replace the task, go back, delete it, restore it"
works 'prompt-serve tasks show colors --json'
first=$(value 'doc["version"]')
works 'prompt-serve tasks create colors red green --json'
json "doc['version'] != '$first' and doc['method'] == 'zero-shot'"
works 'prompt-serve tasks rollback colors --json'
json "doc['version'] == '$first'"
works 'prompt-serve tasks history colors --json'
json '[d["what"] for d in docs][:2] == ["rollback", "put"]'
works 'prompt-serve tasks delete colors'
works 'prompt-serve tasks rollback colors'
prints "colors is served: 4 classes"

step "download the file again, byte for byte"
works 'prompt-serve tasks download colors --out - | cmp - colors.safetensors'
works 'prompt-serve tasks download colors --out - | prompt-serve tasks upload - --name copied'
prints "copied is served: 4 classes"

step "stop"
stop
fails 1 'prompt-serve tasks list'
notes_lines 1
