// Select tasks, drop images, see predictions. Plain functions over one state; no dependencies.
"use strict";

const PAGE_OF_TASKS = 200;
const RECALLS = 10; // classes listed in the details of a task
const CURL_IMAGES = 3; // in the curl command
const CURL_TASKS = 8;
const POLL_MS = 10_000; // in hidden tabs never
const BODY_SHARE = 0.95; // of the largest body for the images; the rest is for the form around them
const KEY = "prompt-serve-key";
const byId = (id) => document.getElementById(id);

const state = {
  selected: new Set(), // names of tasks
  images: [], // {file, size, url, sampleUrl, card, result, question}
  question: 0, // raised when earlier results no longer apply
  reason: "", // why they do not
  limits: { max_images: 1, max_body_bytes: Infinity }, // per request
  isLoaded: false, // false again if the service does not answer or does not accept the key
  needsKey: false,
  classifyId: 0, // id of the latest classification; older ones send nothing more
  searchId: 0, // the same for searches
};

function element(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

// --- the service

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    lose("The service does not answer. Is it still running?");
    throw new Error("The service does not answer. Is it still running?");
  }
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  if (response.status === 401) askForKey(key && problem.detail);
  const error = new Error(problem.detail || `${response.status} ${response.statusText}`);
  error.problem = problem;
  throw error;
}

function askForKey(fault) {
  state.needsKey = true;
  byId("key-note").textContent = fault ? firstSentence(fault) : "";
  if (byId("key-form").hidden) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
  lose("Enter a key to use the service.");
  showCurl();
}

const LOST = "Out of date: the service is not available.";
const CHANGED = "Out of date: the tasks or options have changed.";

// Called when the service does not answer or does not accept the key.
function lose(reason) {
  byId("about").textContent = reason;
  byId("about").classList.add("bad");
  if (!state.isLoaded) return;
  state.isLoaded = false;
  outdate(LOST);
}

function loseUnlessAsking(error) {
  if (byId("key-form").hidden) lose(error.message);
}

// Resolves to true if there are no tasks.
async function showService() {
  const info = await request("info");
  state.limits = info.limits;
  const device = info.provider.replace("ExecutionProvider", "");
  byId("about").textContent =
    `${info.backbone.id} (${info.precision}) on ${device}, ${count(info.tasks, "task")}, version ${info.version}`;
  byId("about").classList.remove("bad");
  return info.tasks === 0;
}

// A key that the browser sends by itself, as Basic, says nothing about other programs.
async function findOutAboutKeys() {
  if (sessionStorage.getItem(KEY)) state.needsKey = true;
  if (state.needsKey) return;
  const response = await fetch("info", { credentials: "omit" }).catch(() => null);
  state.needsKey = response?.status === 401;
}

function showEmpty(isEmpty) {
  const wasEmpty = !byId("empty").hidden;
  byId("empty").hidden = !isEmpty;
  byId("empty-key").hidden = !state.needsKey;
  if (state.isLoaded && wasEmpty !== isEmpty) showTasks().catch((error) => showStatus(error.message, true));
  if (!isEmpty) return;
  const task = { name: "things", class_names: ["cat", "pizza", "basketball", "bicycle", "guitar", "rainbow"] };
  byId("create").textContent = curlCommand("tasks", [
    "-H 'Content-Type: application/json'",
    `-d ${shellQuote(JSON.stringify(task))}`,
  ]);
  const service = new URL("..", document.baseURI).href.replace(/\/$/, "");
  byId("learn").textContent =
    "pip install 'prompt-serve[serve]'\n" +
    "prompt-serve train FOLDER --out things.safetensors\n" +
    `prompt-serve tasks upload things.safetensors --url ${shellQuote(service)}`;
}

// --- tasks

