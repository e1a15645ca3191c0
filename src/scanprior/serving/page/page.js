// The page: asks the server, shows what it answers. Everything from outside is set as text, never as HTML.
import { View, heatOverlay, maskColour, maskOverlay, pictureOf } from "/page/view.js";

const $ = (id) => document.getElementById(id);
// `turn` counts sets of files, `looks` what is looked at: what was asked for an earlier one is not shown any more.
const state = { models: [], limits: { files: 8, upload_mb: 200 }, items: [], chosen: -1, explained: new Map(), turn: 0, looks: 0 };

let ready = null;

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "line"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const UNLIKE = "unlike: do not rely on it";
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const say = (text) => { $("status").textContent = text; };

function complain(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text || "";
}

class Refused extends Error {
  constructor(status, text, body) {
    super(text);
    this.status = status;
    this.body = body;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refused(0, "The server does not answer. Is it still running?", null);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  if (response.status === 401) openGate();
  throw new Refused(response.status, body?.detail || `The server refused this (${response.status}).`, body);
}

function send(path, parameters, files) {
  const form = new FormData();
  // Names of files stay here: the server is told the suffix alone.
  for (const file of files) form.append("files", file, `image${(file.name.match(/\.[A-Za-z0-9]{1,6}$/) || [""])[0]}`);
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== ""));
  return ask(`${path}?${query}`, { method: "POST", body: form });
}

// ---- the token -----------------------------------------------------------------------------------------------------

function openGate() {
  if (!$("gate").open) $("gate").showModal();
  $("token").focus();
}

$("gate-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const headers = { Authorization: `Bearer ${$("token").value}` };
  const response = await fetch("/session", { method: "POST", headers }).catch(() => null);
  $("gate-error").hidden = Boolean(response?.ok);
  if (!response?.ok) {
    $("gate-error").textContent = response ? "This is not the token." : "The server does not answer.";
    return;
  }
  $("token").value = "";
  $("gate").close();
  ready = begin();
});

// ---- images --------------------------------------------------------------------------------------------------------

const model = () => state.models.find((each) => each.name === $("model").value);
const view = new View($("canvas"), (shown) => {
  $("level").value = shown.level;
  $("width").value = shown.width;
  $("level-value").textContent = percent(shown.level / 65535);
  $("width-value").textContent = percent(shown.width / 65535);
  $("invert").setAttribute("aria-pressed", String(shown.inverted));
});

async function look(files) {
  if (!files.length) return;
  complain("");
  await ready; // the models, of which one is to answer
  if (!model()) return;
  const turn = ++state.turn;
  state.looks++;
  state.items = files.map((file) => ({ file, frame: 1, result: null }));
  state.explained = new Map();
  state.chosen = -1;
  $("results").hidden = true;
  say(files.length === 1 ? "Looking at the image …" : `Looking at ${files.length} images …`);
  // A few requests of a few files each: the first answers come early, and no request grows too large.
  const parts = await partsOf(state.items);
  if (turn !== state.turn) return;
  let done = state.items.filter((item) => item.result).length;
  const worker = async () => {
    for (let part = parts.shift(); part && turn === state.turn; part = parts.shift()) {
      await answerFor(part, turn);
      done += part.length;
      if (turn === state.turn && files.length > 8) say(`${done} of ${files.length} images`);
    }
  };
  await Promise.all([worker(), worker()]);
  if (turn !== state.turn) return;
  const failed = state.items.filter((item) => item.result.error).length;
  say(`${files.length - failed} of ${files.length} image${files.length === 1 ? "" : "s"} answered${failed ? `, ${failed} could not be read` : ""}.`);
  showTable();
  const first = state.items.findIndex((item) => !item.result.error);
  if (first >= 0) await choose(first);
  else $("detail").hidden = true;
  if (files.length === 1 && failed) complain(`${files[0].name} could not be read: ${state.items[0].result.error}`);
  $("results").hidden = files.length === 1 && failed === 1;
}

