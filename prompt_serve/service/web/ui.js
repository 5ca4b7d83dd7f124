// Select tasks, drop images, see predictions. Plain functions over one state; no dependencies.
"use strict";

const PAGE_OF_TASKS = 200;
const RECALLS = 10; // classes listed in the details of a task
const KEY = "prompt-serve-key";
const byId = (id) => document.getElementById(id);

const state = {
  selected: new Set(), // names of tasks
  images: [], // {file, url}
  maxImages: 1, // per request
  classifyId: 0, // id of the latest classification; results of older ones are dropped
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
    throw new Error("The service does not answer. Is it still running?");
  }
  if (response.ok) return response.json();
  if (response.status === 401) askForKey();
  const problem = await response.json().catch(() => ({}));
  const error = new Error(problem.detail || `${response.status} ${response.statusText}`);
  error.problem = problem;
  throw error;
}

function askForKey() {
  byId("key-form").hidden = false;
  byId("key").focus();
}

async function showService() {
  const info = await request("info");
  state.maxImages = info.limits.max_images;
  const device = info.provider.replace("ExecutionProvider", "");
  byId("about").textContent =
    `${info.backbone.id} (${info.precision}) on ${device}, ${count(info.tasks, "task")}, version ${info.version}`;
}

// --- tasks

async function showTasks() {
  const id = ++state.searchId;
  const query = new URLSearchParams({ limit: PAGE_OF_TASKS });
  const search = byId("search").value.trim();
  if (search) query.set("search", search);
  const page = await request(`tasks?${query}`);
  if (id !== state.searchId) return;
  byId("tasks").replaceChildren(...page.tasks.map(taskRow));
  let note = "";
  if (page.next) note = `Showing the first ${page.tasks.length} tasks. Search to find others.`;
  if (!page.tasks.length) note = search ? "No matching tasks." : "There are no tasks yet. Upload one: prompt-serve tasks upload FILE";
  byId("tasks-note").textContent = note;
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
  showCurl();
  classify();
}

// --- images

function add(files) {
  for (const file of files) state.images.push({ file, url: URL.createObjectURL(file) });
  showCurl();
  classify();
}

function clear() {
  for (const image of state.images) URL.revokeObjectURL(image.url);
  state.images = [];
  state.classifyId++;
  byId("files").value = "";
  byId("results").replaceChildren();
  showStatus("");
  showCurl();
}

async function classify() {
  const id = ++state.classifyId;
  if (!state.images.length) return showStatus("");
  if (!state.selected.size) return showStatus("Select a task to classify the images.");
  showStatus(`Classifying ${count(state.images.length, "image")}…`);
  const images = [...state.images];
  const results = [];
  try {
    for (let start = 0; start < images.length; start += state.maxImages) {
      results.push(...(await classifyPart(images.slice(start, start + state.maxImages))));
      if (id !== state.classifyId) return;
    }
  } catch (error) {
    if (id === state.classifyId) showStatus(error.message, true);
    return;
  }
  byId("results").replaceChildren(...results.map((result, n) => card(images[n], result)));
  const failed = results.filter((result) => result.error).length;
  showStatus(failed ? `${failed} of ${count(results.length, "image")} could not be read.` : "", Boolean(failed));
}

async function classifyPart(images) {
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

function card(image, result) {
  const body = element("div");
  body.append(element("h3", image.file.name || "pasted image"));
  if (result.error) body.append(element("p", result.error.detail, "error"));
  for (const prediction of result.predictions || []) body.append(...predictionRows(prediction));
  const picture = element("img");
  picture.src = image.url;
  picture.alt = "";
  picture.addEventListener("error", () => picture.remove()); // the error below says why
  const article = element("article");
  article.append(picture, body);
  return article;
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

function showStatus(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

// --- the curl line

function shellQuote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function showCurl() {
  const url = new URL("classify", document.baseURI).href;
  const names = state.images.length ? state.images.map(({ file }) => file.name || "pasted.png") : ["photo.jpg"];
  const parts = [`curl ${shellQuote(url)}`];
  if (sessionStorage.getItem(KEY)) parts.push('-H "Authorization: Bearer $PROMPT_SERVE_API_KEY"');
  parts.push(...names.map((name) => `-F ${shellQuote(`image=@${name}`)}`));
  parts.push(...[...(state.selected.size ? state.selected : ["TASK"])].map((name) => `-F ${shellQuote(`task=${name}`)}`));
  parts.push(`-F top_k=${byId("top").value || 5}`);
  byId("curl").textContent = parts.join(" \\\n  ");
}

async function copy() {
  const text = byId("curl").textContent;
  try {
    await navigator.clipboard.writeText(text); // only over https or loopback
    byId("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("curl"));
    byId("copy").textContent = "Selected, press Ctrl-C";
  }
  setTimeout(() => (byId("copy").textContent = "Copy"), 2000);
}

// --- start

async function start() {
  try {
    await Promise.all([showService(), showTasks()]);
    byId("key-form").hidden = true;
  } catch (error) {
    byId("about").textContent = error.message;
  }
}

function listen() {
  const drop = byId("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  drop.addEventListener("drop", (event) => add(event.dataTransfer.files));
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  byId("files").addEventListener("change", (event) => add(event.target.files));
  byId("clear").addEventListener("click", clear);
  byId("copy").addEventListener("click", copy);
  byId("top").addEventListener("change", () => (showCurl(), classify()));
  let typing;
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => showTasks().catch((error) => showStatus(error.message, true)), 150);
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, byId("key").value.trim());
    byId("key").value = "";
    showCurl();
    start();
  });
}

listen();
showCurl();
start();