async function showTasks() {
  const id = ++state.searchId;
  const query = new URLSearchParams({ limit: PAGE_OF_TASKS });
  const search = byId("search").value.trim();
  if (search) query.set("search", search);
  const page = await request(`tasks?${query}`);
  if (id !== state.searchId) return;
  const current = byId("tasks").querySelector('input[tabindex="0"]')?.value;
  showRows(page.tasks);
  const rows = [...byId("tasks").children];
  makeCurrent(rows.find((row) => row.querySelector("input").value === current) || rows[0]);
  let note = "";
  if (page.next) note = `Showing the first ${page.tasks.length} tasks. Search to find others.`;
  if (!page.tasks.length) note = search ? "No matching tasks." : "There are no tasks yet.";
  byId("tasks-note").textContent = note;
}

// Rows of unchanged tasks stay as they are (open details too), and the focus stays on its task.
function showRows(tasks) {
  const focused = document.activeElement.closest("#tasks :is(input, summary)");
  const name = focused?.closest("li").querySelector("input").value;
  const kept = new Map([...byId("tasks").children].map((row) => [row.dataset.task, row]));
  byId("tasks").replaceChildren(...tasks.map((task) => kept.get(JSON.stringify(task)) || taskRow(task)));
  const row = [...byId("tasks").children].find((row) => row.querySelector("input").value === name);
  if (focused) row?.querySelector(focused.localName).focus({ preventScroll: true });
}

// Tab reaches one row of the list; the arrow keys move from row to row.
function makeCurrent(current) {
  for (const row of byId("tasks").children) {
    for (const control of row.querySelectorAll("input, summary")) control.tabIndex = row === current ? 0 : -1;
  }
}

function moveInTasks(event) {
  const rows = [...byId("tasks").children];
  const at = rows.indexOf(event.target.closest("li"));
  const target = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (target === undefined || !event.target.matches("input, summary")) return;
  event.preventDefault();
  rows[Math.min(Math.max(target, 0), rows.length - 1)].querySelector(event.target.localName).focus();
}

function taskRow(task) {
  const box = element("input");
  box.type = "checkbox";
  box.value = task.name;
  box.checked = state.selected.has(task.name);
  box.addEventListener("change", () => select(task.name, box.checked));
  const label = element("label");
  label.append(box, element("span", task.name), element("small", count(task.n_classes, "class", "classes")));
  const row = element("li");
  row.dataset.task = JSON.stringify(task);
  row.append(label, taskDetails(task.name));
  return row;
}

function taskDetails(name) {
  const details = element("details");
  const summary = element("summary", "Accuracy");
  summary.setAttribute("aria-label", `Accuracy of ${name}`);
  const facts = element("div", "Loading…", "facts");
  details.append(summary, facts);
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    try {
      facts.replaceChildren(...taskFacts(await request(`tasks/${encodeURIComponent(name)}`)));
    } catch (error) {
      facts.replaceChildren(element("p", error.message, "error"));
    }
  });
  return details;
}

// Metrics are free-form; parts of the images are recognized by what they contain.
function taskFacts({ class_names: names, method, size_bytes: bytes, metrics }) {
  const isPart = ([, value]) => Number.isFinite(value?.accuracy) && Number.isInteger(value.images);
  const parts = Object.entries(metrics).filter(isPart);
  const nodes = [element("p", `${method}, ${bytes.toLocaleString("en")} bytes`)];
  const warnings = Array.isArray(metrics.warnings) ? metrics.warnings : [];
  if (warnings.length) {
    const list = element("ul", undefined, "warnings");
    list.append(...warnings.map((warning) => element("li", warning)));
    nodes.push(list);
  }
  if (!parts.length) nodes.push(element("p", "The prompt file holds no measured accuracy."));
  for (const [part, measured] of parts) nodes.push(...partFacts(part, measured, names));
  return nodes;
}