// What one request takes: a few files, and no more megabytes than the server allows. What cannot be read is left out.
async function partsOf(items) {
  const parts = [];
  let held = Infinity;
  for (const item of items) {
    try {
      await item.file.slice(0, 1).arrayBuffer();
    } catch {
      item.result = { error: "it is a folder, or not readable; choose the files in it" };
      continue;
    }
    const most = Math.min(8, state.limits.files);
    if (held + item.file.size > 0.95e6 * state.limits.upload_mb || parts.at(-1).length >= most) {
      parts.push([]);
      held = 0;
    }
    parts.at(-1).push(item);
    held += item.file.size;
  }
  return parts;
}

async function answerFor(items, turn) {
  const asked = { model: $("model").value, similar: $("similar").value, each: true };
  for (let attempt = 0; turn === state.turn; attempt++) {
    try {
      const { results } = await (await send("/predict", asked, items.map((item) => item.file))).json();
      for (const result of results) items[result.file].result = result;
      return;
    } catch (error) {
      if (error.status === 429 && attempt < 20) {
        await new Promise((after) => setTimeout(after, 1000));
        continue;
      }
      for (const item of items) item.result = { error: error.message };
      if (turn === state.turn) complain(error.message);
      return;
    }
  }
}

function showTable() {
  $("table-part").hidden = state.items.length < 2;
  const about = model();
  const heads = ["Image", ...(about.kind === "segmentation" ? about.classes.map((name) => `${name} (pixels)`) : verdictHeads(about)), ...(about.false_alarms === null ? [] : ["Training images"])];
  $("table").tHead.replaceChildren(element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text))));
  $("table").tBodies[0].replaceChildren(...state.items.map((item, number) => {
    const open = element("button", { type: "button", disabled: Boolean(item.result.error), onclick: () => choose(number) }, item.file.name);
    const cells = item.result.error
      ? [element("td", { class: "bad", colspan: heads.length - 1 }, item.result.error)]
      : cellsOf(about, item.result).map((text) => element("td", { class: text === UNLIKE ? "bad" : null }, text));
    return element("tr", {}, element("td", {}, open), ...cells);
  }));
}

function verdictHeads(about) {
  const heads = about.kind === "multiclass" ? ["Most probable", "Probability"] : ["Highest probability"];
  if (Object.keys(about.operating_points).length) heads.push("Above operating point");
  if (about.coverage !== null) heads.push(`Set (${Math.round(100 * about.coverage)} %)`);
  return heads;
}

function cellsOf(about, result) {
  const unlike = about.false_alarms === null ? [] : [result.outlier?.flagged ? UNLIKE : "not flagged"];
  if (result.masks) return [...about.classes.map((name) => result.masks[name].pixels.toLocaleString("en")), ...unlike];
  const top = Object.entries(result.probabilities).sort((a, b) => b[1] - a[1])[0];
  const cells = about.kind === "multiclass" ? [result.predicted, percent(top[1])] : [`${top[0]} ${percent(top[1])}`];
  if (Object.keys(about.operating_points).length) cells.push(above(result).join(", ") || "none");
  if (about.coverage !== null) cells.push(setText(result));
  return [...cells, ...unlike];
}

function above(result) {
  return Object.entries(result.above_operating_point || {}).filter(([, is]) => is).map(([name]) => name);
}

function setText(result) {
  if (!result.conformal_set) return "not known";
  return result.conformal_set.map((name) => (result.undecided.includes(name) ? `${name}?` : name)).join(", ") || "none";
}

