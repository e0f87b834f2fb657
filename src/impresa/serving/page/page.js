"use strict";

// What is shown of the data goes through textContent: captions are words of others.

const $ = (id) => document.getElementById(id);
const TOP = 24, LARGEST_BYTES = 4e6, LARGEST_PX = 1600;

let info = null;
let parts = [];      // examples beside the words: {kind: "image" | "sound" | "id", value, name, picture}
let asked = null;    // the last query, with the vector that the server made of it
let searching = null, answering = null;  // AbortControllers of what is under way
let subject = null;  // data URL of the picture that is asked about

function make(tag, options = {}, ...children) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
}

async function call(path, body, signal) {
  const headers = {}, key = sessionStorage.getItem("impresa-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = {method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body)};
  const answer = await fetch(path, options).catch((fault) => {
    throw fault.name === "AbortError" ? fault : new Error("The server does not answer; is it still running?");
  });
  if (answer.ok) return answer;
  if (answer.status === 401) askForKey(Boolean(key));
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error?.message ?? `The server answers ${answer.status}.`);
}

function askForKey(isWrong) {
  sessionStorage.removeItem("impresa-key");
  $("key-help").textContent = isWrong ? "The server does not know this key." : $("key-help").textContent;
  $("key-form").hidden = false;
  $("key").focus();
}

// What the server can do

async function start() {
  try {
    info = await (await call("info")).json();
  } catch (fault) {
    $("about").textContent = fault.message;
    return;
  }
  const index = info.index;
  document.title = `${info.name}: Impresa`;
  $("name").textContent = info.name;
  $("about").textContent = index
    ? `${index.rows.toLocaleString("en")} rows, ${index.width} dimensions` + (index.trained ? "" : ", shorter ones untrained")
    : info.can.ask ? "answers questions" : "embeds";
  $("key-form").hidden = true;
  $("no-index").hidden = Boolean(index);
  $("search").hidden = !index;
  $("ask").hidden = !info.can.ask;
  if (!index) return;
  for (const [kind, id] of [["text", "by-words"], ["image", "by-picture"], ["sound", "by-sound"]])
    $(id).hidden = !info.can[kind];
  const slider = $("dimension");
  slider.max = index.dimensions.length - 1;
  slider.value = slider.max;
  $("dimensions").hidden = index.dimensions.length < 2;
  showDimension();
}

const dimension = () => info.index.dimensions[$("dimension").value];

function showDimension() {
  const text = `${dimension()} of ${info.index.width}`;
  $("dimension-now").textContent = text;
  $("dimension").setAttribute("aria-valuetext", text);
}

// Searching

function queryOf() {
  const words = $("words").value.trim();
  const query = parts.map(({kind, value}) => ({[kind]: value}));
  return words ? [{text: words}, ...query] : query;
}

async function search(query = queryOf()) {
  searching?.abort();
  $("error").textContent = "";
  if (!query.length) {
    $("error").textContent = `Say what to search for, or add a picture${info.can.sound ? " or a sound" : ""}.`;
    return;
  }
  const mine = searching = new AbortController();
  const body = {query, top: TOP, dimensions: dimension(), compare: true, with_vector: true};
  if (!$("again").checked) body.shortlist = TOP;
  document.body.classList.add("busy");
  try {
    const found = await (await call("search", body, mine.signal)).json();
    asked = {vector: found.vector};
    showResults(found);
  } catch (fault) {
    if (fault.name !== "AbortError") $("error").textContent = fault.message;
  } finally {
    if (searching === mine) document.body.classList.remove("busy");
  }
}

const milliseconds = (value) => value == null ? "–" : `${value < 10 ? value.toFixed(2) : Math.round(value)} ms`;

function showResults(found) {
  const count = found.results.length;
  $("recall").textContent = found.recall == null ? "–" : `${Math.round(100 * found.recall)}% of the nearest ${count}`;
  $("scan").textContent = milliseconds(found.milliseconds);
  $("exact").textContent = milliseconds(found.exact_milliseconds);
  $("status").textContent = count === 1 ? "1 result" : `${count} results`;
  $("results").replaceChildren(...found.results.map(card));
}

function card(result) {
  const words = (result.caption ?? result.label ?? result.name).split("\n", 1)[0];
  const picture = result.thumbnail
    ? make("img", {src: result.thumbnail, alt: ""})
    : make("span", {className: "no-picture", textContent: result.modality});
  const button = make("button", {type: "button", title: "Show what is near"}, picture,
    make("bdi", {className: "words", textContent: words}),
    make("span", {className: "facts", title: result.name, textContent: `${result.score.toFixed(3)} · `}));
  button.lastChild.append(make("bdi", {textContent: result.name}));
  button.addEventListener("click", () => showNeighbours(result, words));
  return make("li", {}, button, ...(result.sound ? [player(result, words)] : []));
}

