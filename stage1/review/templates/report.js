"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const OUTCOMES = { hit: "hit", alarm: "false alarm", miss: "miss", unknown: "no label" };
const MARKS = { true: "Crime", false: "Not crime", unsure: "Unsure" };
const FRAME_MS = 130; // of a frame in the loop
const PAGE = 40, VIDEO_PAGE = 25;
const SVG = "http://www.w3.org/2000/svg";

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function draw(parent, tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.appendChild(element);
  return element;
}

// ---- review labels (marks), stored in this browser for each run

const marks = new Map(); // key → { mark: "true", "false", "unsure" or null, note }
const before = []; // for undo: [key, entry]
const store = "stage1-marks-" + data.run;
try {
  for (const [key, entry] of Object.entries(JSON.parse(localStorage.getItem(store) || "{}"))) {
    marks.set(key, typeof entry === "string" ? { mark: entry, note: "" } : entry);
  }
} catch { /* without local storage, marks last as long as the page */ }

function markOf(key) { return marks.get(key)?.mark ?? null; }

function setEntry(key, entry, remember = true) {
  if (remember) before.push([key, marks.get(key)]);
  if (!entry || (!entry.mark && !entry.note)) marks.delete(key); else marks.set(key, entry);
  try { localStorage.setItem(store, JSON.stringify(Object.fromEntries(marks))); } catch { /* as above */ }
  const card = $("items").querySelector(`[data-key="${key}"]`);
  if (card) showMark(card, key);
  showCount();
}

function setMark(item, mark) { setEntry(item.key, { mark, note: marks.get(item.key)?.note ?? "" }); }

function undo() {
  const last = before.pop();
  if (!last) return;
  setEntry(last[0], last[1], false);
  const position = shown.findIndex((item) => item.key === last[0]);
  if (position >= 0) select(position);
}

function showMark(card, key) {
  for (const mark of Object.keys(MARKS)) card.querySelector("." + mark).setAttribute("aria-pressed", markOf(key) === mark);
  card.querySelector(".note input").value = marks.get(key)?.note ?? "";
}

function csvCell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

const COLUMNS = ["shards", "key", "mark", "source", "clip_index", "start_seconds", "end_seconds", "confidence", "class", "label", "note"];

function marksAsCsv() {
  const rows = [COLUMNS];
  for (const item of data.items) {
    if (!markOf(item.key)) continue;
    rows.push([data.shards, item.key, markOf(item.key), item.source, item.clip_index, item.seconds[0], item.seconds[item.seconds.length - 1],
      item.confidence, item.class, item.label, marks.get(item.key).note]);
  }
  return rows.map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
}

function exportMarks() {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([marksAsCsv()], { type: "text/csv" }));
  link.download = "marks.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function parseCsv(text) {
  const rows = [[""]];
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const row = rows[rows.length - 1], letter = text[i];
    if (quoted) {
      if (letter !== '"') row[row.length - 1] += letter;
      else if (text[i + 1] === '"') { row[row.length - 1] += '"'; i++; } else quoted = false;
    } else if (letter === '"') quoted = true;
    else if (letter === ",") row.push("");
    else if (letter === "\n") rows.push([""]);
    else if (letter !== "\r") row[row.length - 1] += letter;
  }
  return rows.filter((row) => row.length > 1);
}

async function importMarks(file) {
  const [head, ...rows] = parseCsv(await file.text());
  const known = new Set(data.items.map((item) => item.key));
  let taken = 0;
  for (const row of rows) {
    const fields = Object.fromEntries(head.map((name, i) => [name, row[i]]));
    if (known.has(fields.key) && MARKS[fields.mark] && (!fields.shards || fields.shards === data.shards)) {
      setEntry(fields.key, { mark: fields.mark, note: fields.note ?? "" });
      taken += 1;
    }
  }
  showCount();
  $("count").textContent += `; ${taken} of ${rows.length} labels of ${file.name} imported`;
}

// ---- detections