async function choose(number) {
  const item = state.items[number];
  const mine = ++state.looks;
  state.chosen = number;
  for (const [place, row] of [...$("table").tBodies[0].rows].entries()) {
    row.classList.toggle("chosen", place === number);
    row.querySelector("button").setAttribute("aria-current", String(place === number));
  }
  $("results").hidden = false;
  $("detail").hidden = false;
  $("detail-title").textContent = item.file.name;
  view.clear();
  $("explain-note").textContent = "";
  showVerdict(item.result);
  showSimilar(item.result);
  $("explain-part").hidden = !model().explain.length;
  $("frame-part").hidden = !(item.result.frames > 1);
  $("frame").max = item.result.frames;
  $("frame").value = item.frame;
  $("frames").textContent = `of ${item.result.frames}`;
  try {
    const picture = await pictureOf(await send("/image", { frame: item.frame - 1 }, [item.file]));
    if (mine !== state.looks) return;
    view.show(picture);
    $("canvas").setAttribute("aria-label", `${item.file.name}, ${item.result.width} x ${item.result.height} pixels, ${picture.bits} bits`);
    if (!item.result.masks) return explain();
    const masks = await maskOverlay(model().classes.map((name) => item.result.masks[name]), picture);
    if (mine === state.looks) view.lay(masks);
  } catch (error) {
    if (mine === state.looks) complain(error.message);
  }
}

function showVerdict(result) {
  const about = model();
  const flagged = Boolean(result.outlier?.flagged);
  $("flag").hidden = !flagged;
  $("flag").replaceChildren(...(flagged ? [element("b", {}, "Unlike the training images. "), "This image is farther from what the model was trained on than nearly all of its validation images. Do not rely on the answer."] : []));
  $("verdict").replaceChildren(...(result.masks ? maskVerdict(about, result) : classVerdict(about, result)));
}

function classVerdict(about, result) {
  const rows = Object.entries(result.probabilities)
    .sort((a, b) => b[1] - a[1])
    .map(([name, value]) => {
      const point = about.operating_points[name]?.value;
      const bar = element("svg", { "aria-hidden": "true", viewBox: "0 0 100 16", preserveAspectRatio: "none" },
        element("rect", { class: "track", x: 0, y: 2, width: 100, height: 12 }),
        element("rect", { class: "value", x: 0, y: 2, width: Math.max(0.4, 100 * value), height: 12 }),
        point === undefined ? null : element("line", { x1: 100 * point, x2: 100 * point, y1: 0, y2: 16, "vector-effect": "non-scaling-stroke" }));
      const above = result.above_operating_point[name];
      return element("tr", { class: above ? "above" : null },
        element("th", { scope: "row" }, name),
        element("td", { class: "cell" }, bar),
        element("td", { class: "n" }, percent(value)),
        element("td", { class: "n muted" }, point === undefined ? "" : `${above ? "at or above" : "below"} ${percent(point)}`));
    });
  const facts = [];
  if (result.calibrated) {
    const top = Object.entries(result.calibrated).sort((a, b) => b[1] - a[1])[0];
    facts.push(["Calibrated", `${top[0]} ${percent(top[1])}`]);
  }
  if (result.conformal_set) {
    const what = about.kind === "multiclass" ? "cannot be ruled out" : "not absent; ? = cannot be decided";
    facts.push([`Set at ${Math.round(100 * about.coverage)} %`, `${setText(result)} (${what})`]);
  }
  if (result.outlier) {
    const rank = `${percent(result.outlier.p)} of validation images are as far from them, or farther`;
    const said = about.false_alarms === null ? "this run flags no image" : result.outlier.flagged ? "unlike the training images" : "not flagged";
    facts.push(["Training images", `${said} (${rank})`]);
  }
  return [
    element("h3", {}, "Probabilities"),
    element("table", { class: "bars" }, element("tbody", {}, ...rows)),
    element("p", { class: "muted" }, Object.keys(about.operating_points).length ? "The line marks the operating point, chosen on validation images." : "This run keeps no operating point."),
    element("dl", { class: "facts" }, ...facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])),
  ];
}