function partFacts(part, measured, names) {
  const { accuracy, images, interval, zero_shot_accuracy: zeroShot } = measured;
  let text = `${part}: ${percent(accuracy)} of ${count(images, "image")}`;
  if (interval) text += `, 95 % interval ${interval.map(percent).join(" to ")}`;
  if (Number.isFinite(zeroShot)) text += `; class names alone ${percent(zeroShot)}`;
  const nodes = [element("p", text)];
  const pairs = (measured.confusions || []).filter(([label, other]) => names[label] && names[other]);
  const confused = pairs.map(([label, other, wrong]) => `${names[label]} as ${names[other]} (${wrong})`);
  if (confused.length) nodes.push(element("p", `Most confused: ${confused.join(", ")}`));
  const recalls = (measured.per_class || []).map((recall, label) => ({ recall, name: names[label] }));
  const known = recalls.filter(({ recall, name }) => recall !== null && name).sort((a, b) => a.recall - b.recall);
  if (known.length) {
    nodes.push(element("p", known.length > RECALLS ? `Lowest recalls of ${known.length} classes:` : "Recall:"));
    nodes.push(...known.slice(0, RECALLS).map(({ recall, name }) => shareRow(name, recall)));
  }
  return nodes;
}

function select(name, isSelected) {
  if (isSelected) state.selected.add(name);
  else state.selected.delete(name);
  byId("selected").textContent = state.selected.size ? `${state.selected.size} selected` : "none selected";
  ask();
}

// --- images

function add(files) {
  const isOther = (file) => file.type && !file.type.startsWith("image/");
  const others = files.filter(isOther).map((file) => file.name);
  const shown = others.length > 3 ? [...others.slice(0, 3), `${others.length - 3} more`] : others;
  byId("left-out").textContent = others.length ? `Left out, not images: ${shown.join(", ")}` : "";
  const images = files.filter((file) => !isOther(file));
  if (images.length) addImages(images.map((file) => ({ file })));
}

async function addSample(name) {
  const sampleUrl = new URL(`ui/samples/${name}`, document.baseURI).href;
  try {
    const response = await fetch(sampleUrl);
    if (!response.ok) throw new Error();
    addImages([{ file: new File([await response.blob()], name, { type: "image/png" }), sampleUrl }]);
  } catch {
    showStatus("The sample cannot be loaded. Is the service still running?", true);
  }
}

function addImages(images) {
  for (const image of images) {
    image.size = image.file.size; // while it is there
    image.url = URL.createObjectURL(image.file);
    image.card = emptyCard(image);
    state.images.push(image);
    byId("results").append(image.card);
  }
  showCount();
  showCurl();
  classify();
}

function clear() {
  for (const image of state.images) URL.revokeObjectURL(image.url);
  state.images = [];
  state.classifyId++;
  byId("results").replaceChildren();
  byId("left-out").textContent = "";
  showStatus("");
  showCount();
  showCurl();
}

function showCount() {
  byId("count").textContent = state.images.length ? count(state.images.length, "image") : "none";
}

// The tasks or options are others now.
function ask() {
  outdate(state.isLoaded ? CHANGED : LOST);
  showCurl();
  classify();
}

function outdate(reason) {
  state.question++;
  state.reason = reason;
  for (const image of state.images) showResult(image);
}

function unanswered() {
  return state.images.filter((image) => image.question !== state.question);
}

async function classify() {
  const id = ++state.classifyId;
  if (!state.images.length) return showStatus("");
  if (!state.selected.size) return showStatus("Select a task to classify the images.");
  const question = state.question;
  let waiting;
  try {
    while ((waiting = unanswered()).length) {
      showStatus(`Classifying ${count(waiting.length, "image")}…`);
      const images = nextPart(waiting);
      const results = await classifyPart(images);
      if (question !== state.question) return id === state.classifyId && showOutdated();
      images.forEach((image, n) => Object.assign(image, { result: results[n], question }));
      images.forEach(showResult);
      if (id !== state.classifyId) return;
    }
  } catch (error) {
    if (id !== state.classifyId) return;
    const left = `${unanswered().length} of ${count(state.images.length, "image")} not classified.`;
    return showStatus(`${error.message} ${left}`, true, true);
  }
  showFailed();
}

