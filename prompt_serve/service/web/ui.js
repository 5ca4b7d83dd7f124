// Choose tasks, drop images, see what they are. Plain functions over one state; no dependencies.
"use strict";

const PAGE_OF_TASKS = 200;
const KEY = "prompt-serve-key";
const byId = (id) => document.getElementById(id);

const state = {
  chosen: new Set(), // names of tasks
  images: [], // {file, url}
  maxImages: 1, // of one request
  asked: 0, // the number of the newest question; older answers are dropped
  searched: 0,
};

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// --- the service

async function ask(path, options = {}) {
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
  const failure = new Error(problem.detail || `${response.status} ${response.statusText}`);
  failure.problem = problem;
  throw failure;
}

function askForKey() {
  byId("key-form").hidden = false;
  byId("key").focus();
}

async function showService() {
  const info = await ask("info");
  state.maxImages = info.limits.max_images;
  const device = info.provider.replace("ExecutionProvider", "");
  byId("about").textContent =
    `${info.backbone.id} (${info.precision}) on ${device}, ${info.tasks} tasks, version ${info.version}`;
}

// --- tasks

async function showTasks() {
  const mine = ++state.searched;
  const wanted = new URLSearchParams({ limit: PAGE_OF_TASKS });
  const search = byId("search").value.trim();
  if (search) wanted.set("search", search);
  const page = await ask(`tasks?${wanted}`);
  if (mine !== state.searched) return;
  byId("tasks").replaceChildren(...page.tasks.map(taskRow));
  let note = "";
  if (page.next) note = `The first ${page.tasks.length}; search for others.`;
  if (!page.tasks.length) note = search ? "No task is called so." : "There are no tasks yet. From a shell: prompt-serve tasks upload";
  byId("tasks-note").textContent = note;
}

function taskRow(task) {
  const box = element("input");
  box.type = "checkbox";
  box.value = task.name;
  box.checked = state.chosen.has(task.name);
  box.addEventListener("change", () => choose(task.name, box.checked));
  const label = element("label");
  label.append(box, element("span", task.name), element("small", `${task.n_classes} classes`));
  const row = element("li");
  row.append(label);
  return row;
}

function choose(name, wanted) {
  if (wanted) state.chosen.add(name);
  else state.chosen.delete(name);
  byId("chosen").textContent = state.chosen.size ? `${state.chosen.size} chosen` : "none chosen";
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
  state.asked++;
  byId("files").value = "";
  byId("results").replaceChildren();
  say("");
  showCurl();
}

async function classify() {
  const mine = ++state.asked;
  if (!state.images.length) return say("");
  if (!state.chosen.size) return say("Now choose a task.");
  say(`Classifying ${state.images.length} image${state.images.length > 1 ? "s" : ""}…`);
  const images = [...state.images];
  const results = [];
  try {
    for (let start = 0; start < images.length; start += state.maxImages) {
      results.push(...(await classifyPart(images.slice(start, start + state.maxImages))));
      if (mine !== state.asked) return;
    }
  } catch (failure) {
    if (mine === state.asked) say(failure.message, true);
    return;
  }
  byId("results").replaceChildren(...results.map((result, n) => card(images[n], result)));
  const bad = results.filter((result) => result.error).length;
  say(bad ? `${bad} of ${results.length} could not be read.` : "", Boolean(bad));
}

async function classifyPart(images) {
  const form = new FormData();
  for (const { file } of images) form.append("image", file, file.name || "pasted.png");
  for (const name of state.chosen) form.append("task", name);
  form.append("top_k", byId("top").value || "5");
  try {
    return (await ask("classify", { method: "POST", body: form })).results;
  } catch (failure) {
    // When every image is bad the request is refused, with the error of each.
    const { errors, code, detail } = failure.problem || {};
    const isOfImages = String(code).startsWith("image-");
    if (isOfImages && errors?.length === images.length) return errors.map((error) => ({ error }));
    if (isOfImages && images.length === 1) return [{ error: { detail } }];
    throw failure;
  }
}

function card(image, result) {
  const body = element("div");
  body.append(element("h3", image.file.name || "pasted image"));
  if (result.error) body.append(element("p", result.error.detail, "error"));
  for (const prediction of result.predictions || []) body.append(...predicted(prediction));
  const picture = element("img");
  picture.src = image.url;
  picture.alt = "";
  picture.addEventListener("error", () => picture.remove()); // no image, as the error below says
  const made = element("article");
  made.append(picture, body);
  return made;
}

function predicted(prediction) {
  const title = element("h4", prediction.task);
  if (prediction.unknown) title.append(" ", element("span", "none of its classes", "unknown"));
  return [title, ...prediction.classes.map(classRow)];
}

function classRow(one) {
  const row = element("div", undefined, "class");
  const bar = element("progress");
  bar.max = 1;
  bar.value = one.probability;
  bar.setAttribute("aria-label", one.class_name);
  row.append(element("span", one.class_name), element("span", `${(100 * one.probability).toFixed(1)} %`), bar);
  return row;
}

function say(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

// --- the curl line

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function showCurl() {
  const url = new URL("classify", document.baseURI).href;
  const names = state.images.length ? state.images.map(({ file }) => file.name || "pasted.png") : ["photo.jpg"];
  const parts = [`curl ${quoted(url)}`];
  if (sessionStorage.getItem(KEY)) parts.push('-H "Authorization: Bearer $PROMPT_SERVE_API_KEY"');
  parts.push(...names.map((name) => `-F ${quoted(`image=@${name}`)}`));
  parts.push(...[...(state.chosen.size ? state.chosen : ["TASK"])].map((name) => `-F ${quoted(`task=${name}`)}`));
  parts.push(`-F top_k=${byId("top").value || 5}`);
  byId("curl").textContent = parts.join(" \\\n  ");
}

async function copy() {
  const text = byId("curl").textContent;
  try {
    await navigator.clipboard.writeText(text); // only where the page came over https or loopback
    byId("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("curl"));
    byId("copy").textContent = "Selected: press Ctrl-C";
  }
  setTimeout(() => (byId("copy").textContent = "Copy"), 2000);
}

// --- start

async function start() {
  try {
    await Promise.all([showService(), showTasks()]);
    byId("key-form").hidden = true;
  } catch (failure) {
    byId("about").textContent = failure.message;
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
    typing = setTimeout(() => showTasks().catch((failure) => say(failure.message, true)), 150);
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