function maskVerdict(about, result) {
  const whole = result.width * result.height;
  const rows = about.classes.map((name, number) => {
    const swatch = element("svg", { "aria-hidden": "true", viewBox: "0 0 16 16", width: 16, height: 16 }, element("rect", { x: 0, y: 0, width: 16, height: 16, fill: maskColour(number) }));
    const { pixels } = result.masks[name];
    return element("tr", {}, element("td", {}, swatch), element("th", { scope: "row" }, name), element("td", { class: "n" }, `${pixels.toLocaleString("en")} pixels`), element("td", { class: "n muted" }, percent(pixels / whole)));
  });
  return [element("h3", {}, "Masks"), element("table", { class: "bars" }, element("tbody", {}, ...rows))];
}

function showSimilar(result) {
  $("similar-part").hidden = !result.similar?.length;
  $("cases").replaceChildren(...(result.similar || []).map((each) => {
    const labels = each.labels.join(", ") || (model().kind === "multilabel" ? "no finding labelled" : "");
    const image = each.thumbnail?.startsWith("data:image/jpeg;base64,") ? element("img", { src: each.thumbnail, alt: labels ? `Training image: ${labels}` : "Training image" }) : null;
    return element("li", {}, image, element("div", {}, labels), element("div", { class: "muted" }, `${each.similarity.toFixed(3)}`));
  }));
}

// ---- where it looks ------------------------------------------------------------------------------------------------

async function explain() {
  const item = state.items[state.chosen];
  const about = model();
  if (!about.explain.length || !view.picture) return;
  const [mine, kept] = [state.looks, state.explained];
  const asked = { class: $("class").value, method: $("method").value };
  const key = JSON.stringify([about.name, state.chosen, item.frame, asked]);
  const current = () => mine === state.looks && asked.class === $("class").value && asked.method === $("method").value;
  $("explain-note").textContent = "Looking where it looks …";
  try {
    if (!kept.has(key)) {
      const response = await send("/explain", { model: about.name, frame: item.frame - 1, ...asked }, [item.file]);
      kept.set(key, (await response.json()).results[0]);
    }
    const found = kept.get(key);
    if (!current()) return;
    const map = await heatOverlay(found.saliency_png, view.picture);
    if (!current()) return;
    view.lay(map);
    $("explain-note").textContent = `${found.methods.join(", ")}, for ${found.class}. A map shows what the score reacts to, not why.`;
  } catch (error) {
    if (current()) $("explain-note").textContent = error.message;
  }
}

// ---- a table to take away ------------------------------------------------------------------------------------------

const UNLIKE_COLUMNS = ["outlier_score", "outlier_p", "outlier"];

