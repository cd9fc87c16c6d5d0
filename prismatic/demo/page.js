// The page of scripts/demo.py. All text from elsewhere goes in by textContent; nothing is fetched from elsewhere.

import { ask, enterAs, leave, post, request, stream, upload } from "./asking.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["num_frames", "sampler", "max_new_tokens", "do_sample", "temperature"];
const state = { limit: 0, busy: false, stale: false, opened: "", clip: null, turns: [], url: null, stop };

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function settings() {
  const value = (e) => (e.type === "checkbox" ? e.checked : e.type === "number" ? Number(e.value) : e.value);
  return Object.fromEntries(SETTINGS.map((name) => [name, value($(name))]));
}

// --- one thing at a time ---

function refresh() {
  const { busy, clip, turns } = state;
  $("send").disabled = busy || !clip;
  $("restart").disabled = busy || !turns.length;
  $("save").disabled = !turns.length;
  $("stop").hidden = !busy;
  $("file").disabled = $("path").disabled = busy;
  $("temperature").disabled = !$("do_sample").checked;
  $("choices").hidden = $("per-token").hidden = !$("weighing").checked;
  $("send").textContent = $("weighing").checked ? "Weigh" : "Ask";
}

async function busily(what, work) {
  if (state.busy) return;
  state.busy = true;
  $("status").textContent = what;
  problem("");
  refresh();
  try {
    await work();
  } catch (error) {
    problem(error.message);
  }
  state.busy = false;
  $("status").textContent = "";
  refresh();
  // Changed while the model was busy.
  if (state.stale) see();
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

const waiting = (what) => (event) => {
  if (!("waiting" in event)) return;
  const n = event.waiting;
  $("status").textContent = n ? `${n} question${n > 1 ? "s" : ""} of others before yours` : what;
};

// --- the clip ---

function see() {
  state.stale = state.busy;
  if (state.busy || !state.opened) return;
  busily("looking", show);
}

async function show() {
  state.stale = false;
  state.clip = null;
  $("strip").replaceChildren();
  $("cost").textContent = "";
  const seen = await stream("see", { settings: settings() }, waiting("looking"));
  state.clip = { name: state.opened, seconds: seen.frames.map((f) => f.second), tokens: seen.tokens };
  const single = seen.frames.length === 1;
  $("strip").classList.toggle("single", single);
  $("strip").append(...seen.frames.map((frame) => figure(frame, single)));
  const frames = `${seen.frames.length} frame${single ? "" : "s"}`;
  $("cost").textContent = `${frames}, ${seen.tokens.toLocaleString("en")} visual tokens, ${seen.took.toFixed(2)} s`;
}

function figure(frame, single) {
  const element = make("figure"), image = new Image();
  image.src = frame.picture;
  image.alt = `frame at ${frame.second} s`;
  image.addEventListener("click", () => { if (!$("player").hidden) $("player").currentTime = frame.second; });
  element.append(image, make("figcaption", "", single ? "" : `${frame.second.toFixed(2)} s`));
  return element;
}

// After the server has taken a clip: a conversation begins. source: a File or Blob that the browser may be able to play.
async function opened(name, source) {
  state.opened = name;
  state.turns = [];
  $("looked").hidden = false;
  $("name").textContent = name;
  $("turns").replaceChildren();
  play(source);
  await show();
  $("turns").append(make("p", "looked-at", `looking at ${name}`));
  $("question").focus();
}

function play(source) {
  if (state.url) URL.revokeObjectURL(state.url);
  state.url = source && source.type.startsWith("video/") ? URL.createObjectURL(source) : null;
  $("player").hidden = true;
  $("strip").classList.remove("seek");
  if (state.url) $("player").src = state.url;
  else $("player").removeAttribute("src");
}

$("player").addEventListener("loadedmetadata", () => {
  $("player").hidden = !$("player").videoWidth;
  $("strip").classList.toggle("seek", !$("player").hidden);
});

function take(file) {
  busily(`uploading ${file.name}`, async () => {
    if (file.size > state.limit) {
      throw new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MB; at most ${state.limit / 2 ** 20} MB ` +
        "are taken here (--max_upload_mb).");
    }
    const bar = $("progress"), call = upload(file, (share) => { bar.value = share; });
    bar.value = 0;
    bar.hidden = false;
    state.stop = call.abort;
    let name;
    try {
      name = (await call.done).name;
    } finally {
      state.stop = stop;
      bar.hidden = true;
    }
    await opened(name, file);
  });
}

function choose(path) {
  busily("opening", async () => {
    const { name } = await ask("choose", { path });
    let source = null;
    try {
      source = await (await request("clip", {})).blob();
    } catch {
      // A folder of frames, or too large to be sent over: the frames alone are shown.
    }
    await opened(name, source);
  });
}

async function list(folder) {
  const entry = (text, act) => {
    const item = make("li"), button = make("button", "", text);
    button.type = "button";
    button.addEventListener("click", act);
    item.append(button);
    return item;
  };
  try {
    const found = await ask("files", { folder });
    const below = (name) => (folder ? `${folder}/${name}` : name);
    const rows = [];
    if (folder) rows.push(entry("..", () => list(folder.split("/").slice(0, -1).join("/"))));
    if (folder && found.frames) rows.push(entry("(this folder, as the frames of one clip)", () => pick(folder)));
    rows.push(...found.folders.map((name) => entry(name + "/", () => list(below(name)))));
    rows.push(...found.files.map((name) => entry(name, () => pick(below(name)))));
    if (found.more) rows.push(make("li", "note", `and ${found.more.toLocaleString("en")} more: type the path`));
    if (!rows.length) rows.push(make("li", "note", "nothing to look at here"));
    $("listing").replaceChildren(...rows);
  } catch (error) {
    problem(error.message);
  }
}

function pick(path) {
  $("path").value = path;
  choose(path);
}

// --- the conversation ---

function send() {
  const question = $("question").value.trim();
  if (state.busy || !state.clip || !question) return;
  const turn = make("div", "turn"), said = make("div", "said answer");
  turn.append(make("div", "said question", question), said);
  $("turns").append(turn);
  toEnd();
  const record = { question, settings: settings(), clip: state.clip };
  busily("looking", async () => {
    try {
      await ($("weighing").checked ? weigh : answer)(record, said);
      state.turns.push(record);
      $("question").value = "";
    } catch (error) {
      said.className = "problem";
      said.textContent = error.message;
    }
    toEnd();
  });
}

function toEnd() {
  $("turns").scrollTop = $("turns").scrollHeight;
}

async function answer(record, said) {
  const told = await stream("ask", { question: record.question, settings: record.settings }, (event) => {
    waiting("looking")(event);
    if (!event.text) return;
    $("status").textContent = "writing";
    said.textContent += event.text;
    toEnd();
  });
  said.textContent = told.answer;
  Object.assign(record, { answer: told.answer, stopped: told.stopped, took: told.took, first: told.first });
  const times = `first words after ${told.first.toFixed(2)} s, ${told.took.toFixed(2)} s in all`;
  said.after(make("p", "note", told.stopped ? `stopped; ${times}` : times));
}

async function weigh(record, said) {
  const choices = $("choices").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const body = { question: record.question, settings: record.settings, choices, per_token: $("per_token").checked };
  const told = await stream("weigh", body, waiting("weighing"));
  Object.assign(record, { choices, per_token: body.per_token, shares: told.shares, took: told.took });
  const best = told.shares.indexOf(Math.max(...told.shares));
  said.classList.add("shares");
  said.append(...choices.map((choice, index) => {
    const row = make("div", index === best ? "best" : ""), bar = make("div", "bar"), fill = make("i");
    fill.style.setProperty("--w", `${(100 * told.shares[index]).toFixed(1)}%`);
    fill.style.setProperty("--c", index === best ? "var(--one)" : "var(--faint)");
    bar.append(fill, make("span", "", `${(100 * told.shares[index]).toFixed(1)}%`));
    row.append(make("span", "", choice), bar);
    return row;
  }));
  said.after(make("p", "note", `not part of the conversation; ${told.took.toFixed(2)} s`));
}

function stop() {
  post("stop").catch((error) => problem(error.message));
}

function restart() {
  busily("", async () => {
    await post("restart");
    state.turns = [];
    $("turns").replaceChildren(make("p", "looked-at", `a new conversation about ${state.opened}`));
  });
}

function save() {
  const text = JSON.stringify({ model: $("model").textContent, turns: state.turns }, null, 2);
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

// --- the beginning ---

async function enter() {
  const info = await ask("enter");
  enterAs(info.token);
  state.limit = info.upload_limit;
  document.title = `${info.model}: prismatic demo`;
  $("model").textContent = info.model;
  $("facts").replaceChildren(...info.facts.map((fact) => make("span", "", fact)));
  $("sampler").replaceChildren(...info.samplers.map((id) => new Option(id, id)));
  for (const name of SETTINGS) {
    const field = $(name);
    if (field.type === "checkbox") field.checked = info.settings[name];
    else field.value = info.settings[name];
  }
  $("shelf").hidden = !info.shelf;
  if (info.shelf) await list("");
  refresh();
}

$("file").addEventListener("change", () => { if ($("file").files.length) take($("file").files[0]); $("file").value = ""; });
for (const kind of ["dragover", "dragleave", "drop"]) {
  // On the whole page: a file that misses the field would be opened by the browser instead.
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}
$("path-form").addEventListener("submit", (event) => { event.preventDefault(); choose($("path").value); });
$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
for (const id of ["num_frames", "sampler"]) $(id).addEventListener("change", see);
for (const id of ["weighing", "do_sample"]) $(id).addEventListener("change", refresh);
$("stop").addEventListener("click", () => state.stop());
$("restart").addEventListener("click", restart);
$("save").addEventListener("click", save);
window.addEventListener("pagehide", leave);
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
enter().catch((error) => problem(error.message));