function player(result, words) {  // a button until it is wanted: the file is fetched with the key, as no element can
  const play = make("button", {type: "button", className: "play", textContent: "▶ Play", ariaLabel: `Play ${words}`});
  play.addEventListener("click", async () => {
    try {
      const file = await (await call(result.sound)).blob();
      const audio = make("audio", {src: URL.createObjectURL(file), controls: true, ariaLabel: words});
      const held = document.activeElement === play;
      play.replaceWith(audio);
      if (held) audio.focus();
      await audio.play().catch(() => null);  // a browser may want another click
    } catch (fault) {
      $("error").textContent = fault.message;
    }
  });
  return play;
}

function showNeighbours(result, words) {
  $("words").value = "";
  parts = [{kind: "id", value: result.id, name: words, picture: result.thumbnail}];
  showParts();
  $("search").scrollIntoView({block: "start"});
  search();
}

function showParts() {
  $("parts").replaceChildren(...parts.map((part, number) => {
    const remove = make("button", {type: "button", textContent: "✕", ariaLabel: `Remove ${part.name}`});
    remove.addEventListener("click", () => {
      parts.splice(number, 1);
      showParts();
      ($("parts").querySelector("button") ?? $("words")).focus();
      if (queryOf().length) search();
    });
    const picture = part.picture ? [make("img", {src: part.picture, alt: ""})] : [];
    return make("li", {}, ...picture, make("bdi", {textContent: part.name}), remove);
  }));
}

// Files: chosen, dropped or pasted

const asDataUrl = (blob) => new Promise((done, fail) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => fail(new Error("The file cannot be read."));
  reader.readAsDataURL(blob);
});

async function pictureOf(file) {  // photographs of today's phones are larger than a server needs to see
  if (file.size <= LARGEST_BYTES) return asDataUrl(file);
  const bitmap = await createImageBitmap(file).catch(() => { throw new Error("The picture cannot be read."); });
  const scale = Math.min(1, LARGEST_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", {width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale)});
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function kindOf({type, name}) {  // systems name the types of sounds differently, or not at all
  if (type.startsWith("image/")) return "image";
  return type.startsWith("audio/") || /\.(wav|flac|og[ga]|opus|mp3)$/i.test(name) ? "sound" : null;
}

async function add(file) {
  const kind = kindOf(file), isPicture = kind === "image";
  $("error").textContent = "";
  try {
    if (!kind || !info.can[kind]) throw new Error(`${file.name || "This"} is nothing that can be searched for here.`);
    const value = isPicture ? await pictureOf(file) : await asDataUrl(file.slice(0, file.size, "audio/any"));
    parts = [{kind, value, name: file.name || kind, picture: isPicture ? value : null}];
    showParts();
    await search();
  } catch (fault) {
    $("error").textContent = fault.message;
  }
}

async function take(files) {
  const file = [...files].find(kindOf) ?? files[0];
  if (!file || !info) return;
  if (info.index) await add(file);
  else if (info.can.ask) await choose(file);
}

// Asking

async function choose(file) {
  $("ask-error").textContent = "";
  try {
    subject = await pictureOf(file);
    $("subject").src = subject;
    $("subject").hidden = false;
  } catch (fault) {
    $("ask-error").textContent = fault.message;
  }
}

async function ask() {
  answering?.abort();
  $("ask-error").textContent = $("answer").textContent = "";
  if (!subject) {
    $("ask-error").textContent = "Choose a picture first.";
    return;
  }
  const mine = answering = new AbortController();
  const content = [{type: "image_url", image_url: {url: subject}}, {type: "text", text: $("question").value}];
  const body = {model: info.model, messages: [{role: "user", content}], stream: true};
  $("stop").hidden = false;
  $("answer").ariaBusy = "true";  // read out once it is whole
  try {
    const answer = await call("v1/chat/completions", body, mine.signal);
    for await (const data of events(answer.body)) {
      if (data.error) throw new Error(data.error.message);
      $("answer").append(data.choices?.[0]?.delta?.content ?? "");
    }
  } catch (fault) {
    if (fault.name !== "AbortError") $("ask-error").textContent = fault.message;
  } finally {
    if (answering === mine) {
      $("stop").hidden = true;
      $("answer").ariaBusy = "false";
    }
  }
}

async function* events(stream) {  // server-sent events, until the one that says [DONE]
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// Events

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("impresa-key", $("key").value.trim());
  start();
});
$("search-form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("ask-form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask-form").requestSubmit();
  }
});
$("stop").addEventListener("click", () => answering?.abort());
$("dimension").addEventListener("input", () => { showDimension(); if (asked) search([asked]); });
$("again").addEventListener("change", () => { if (asked) search([asked]); });
for (const [id, use] of [["picture", add], ["sound", add], ["subject-file", choose]])
  $(id).addEventListener("change", ({target}) => {
    if (target.files.length) use(target.files[0]);
    target.value = "";  // so that the same file can be chosen again
  });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  take(event.clipboardData.files);
});
start();