const videoOf = new Map(data.videos.map((video) => [video.source, video]));
const best = new Map(), sizes = new Map(); // group → highest confidence, and number of clips
for (const item of data.items) {
  const video = videoOf.get(item.source), end = item.seconds[item.seconds.length - 1];
  item.event = video ? video.events.find((event) => event.start <= end && event.end >= item.seconds[0]) ?? null : null;
  item.group = item.source + "\n" + (item.event ? item.event.start : "");
  item.camera = video?.camera ?? "";
  best.set(item.group, Math.max(best.get(item.group) ?? 0, item.confidence));
  sizes.set(item.group, (sizes.get(item.group) ?? 0) + 1);
}
const numbers = new Map(data.videos.map((video, i) => [video.source, i + 1]));
// The path of a video with a class may name the class, so it is hidden with the ground truth.
const nameOf = (source, className) => className === null || truth() ? source : `video ${numbers.get(source) ?? ""}`;
const truth = () => $("truth").checked;

let shown = data.items, page = 0, current = -1; // current: position in `shown`

function matches(item) {
  const text = $("query").value.trim().toLowerCase();
  return (!truth() || ((!$("class").value || (item.class || "") === $("class").value.slice(1)) && $("outcome-" + item.outcome).checked))
    && (truth() || item.outcome !== "miss") // a miss is known by the ground truth alone
    && item.confidence * 100 >= Number($("confidence").value)
    && (!$("marked").value || $("marked").value === (markOf(item.key) ?? "none"))
    && (!text || nameOf(item.source, item.class).toLowerCase().includes(text) || (truth() && item.key.toLowerCase().includes(text)));
}

const ORDERS = {
  event: (a, b) => best.get(b.group) - best.get(a.group) || (a.group < b.group ? -1 : a.group > b.group ? 1 : 0),
  strongest: (a, b) => b.confidence - a.confidence,
  weakest: (a, b) => a.confidence - b.confidence,
  camera: (a, b) => a.camera.localeCompare(b.camera) || (a.began ?? 0) - (b.began ?? 0),
  video: (a, b) => a.row - b.row,
};

function refilter() {
  $("confidence-shown").textContent = $("confidence").value + " %";
  shown = data.items.filter(matches).sort((a, b) => ORDERS[$("sort").value](a, b) || a.row - b.row);
  page = 0;
  current = -1;
  showPage();
}

function showCount() {
  const count = data.items.filter((item) => markOf(item.key)).length;
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")} shown, ${count} labelled`;
}

function showPage() {
  const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
  page = Math.min(page, last);
  stopLoops();
  $("items").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map((item, i) => card(item, page * PAGE + i)));
  $("page").textContent = `page ${page + 1} of ${last + 1}`;
  $("previous").disabled = page === 0;
  $("next").disabled = page === last;
  showCount();
}

function isGrouped(item) {
  return $("sort").value === "camera" || ($("sort").value === "event" && sizes.get(item.group) > 1);
}

function card(item, position) {
  const article = make("article", `item ${item.outcome}`), name = nameOf(item.source, item.class);
  article.setAttribute("role", "listitem");
  article.dataset.key = item.key;
  article.tabIndex = -1;
  article.setAttribute("aria-label", `${name}, ${item.when}, confidence ${percent(item.confidence)}` + (truth() ? `, ${OUTCOMES[item.outcome]}` : ""));
  const previous = position % PAGE ? shown[position - 1] : null;
  if (isGrouped(item) && !(previous?.group === item.group && previous.camera === item.camera)) {
    article.appendChild(make("div", "group", [item.camera, name, item.event?.text].filter(Boolean).join(" · ")));
  }
  const header = article.appendChild(make("header"));
  header.appendChild(make("h3", "", name));
  header.appendChild(make("span", `badge of-truth ${item.outcome}`, OUTCOMES[item.outcome]));
  const facts = header.appendChild(make("span", "facts"));
  if (item.class) facts.appendChild(make("span", "of-truth", item.class + " · "));
  facts.append([item.when, item.clock, item.camera].filter(Boolean).join(" · ") + " · ");
  facts.appendChild(make("b", "", percent(item.confidence)));
  const buttons = header.appendChild(make("span", "marks"));
  for (const [mark, label] of Object.entries(MARKS)) {
    const button = buttons.appendChild(make("button", mark, label));
    button.type = "button";
    button.setAttribute("aria-label", `Label as ${label.toLowerCase()}: ${name}, ${item.when}`);
    button.addEventListener("click", () => { select(position, false); setMark(item, markOf(item.key) === mark ? null : mark); });
  }
  if (sourceOf(item)) {
    const play = buttons.appendChild(make("button", "", "Play"));
    play.type = "button";
    play.setAttribute("aria-label", `Play the video: ${name}, ${item.when}`);
    play.addEventListener("click", () => playItem(item));
  }
  const note = header.appendChild(make("div", "note")).appendChild(make("input"));
  note.placeholder = "Note";
  note.setAttribute("aria-label", `Note on ${name}, ${item.when}`);
  note.addEventListener("change", () => setEntry(item.key, { mark: markOf(item.key), note: note.value.trim() }));
  showMark(article, item.key);
  article.append(...strip(item));
  article.addEventListener("focusin", () => { if (current !== position) select(position, false); });
  if (!stillness.matches) {
    article.addEventListener("mouseenter", () => startLoop(article, item));
    article.addEventListener("mouseleave", () => { if (current !== position) stopLoop(article, item); });
  }
  return article;
}