function showOutdated() {
  const left = unanswered().length;
  showStatus(`${left} of ${count(state.images.length, "image")} not classified, or out of date.`, true, true);
}

function showFailed() {
  const failed = state.images.filter(({ result }) => result.error).length;
  showStatus(failed ? `${failed} of ${count(state.images.length, "image")} could not be read.` : "", Boolean(failed));
}

// As many images as one request may carry.
function nextPart(images) {
  const { max_images: maxImages, max_body_bytes: maxBytes } = state.limits;
  let length = 0;
  let bytes = 0;
  do bytes += images[length++].size;
  while (length < Math.min(images.length, maxImages) && bytes + images[length].size <= maxBytes * BODY_SHARE);
  return images.slice(0, length);
}

async function classifyPart(images) {
  const readable = await Promise.all(images.map(isReadable));
  const results = await classifyReadable(images.filter((_, n) => readable[n]));
  const fault = { detail: "The browser cannot read this file. It may be a folder, or have changed since you added it." };
  return images.map((_, n) => (readable[n] ? results.shift() : { error: fault }));
}

// A file that has gone is empty, or fails; fetch would fail as if the service had gone.
async function isReadable({ file, size }) {
  try {
    return (await file.slice(0, 1).arrayBuffer()).byteLength === Math.min(size, 1);
  } catch {
    return false;
  }
}

async function classifyReadable(images) {
  if (!images.length) return [];
  const form = new FormData();
  for (const { file } of images) form.append("image", file, file.name || "pasted.png");
  for (const name of state.selected) form.append("task", name);
  form.append("top_k", byId("top").value || "5");
  try {
    return (await request("classify", { method: "POST", body: form })).results;
  } catch (error) {
    // If all images fail, so does the request; the problem document lists the error of each.
    const { errors, code, detail } = error.problem || {};
    const isImageError = String(code).startsWith("image-");
    if (isImageError && errors?.length === images.length) return errors.map((one) => ({ error: one }));
    if (isImageError && images.length === 1) return [{ error: { detail } }];
    throw error;
  }
}

function emptyCard(image) {
  const picture = element("img");
  picture.src = image.url;
  picture.alt = "";
  picture.addEventListener("error", () => picture.remove()); // the error below says why
  const article = element("article");
  article.tabIndex = -1;
  article.append(picture, element("h3", image.file.name || "pasted image"), element("div"));
  return article;
}

function showResult(image) {
  const isOld = image.result && image.question !== state.question;
  const body = element("div");
  if (isOld) body.append(element("p", state.reason, "old"));
  if (image.result?.error) body.append(element("p", image.result.error.detail, "error"), retryButton(image));
  for (const prediction of image.result?.predictions || []) body.append(...predictionRows(prediction));
  image.card.classList.toggle("outdated", Boolean(isOld));
  image.card.lastChild.replaceWith(body);
}

function retryButton(image) {
  const button = element("button", "Retry");
  button.type = "button";
  button.setAttribute("aria-label", `Retry ${image.file.name || "pasted image"}`);
  button.addEventListener("click", () => {
    image.question = undefined;
    image.card.focus(); // the button goes
    classify();
  });
  return button;
}

function predictionRows(prediction) {
  const title = element("h4", prediction.task);
  if (prediction.unknown) title.append(" ", element("span", "matches no class", "unknown"));
  const labels = prediction.labels && new Set(prediction.labels); // of a multi-label task
  if (labels && !labels.size) title.append(" ", element("span", "no label", "unknown"));
  return [title, ...prediction.classes.map((score) => classRow(score, labels))];
}

function classRow(score, labels) {
  const row = shareRow(score.class_name, score.probability);
  if (labels) row.classList.add(labels.has(score.class_name) ? "given" : "not-given");
  return row;
}