function csv() {
  const about = model();
  const heads = ["image", "frame", "model", "predicted", ...about.classes.map((name) => `prob:${name}`), ...about.classes.map((name) => `calibrated:${name}`), "above_operating_point", "conformal_set", ...UNLIKE_COLUMNS, "error"];
  const masks = ["image", "frame", "model", ...about.classes.map((name) => `area:${name}`), ...UNLIKE_COLUMNS, "error"];
  const rows = state.items.map(({ file, frame, result }) => {
    const first = [file.name, frame, about.name];
    const unlike = [result.outlier?.score, result.outlier?.p, result.outlier?.flagged];
    if (about.kind === "segmentation") return [...first, ...about.classes.map((name) => result.masks?.[name].pixels), ...unlike, result.error];
    return [...first, result.predicted, ...about.classes.map((name) => result.probabilities?.[name]), ...about.classes.map((name) => result.calibrated?.[name]),
      above(result).join("|"), result.conformal_set?.map((name) => (result.undecided.includes(name) ? `${name}?` : name)).join("|"), ...unlike, result.error];
  });
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`; // a spreadsheet would run it
    return /[",;\t\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [about.kind === "segmentation" ? masks : heads, ...rows].map((row) => row.map(cell).join(","));
  const link = element("a", { download: "predictions.csv", href: URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" })) });
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---- runs ----------------------------------------------------------------------------------------------------------

const runs = { list: [], notes: [], sort: "path", down: false, loaded: false };

async function showRuns() {
  if (!runs.loaded) {
    try {
      const found = await (await ask("/runs")).json();
      Object.assign(runs, { list: found.runs, notes: found.notes, loaded: true });
      $("run-note").textContent = found.folder ? `${found.runs.length} entr${found.runs.length === 1 ? "y" : "ies"}.` : "This server was started without --runs, so it lists none.";
    } catch (error) {
      $("run-note").textContent = error.message;
      return;
    }
    const metrics = [...new Set(runs.list.flatMap((run) => Object.keys(run.metrics)))];
    $("run-metric").replaceChildren(element("option", { value: "" }, "none"), ...metrics.map((name) => element("option", { value: name }, name)));
    if (metrics.includes("auroc")) $("run-metric").value = "auroc";
  }
  drawRuns();
}

const LOWER = ["brier", "ece", "log_loss", "hausdorff95", "surface_distance"];

function drawRuns() {
  const metric = $("run-metric").value;
  const words = $("run-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const columns = [["path", "Run"], ["kind", "Kind"], ["encoder", "Encoder"], ["data", "Data"], ["labels", "Labels"], ["size", "Size"], ["seed", "Seed"], ["created", "Made"], ["state", "State"]];
  const valued = (run, key) => (key === "metric" ? run.metrics[metric]?.value ?? null : Array.isArray(run[key]) ? run[key].join(", ") : run[key]);
  const told = (run) => columns.map(([key]) => String(valued(run, key) ?? "")).join(" ").toLowerCase();
  const shown = runs.list.filter((run) => words.every((word) => told(run).includes(word)));
  shown.sort((a, b) => {
    const [x, y] = [valued(a, runs.sort), valued(b, runs.sort)];
    if (x === null || x === undefined || y === null || y === undefined) return (x === null || x === undefined) - (y === null || y === undefined);
    const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return runs.down ? -order : order;
  });
  const focused = [...$("run-table").tHead.querySelectorAll("button")].indexOf(document.activeElement);
  const best = bestOf(shown, metric);
  const heads = [...columns, ...(metric ? [["metric", metric]] : []), ["report", "Report"]];
  $("run-table").tHead.replaceChildren(element("tr", {}, ...heads.map(([key, text]) => {
    if (key === "report") return element("th", { scope: "col" }, text);
    const sorted = runs.sort === key ? (runs.down ? "descending" : "ascending") : null;
    const turn = () => { runs.down = runs.sort === key ? !runs.down : key === "metric"; runs.sort = key; drawRuns(); };
    return element("th", { scope: "col", "aria-sort": sorted }, element("button", { type: "button", onclick: turn }, `${text}${sorted ? (runs.down ? " ↓" : " ↑") : ""}`));
  })));
  if (focused >= 0) $("run-table").tHead.querySelectorAll("button")[focused]?.focus();
  $("run-table").tBodies[0].replaceChildren(...shown.map((run) => {
    const cells = columns.map(([key]) => element("td", {}, key === "created" ? (run.created || "").slice(0, 10) : String(valued(run, key) ?? "")));
    if (run.reason) cells[cells.length - 1].append(element("div", { class: "muted" }, run.reason));
    if (metric) {
      const found = run.metrics[metric];
      const text = found?.value === null || found?.value === undefined ? (found?.reason || "") : found.value.toFixed(3);
      const interval = found?.low === null || found?.low === undefined ? "" : ` [${found.low.toFixed(3)} to ${found.high.toFixed(3)}]`;
      cells.push(element("td", {}, `${text}${interval}${best.has(run) ? " best" : ""}`));
    }
    const link = run.report ? element("a", { href: `/runs/report?${new URLSearchParams({ path: run.path })}`, target: "_blank", rel: "noopener" }, "Report") : "";
    return element("tr", {}, ...cells, element("td", {}, link));
  }));
  $("run-notes").replaceChildren(...runs.notes.map((text) => element("li", {}, text)));
}

// Only runs that were measured on the same images can be ranked.
function bestOf(list, metric) {
  const best = new Map();
  for (const run of list) {
    const value = run.metrics[metric]?.value;
    if (value === null || value === undefined || !run.test_set || run.state !== "finished") continue;
    const ahead = best.get(run.test_set);
    const better = ahead && (LOWER.includes(metric) ? value < ahead.metrics[metric].value : value > ahead.metrics[metric].value);
    if (!ahead || better) best.set(run.test_set, run);
  }
  return new Set(best.values());
}

// ---- beginning -----------------------------------------------------------------------------------------------------

function showModel() {
  const about = model();
  $("which").textContent = `${about.encoder}, ${about.size} px, ${about.classes.length} class${about.classes.length === 1 ? "" : "es"}`;
  $("card").href = `/models/${encodeURIComponent(about.name)}/card.html`;
  $("class").replaceChildren(element("option", { value: "" }, about.kind === "multiclass" ? "the predicted one" : "the most probable"), ...about.classes.map((name) => element("option", { value: name }, name)));
  $("method").replaceChildren(...about.explain.map((name) => element("option", { value: name }, name)));
}

async function begin() {
  try {
    const session = await (await ask("/session")).json();
    state.limits = session.limits;
    if (!session.entered) return openGate();
    state.models = await (await ask("/models")).json();
  } catch (error) {
    if (error.status !== 401) complain(error.message);
    return;
  }
  $("model").replaceChildren(...state.models.map((each) => element("option", { value: each.name }, each.name)));
  showModel();
}

function switchTo(name) {
  for (const button of document.querySelectorAll("nav button")) {
    if (button.dataset.view === name) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  $("images").hidden = name !== "images";
  $("runs").hidden = name !== "runs";
  if (name === "runs") showRuns();
}

const again = () => look(state.items.map((item) => item.file));
for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => switchTo(button.dataset.view));
$("files").addEventListener("change", () => { look([...$("files").files]); $("files").value = ""; });
$("model").addEventListener("change", () => { showModel(); again(); });
$("similar").addEventListener("change", again);
for (const id of ["class", "method"]) $(id).addEventListener("change", explain);
$("level").addEventListener("input", () => view.window(Number($("level").value), view.width));
$("width").addEventListener("input", () => view.window(view.level, Number($("width").value)));
$("opacity").addEventListener("input", () => {
  view.opacity = Number($("opacity").value) / 100;
  $("opacity-value").textContent = `${$("opacity").value} %`;
  view.draw();
});
$("opacity-value").textContent = "50 %";
$("reset").addEventListener("click", () => view.reset());
$("invert").addEventListener("click", () => { view.inverted = !view.inverted; view.draw(); });
$("csv").addEventListener("click", csv);
$("run-filter").addEventListener("input", drawRuns);
$("run-metric").addEventListener("change", drawRuns);
$("frame").addEventListener("change", async () => {
  const number = state.chosen;
  const item = state.items[number];
  const mine = ++state.looks;
  const wanted = Math.min(item.result.frames, Math.max(1, Math.round(Number($("frame").value) || 1)));
  try {
    const response = await send("/predict", { model: $("model").value, similar: $("similar").value, frame: wanted - 1 }, [item.file]);
    const result = (await response.json()).results[0];
    if (mine !== state.looks) return;
    Object.assign(item, { result, frame: wanted });
    showTable();
    await choose(number);
  } catch (error) {
    if (mine !== state.looks) return;
    $("frame").value = item.frame;
    complain(error.message);
  }
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  switchTo("images");
  look([...event.dataTransfer.files]);
});
ready = begin();