function strip(item) {
  if (!item.image) return [make("div", "none", item.no_image)];
  const body = make("div", "body"), n = item.times.length;
  body.style.setProperty("--strip", `url("data:image/jpeg;base64,${item.image}")`);
  body.style.setProperty("--n", n);
  const loop = body.appendChild(make("button", "loop"));
  loop.type = "button";
  loop.setAttribute("aria-label", `Enlarge: ${n} frames, ${item.when}`);
  loop.addEventListener("click", () => loop.closest(".item").classList.toggle("large"));
  const side = body.appendChild(make("div"));
  const frames = side.appendChild(make("div", "strip"));
  frames.setAttribute("role", "img");
  frames.setAttribute("aria-label", `${n} frames, ${item.when}`);
  for (let i = 0; i < n; i++) {
    const frame = frames.appendChild(make("i", item.top.includes(i) ? "top" : ""));
    frame.style.backgroundPosition = place(i, n);
    frame.style.aspectRatio = item.aspect;
  }
  loop.style.aspectRatio = item.aspect;
  const times = make("div", "times");
  times.setAttribute("aria-hidden", "true");
  item.times.forEach((time, i) => times.appendChild(make(item.top.includes(i) ? "b" : "span", "", time)));
  if (item.attention) side.append(bars(item), times);
  else side.append(times, make("div", "none", "Not detected: its attention is not among the outputs."));
  showFrame(body, item, item.top.length ? item.top[0] : Math.floor(n / 2));
  return [body];
}

// ---- the loop of frames

const stillness = matchMedia("(prefers-reduced-motion: reduce)");
const loops = new Map(); // card → timer

function place(i, n) { return n > 1 ? `${100 * i / (n - 1)}% 0` : "0 0"; }

function showFrame(card, item, i) {
  card.querySelector(".loop").style.backgroundPosition = place(i, item.times.length);
  card.querySelectorAll(".strip i").forEach((frame, j) => frame.classList.toggle("now", j === i && loops.has(card)));
}

function startLoop(card, item) {
  if (!item.image || loops.has(card)) return;
  let i = 0;
  loops.set(card, setInterval(() => showFrame(card, item, i++ % item.times.length), FRAME_MS));
}

function stopLoop(card, item) {
  if (!loops.has(card)) return;
  clearInterval(loops.get(card));
  loops.delete(card);
  showFrame(card, item, item.top.length ? item.top[0] : Math.floor(item.times.length / 2));
}

function stopLoops() {
  for (const timer of loops.values()) clearInterval(timer);
  loops.clear();
}

function toggleLoop() {
  const card = $("items").children[current - page * PAGE], item = shown[current];
  if (!card || !item) return;
  if (loops.has(card)) stopLoop(card, item); else startLoop(card, item);
}

// ---- the video itself

function sourceOf(item) { return item.event?.clip ?? videoOf.get(item.source)?.uri ?? null; }

function playItem(item) {
  if (item.event?.clip) play(item.event.clip, 0); else play(videoOf.get(item.source)?.uri, item.seconds[0]);
}

function play(uri, seconds) {
  if (!uri) return;
  $("player-note").textContent = "";
  $("video").src = `${uri}#t=${seconds}`;
  $("player").showModal();
  $("video").play().catch(() => { $("player-note").textContent = `This browser cannot play ${uri}`; });
}

$("player").addEventListener("close", () => { $("video").removeAttribute("src"); $("video").load(); });