function shareRow(name, share) {
  const row = element("div", undefined, "class");
  const bar = element("progress");
  bar.max = 1;
  bar.value = share;
  bar.setAttribute("aria-label", name);
  row.append(element("span", name), element("span", percent(share)), bar);
  return row;
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

function showStatus(text, bad = false, canRetry = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
  byId("retry").hidden = !canRetry;
}

function firstSentence(text) {
  return text.split(". ")[0].replace(/\.?$/, ".");
}

// --- the curl line

function shellQuote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// curl reads commas, semicolons and quotes in file names unless they are quoted for it.
function formFile(name) {
  return /[",;\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name;
}

function curlCommand(path, parts) {
  const url = new URL(path, document.baseURI).href;
  const key = state.needsKey ? ['-H "Authorization: Bearer $PROMPT_SERVE_API_KEY"'] : []; // never the key itself
  return [`curl ${shellQuote(url)}`, ...key, ...parts].join(" \\\n  ");
}

function showCurl() {
  const images = state.images.slice(0, CURL_IMAGES);
  const tasks = [...state.selected].slice(0, CURL_TASKS);
  const names = images.length ? images.map(({ file }) => file.name || "pasted.png") : ["photo.jpg"];
  const samples = new Set(images.flatMap(({ sampleUrl }) => sampleUrl || []));
  const lines = [...samples].map((url) => `curl -O ${shellQuote(url)}`);
  lines.push(
    curlCommand("classify", [
      ...names.map((name) => `-F ${shellQuote(`image=@${formFile(name)}`)}`),
      ...(tasks.length ? tasks : ["TASK"]).map((name) => `-F ${shellQuote(`task=${name}`)}`),
      `-F top_k=${byId("top").value || 5}`,
    ]),
  );
  byId("curl").textContent = lines.join("\n");
  byId("curl-note").textContent = curlNote(images.length, tasks.length);
}

function curlNote(images, tasks) {
  const notes = [];
  if (images < state.images.length) notes.push(`${images} of ${state.images.length} images (repeat -F image=@FILE)`);
  if (tasks < state.selected.size) notes.push(`${tasks} of ${state.selected.size} tasks (repeat -F task=NAME)`);
  return notes.length ? `Shortened to ${notes.join(" and ")}.` : "";
}

// Copy the text before the button.
async function copy(button) {
  const source = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(source.textContent); // only over https or loopback
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = "Selected, press Ctrl-C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// --- start

async function start() {
  try {
    const isEmpty = await showService();
    await showTasks();
    await findOutAboutKeys();
    showEmpty(isEmpty);
  } catch (error) {
    return loseUnlessAsking(error);
  }
  byId("key-form").hidden = true;
  state.isLoaded = true;
  showCurl();
  if (state.question && state.selected.size && unanswered().length) showOutdated();
}

// A service that was lost is loaded anew; while a key is asked for, the form decides.
async function poll() {
  if (document.hidden || !byId("key-form").hidden) return;
  if (state.isLoaded) await showService().then(showEmpty, loseUnlessAsking);
  else await start();
}

function listen() {
  const drop = byId("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  drop.addEventListener("drop", (event) => add([...event.dataTransfer.files]));
  document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
  byId("files").addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = ""; // so that the same file can be added again
  });
  for (const button of byId("samples").children) button.addEventListener("click", () => addSample(button.value));
  for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));
  byId("clear").addEventListener("click", clear);
  byId("retry").addEventListener("click", classify);
  byId("top").addEventListener("change", ask);
  byId("tasks").addEventListener("keydown", moveInTasks);
  byId("tasks").addEventListener("focusin", (event) => makeCurrent(event.target.closest("li")));
  let typing;
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => showTasks().catch((error) => showStatus(error.message, true)), 150);
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, byId("key").value.trim());
    byId("key").value = "";
    start();
  });
}

listen();
showCurl();
start().then(() => setInterval(poll, POLL_MS));
