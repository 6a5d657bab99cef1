"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const OUTCOMES = { hit: "hit", alarm: "false alarm", miss: "miss", unknown: "no label" };
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

const marks = new Map();
const store = "stage1-marks-" + data.run;
try {
  for (const [key, mark] of Object.entries(JSON.parse(localStorage.getItem(store) || "{}"))) marks.set(key, mark);
} catch { /* without local storage, marks last as long as the page */ }

function setMark(item, mark) {
  if (mark === null) marks.delete(item.key); else marks.set(item.key, mark);
  try { localStorage.setItem(store, JSON.stringify(Object.fromEntries(marks))); } catch { /* as above */ }
  const card = $("items").querySelector(`[data-key="${item.key}"]`);
  if (card) showMark(card, item);
  showCount();
}

function showMark(card, item) {
  const mark = marks.get(item.key);
  card.querySelector(".true").setAttribute("aria-pressed", mark === "true");
  card.querySelector(".false").setAttribute("aria-pressed", mark === "false");
}

function csvCell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

function marksAsCsv() {
  const rows = [["key", "mark", "source", "clip_index", "start_seconds", "end_seconds", "confidence", "class", "label"]];
  for (const item of data.items) {
    if (!marks.has(item.key)) continue;
    rows.push([item.key, marks.get(item.key), item.source, item.clip_index, item.seconds[0], item.seconds[item.seconds.length - 1],
      item.confidence, item.class, item.label]);
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

// ---- detections

let shown = data.items, page = 0, current = -1; // current: position in `shown`

function matches(item) {
  const mark = marks.get(item.key) || "none";
  const text = $("query").value.trim().toLowerCase();
  return (!$("class").value || (item.class || "") === $("class").value.slice(1))
    && item.confidence * 100 >= Number($("confidence").value)
    && $("outcome-" + item.outcome).checked
    && (!$("marked").value || $("marked").value === mark)
    && (!text || item.source.toLowerCase().includes(text) || item.key.toLowerCase().includes(text));
}

const ORDERS = {
  strongest: (a, b) => b.confidence - a.confidence,
  weakest: (a, b) => a.confidence - b.confidence,
  video: (a, b) => a.row - b.row,
  class: (a, b) => (a.class || "").localeCompare(b.class || "") || b.confidence - a.confidence,
};

function refilter() {
  $("confidence-shown").textContent = $("confidence").value + " %";
  shown = data.items.filter(matches).sort((a, b) => ORDERS[$("sort").value](a, b) || a.row - b.row);
  page = 0;
  current = -1;
  showPage();
}

function showCount() {
  const count = data.items.filter((item) => marks.has(item.key)).length;
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")} shown, ${count} marked`;
}

function showPage() {
  const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
  page = Math.min(page, last);
  $("items").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map((item, i) => card(item, page * PAGE + i)));
  $("page").textContent = `page ${page + 1} of ${last + 1}`;
  $("previous").disabled = page === 0;
  $("next").disabled = page === last;
  showCount();
}

function card(item, position) {
  const article = make("article", `item ${item.outcome}`);
  article.setAttribute("role", "listitem");
  article.dataset.key = item.key;
  article.tabIndex = -1;
  article.setAttribute("aria-label", `${item.source}, ${item.when}, confidence ${percent(item.confidence)}, ${OUTCOMES[item.outcome]}`);
  const header = article.appendChild(make("header"));
  header.appendChild(make("h3", "", item.source));
  header.appendChild(make("span", `badge ${item.outcome}`, OUTCOMES[item.outcome]));
  const facts = header.appendChild(make("span", "facts"));
  if (item.class) facts.append(item.class + " · ");
  facts.append(item.when + " · ");
  facts.appendChild(make("b", "", percent(item.confidence)));
  const buttons = header.appendChild(make("span", "marks"));
  for (const [mark, label] of [["true", "True"], ["false", "False"]]) {
    const button = buttons.appendChild(make("button", mark, label));
    button.type = "button";
    button.setAttribute("aria-label", `Mark as ${mark === "true" ? "a true" : "no true"} crime: ${item.source}, ${item.when}`);
    button.addEventListener("click", () => {
      select(position, false);
      setMark(item, marks.get(item.key) === mark ? null : mark);
    });
  }
  showMark(article, item);
  article.append(...strip(item));
  article.addEventListener("focusin", () => { if (current !== position) select(position, false); });
  return article;
}

function strip(item) {
  if (!item.image) return [make("div", "none", item.no_image)];
  const frame = make("div", "strip");
  const image = frame.appendChild(make("img"));
  image.src = "data:image/jpeg;base64," + item.image;
  image.alt = `${item.times.length} frames, ${item.when}`;
  const times = make("div", "times");
  times.setAttribute("aria-hidden", "true");
  item.times.forEach((time, i) => times.appendChild(make(item.top.includes(i) ? "b" : "span", "", time)));
  if (!item.attention) return [frame, times, make("div", "none", "Not detected: its attention is not among the outputs.")];
  return [frame, bars(item), times];
}

function bars(item) {
  const n = item.attention.length, highest = Math.max(2 / n, ...item.attention);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "bars");
  svg.setAttribute("viewBox", `0 0 ${n} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "Most attended frames: " + item.top.map((i) => `${item.times[i]} (${Math.round(100 * item.attention[i])} %)`).join(", "));
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
  [...$("items").children].forEach((card, i) => card.classList.toggle("current", page * PAGE + i === position));
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
  t: () => markCurrent("true"), f: () => markCurrent("false"), u: () => markCurrent(null),
  n: () => turn(1, true), p: () => turn(-1, true), e: exportMarks, "/": () => $("query").focus(),
};

function markCurrent(mark) { if (current >= 0 && shown[current]) setMark(shown[current], mark); }

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input[type=search], select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
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

// ---- videos over time

let videos = [], videoPage = 0;

function refilterVideos() {
  const text = $("video-query").value.trim().toLowerCase();
  videos = data.videos.filter((video) => !text || video.source.toLowerCase().includes(text));
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
  header.appendChild(make("h3", "", video.source));
  const found = `${video.events.length} event${video.events.length === 1 ? "" : "s"} found`;
  const truth = video.truth === null ? "no ground truth" : `${video.truth.length} true`;
  header.appendChild(make("span", "soft small", [video.class, video.length, found, truth].filter(Boolean).join(" · ")));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "timeline");
  svg.setAttribute("viewBox", "0 0 1000 74");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${video.source}: highest score ${video.highest === null ? "none" : percent(video.highest)}; ${found}`
    + video.events.map((event) => `, ${event.text}`).join("") + `; ${truth}` + (video.truth || []).map((event) => `, ${event.text}`).join(""));
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
  ends.append(make("span", "", "0:00"), make("span", "", video.length));
  return section;
}

$("video-query").addEventListener("input", refilterVideos);
$("video-sort").addEventListener("change", refilterVideos);
$("video-previous").addEventListener("click", () => { videoPage -= 1; showVideos(); });
$("video-next").addEventListener("click", () => { videoPage += 1; showVideos(); });

refilter();
refilterVideos();