function bars(item) {
  const n = item.attention.length, highest = Math.max(2 / n, ...item.attention);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "bars");
  svg.setAttribute("viewBox", `0 0 ${n} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const marked = item.top.map((i) => `${item.times[i]} (${Math.round(100 * item.attention[i])} %)`).join(", ");
  svg.setAttribute("aria-label", marked ? "Frames with the highest weights: " + marked : "All frames have about equal weights");
  item.attention.forEach((weight, i) => {
    const height = Math.max(0.02, weight / highest);
    const bar = draw(svg, "rect", { x: i + 0.15, width: 0.7, y: 1 - height, height, class: item.top.includes(i) ? "top" : "share" });
    draw(bar, "title", {}).textContent = `${item.times[i]}: ${(100 * weight).toFixed(1)} %`;
  });
  draw(svg, "line", { x1: 0, x2: n, y1: 1 - 1 / n / highest, y2: 1 - 1 / n / highest });
  return svg;
}

function percent(value) { return (100 * value).toFixed(1) + " %"; }

function select(position, focus = true) {
  if (!shown.length) return;
  position = Math.max(0, Math.min(shown.length - 1, position));
  if (Math.floor(position / PAGE) !== page) { page = Math.floor(position / PAGE); showPage(); }
  current = position;
  [...$("items").children].forEach((card, i) => {
    const isCurrent = page * PAGE + i === position;
    card.classList.toggle("current", isCurrent);
    if (!isCurrent) stopLoop(card, shown[page * PAGE + i]); else if (!stillness.matches) startLoop(card, shown[position]);
  });
  if (focus) {
    const card = $("items").children[position - page * PAGE];
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }
}

function turn(pages, focus) {
  const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
  page = Math.max(0, Math.min(last, page + pages));
  current = page * PAGE - 1;
  showPage();
  if (focus) select(page * PAGE);
}

const KEYS = {
  j: () => select(current + 1), k: () => select(current - 1),
  t: () => markCurrent("true"), f: () => markCurrent("false"), s: () => markCurrent("unsure"), u: undo, g: nextUnlabelled,
  m: () => $("items").querySelector(".current .note input")?.focus(), " ": toggleLoop, Enter: () => { if (shown[current]) playItem(shown[current]); },
  n: () => turn(1, true), p: () => turn(-1, true), e: exportMarks, "/": () => { $("filters").open = true; $("query").focus(); },
};

function markCurrent(mark) {
  if (current < 0 || !shown[current]) return;
  setMark(shown[current], mark);
  select(current + 1);
}

function nextUnlabelled() {
  const order = [...shown.keys()].map((i) => (current + 1 + i) % shown.length);
  const position = order.find((i) => !markOf(shown[i].key));
  if (position !== undefined) select(position);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input[type=search], .note input, select, dialog")) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.closest(".note"))) event.target.blur();
    return;
  }
  if ([" ", "Enter"].includes(event.key) && event.target.closest("button, summary, label, input")) return;
  if (KEYS[event.key]) { event.preventDefault(); KEYS[event.key](); }
});

const classes = [...new Set(data.items.map((item) => item.class || ""))].sort();
for (const name of classes) {
  const option = $("class").appendChild(make("option", "", name || "no class"));
  option.value = "=" + name;
}
for (const [name, label] of Object.entries(OUTCOMES)) {
  const count = data.items.filter((item) => item.outcome === name).length;
  const wrapper = make("label", "", "");
  const box = wrapper.appendChild(make("input"));
  box.type = "checkbox";
  box.id = "outcome-" + name;
  box.checked = true;
  wrapper.append(`${label} (${count})`);
  wrapper.hidden = count === 0;
  wrapper.style.display = count ? "" : "none";
  box.addEventListener("change", refilter);
  $("outcomes").appendChild(wrapper);
}
for (const id of ["sort", "class", "marked"]) $(id).addEventListener("change", refilter);
for (const id of ["query", "confidence"]) $(id).addEventListener("input", refilter);
$("previous").addEventListener("click", () => turn(-1, false));
$("next").addEventListener("click", () => turn(1, false));
$("export").addEventListener("click", exportMarks);
$("import").addEventListener("change", () => { if ($("import").files[0]) importMarks($("import").files[0]); });
$("undo").addEventListener("click", undo);
$("next-unlabelled").addEventListener("click", nextUnlabelled);
$("truth").addEventListener("change", () => { document.body.classList.toggle("truth", truth()); refilter(); refilterVideos(); });
$("sort-camera").hidden = !data.videos.some((video) => video.clocks);
$("filters").open = matchMedia("(min-width: 701px)").matches;
const TABS = ["detections", "figures"];
for (const name of TABS) {
  $("tab-" + name).addEventListener("click", () => {
    for (const other of TABS) {
      $(other).hidden = other !== name;
      $("tab-" + other).setAttribute("aria-selected", other === name);
    }
  });
}

// ---- videos over time

let videos = [], videoPage = 0;

function refilterVideos() {
  const text = $("video-query").value.trim().toLowerCase();
  videos = data.videos.filter((video) => !text || nameOf(video.source, video.class).toLowerCase().includes(text));
  if ($("video-sort").value === "score") videos.sort((a, b) => (b.highest ?? -1) - (a.highest ?? -1) || a.row - b.row);
  videoPage = 0;
  showVideos();
}

function showVideos() {
  const last = Math.max(0, Math.ceil(videos.length / VIDEO_PAGE) - 1);
  videoPage = Math.max(0, Math.min(last, videoPage));
  $("video-list").replaceChildren(...videos.slice(videoPage * VIDEO_PAGE, (videoPage + 1) * VIDEO_PAGE).map(timeline));
  $("video-count").textContent = `${videos.length.toLocaleString("en")} of ${data.videos.length.toLocaleString("en")} videos`;
  $("video-page").textContent = `page ${videoPage + 1} of ${last + 1}`;
  $("video-previous").disabled = videoPage === 0;
  $("video-next").disabled = videoPage === last;
}

function timeline(video) {
  const section = make("section", "panel video");
  section.setAttribute("role", "listitem");
  const header = section.appendChild(make("header"));
  const name = nameOf(video.source, video.class);
  header.appendChild(make("h3", "", name));
  const found = `${video.events.length} event${video.events.length === 1 ? "" : "s"} found`;
  const known = video.truth === null ? "no ground truth" : `${video.truth.length} true`;
  header.appendChild(make("span", "soft small", (truth() ? [video.class, video.length, found, known] : [video.length, found]).filter(Boolean).join(" · ")));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "timeline");
  svg.setAttribute("viewBox", "0 0 1000 74");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${name}: highest score ${video.highest === null ? "none" : percent(video.highest)}; ${found}`
    + video.events.map((event) => `, ${event.text}`).join("") + (truth() ? `; ${known}` + (video.truth || []).map((event) => `, ${event.text}`).join("") : ""));
  if (video.uri) {
    svg.classList.add("seeks");
    svg.addEventListener("click", (event) => play(video.uri, video.duration * event.offsetX / svg.clientWidth));
  }
  const x = (seconds) => 1000 * seconds / video.duration, y = (score) => 50 - 46 * score;
  draw(svg, "rect", { class: "rail", x: 0, width: 1000, y: 54, height: 8 });
  draw(svg, "rect", { class: "rail", x: 0, width: 1000, y: 65, height: 8 });
  draw(svg, "line", { class: "threshold", x1: 0, x2: 1000, y1: y(data.threshold), y2: y(data.threshold) });
  let path = "", pen = false;
  video.scores.forEach((score, i) => {
    if (score === null) { pen = false; return; }
    const left = 1000 * i / video.scores.length, right = 1000 * (i + 1) / video.scores.length;
    path += `${pen ? "L" : "M"}${left.toFixed(1)} ${y(score).toFixed(1)}L${right.toFixed(1)} ${y(score).toFixed(1)}`;
    pen = true;
  });
  draw(svg, "path", { class: "score", d: path });
  for (const [list, name, top] of [[video.events, "event", 54], [video.truth || [], "truth", 65]]) {
    for (const event of list) {
      const bar = draw(svg, "rect", { class: name, x: x(event.start), width: Math.max(3, x(event.end) - x(event.start)), y: top, height: 8 });
      draw(bar, "title", {}).textContent = event.text;
    }
  }
  section.appendChild(svg);
  const ends = section.appendChild(make("div", "ends"));
  const clocks = video.clocks ? video.clocks.map((clock) => ` (${clock})`) : ["", ""];
  ends.append(make("span", "", "0:00" + clocks[0]), make("span", "", video.length + clocks[1]));
  return section;
}

$("video-query").addEventListener("input", refilterVideos);
$("video-sort").addEventListener("change", refilterVideos);
$("video-previous").addEventListener("click", () => { videoPage -= 1; showVideos(); });
$("video-next").addEventListener("click", () => { videoPage += 1; showVideos(); });

refilter();
refilterVideos();
