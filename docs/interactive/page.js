// Draws DATA (data.js): `chosen` contains the selection, and `draw` redraws the whole page from it.
"use strict";

// The losses again, for contours and axes. A browser test compares them with the losses in interactive.py.
const LOSSES = {
  rosenbrock: (x, y) => (1 - x) ** 2 + 20 * (y - x ** 2) ** 2,
  quadratic: (x, y) => ((0.8 * x + 0.6 * y) ** 2 + 50 * (0.8 * y - 0.6 * x) ** 2) / 2,
  himmelblau: (x, y) => (x ** 2 + y - 11) ** 2 + (x + y ** 2 - 7) ** 2,
  saddle: (x, y) => x ** 2 / 2 + (y ** 2 - 1) ** 2 / 4,
  noisy: (x, y) => (x ** 2 + 4 * y ** 2) / 2,
  direction: (x, y) => 1 - (0.6 * x + 0.8 * y) / Math.hypot(x, y),
};
const LEAST = { losses: 1e-12, norms: 1e-8 }; // below these values, the float32 points are not accurate
const MOST = 1e5;
const BANDS = 16;
const PACE = 25; // steps per second
const START = { surface: "rosenbrock", rate: "best", optimizers: ["momentum", "adam", "lion", "adahessian"] };
const HALF = 0.5; // aligns lines one pixel wide with the pixel grid

const $ = (id) => document.getElementById(id);
const NAMES = DATA.optimizers.map((one) => one.name);
const chosen = {};
const plots = {}; // id of an svg -> {box, dots}, for the pointer
let playing = null;

// The selection and the address.

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const rate = DATA.rates.indexOf(Number(asked.get("rate")));
  const step = asked.get("step");
  const names = (asked.get("optimizers") ?? START.optimizers.join()).split(",");
  chosen.surface = Object.hasOwn(DATA.surfaces, asked.get("surface")) ? asked.get("surface") : START.surface;
  chosen.best = rate < 0;
  chosen.rate = rate < 0 ? DATA.rates.indexOf(0.1) : rate;
  chosen.optimizers = new Set(names.filter((name) => NAMES.includes(name)));
  chosen.step = /^\d+$/.test(step) ? Math.min(Number(step), DATA.steps) : DATA.steps;
}

let writing = 0;

function writeAddress() {
  clearTimeout(writing); // browsers refuse hundreds of address changes in a row
  writing = setTimeout(() => {
    const rate = chosen.best ? "best" : DATA.rates[chosen.rate];
    const names = NAMES.filter((name) => chosen.optimizers.has(name)).join();
    const hash = `#surface=${chosen.surface}&rate=${rate}&optimizers=${names}&step=${chosen.step}`;
    history.replaceState(null, "", hash);
  }, 200);
}

function choose(change) {
  Object.assign(chosen, change);
  draw();
  writeAddress();
}

// Paths.

function decoded(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

const known = new Map();

function pathOf(surface, name, rate) {
  const key = `${surface} ${name} ${rate}`;
  if (!known.has(key)) known.set(key, measured(surface, decoded(DATA.paths[surface][name][rate])));
  return known.get(key);
}

function measured(surface, numbers) {
  const points = [[...DATA.surfaces[surface].start, 0]];
  for (let i = 0; i < numbers.length; i += 2) {
    const [x, y] = points.at(-1);
    points.push([numbers[i], numbers[i + 1], Math.hypot(numbers[i] - x, numbers[i + 1] - y)]);
  }
  return points.map(([x, y, norm]) => ({ x, y, norm, loss: LOSSES[surface](x, y) }));
}

function lines() {
  return DATA.optimizers
    .map((one, i) => {
      const rate = chosen.best ? DATA.best[chosen.surface][one.name] : chosen.rate;
      return { name: one.name, i, rate, path: pathOf(chosen.surface, one.name, rate) };
    })
    .filter((line) => chosen.optimizers.has(line.name));
}

// Drawing.

function element(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shown(value) {
  if (value === 0) return "0";
  if (value < 1e-3 || value >= 1e5) return value.toExponential(1);
  return value < 1e3 ? value.toPrecision(3) : value.toFixed();
}

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

function power(exponent) {
  const digits = [...String(Math.abs(exponent))].map((digit) => SUPERSCRIPT[digit]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

/** The place of a plot in its svg, in pixels, and the functions from values to pixels. */
function boxOf(svg, margin, [x0, x1, y0, y1]) {
  const [width, height] = [svg.clientWidth, svg.clientHeight];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const box = { left: margin[0], right: width - margin[1], top: margin[2], bottom: height - margin[3] };
  box.x = (x) => box.left + ((x - x0) / (x1 - x0)) * (box.right - box.left);
  box.y = (y) => box.bottom - ((y - y0) / (y1 - y0)) * (box.bottom - box.top);
  return box;
}

function mark(i, x, y) {
  if (i % 2) return element("rect", { class: "end", x: x - 4.5, y: y - 4.5, width: 9, height: 9 });
  return element("circle", { class: "end", cx: x, cy: y, r: 5 });
}

/** A path up to the step that is shown: pixels are [x, y] for each of its points. */
function drawn(line, pixels, first) {
  const until = Math.min(chosen.step, line.path.length - 1);
  const points = pixels.slice(first, until + 1).map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`);
  const at = line.path[until];
  const group = element("g", {
    class: `path ${line.i % 2 ? "second" : "first"}`,
    style: `--colour: var(--c${line.i >> 1})`,
    "data-optimizer": line.name,
    "data-rate": DATA.rates[line.rate],
    "data-step": until,
    "data-x": at.x,
    "data-y": at.y,
    "data-loss": at.loss,
    "data-norm": at.norm,
  });
  group.append(element("polyline", { class: "halo", points: points.join(" ") }));
  group.append(element("polyline", { class: "line", points: points.join(" ") }));
  if (until >= first) group.append(mark(line.i, ...pixels[until]));
  return group;
}

function show(svg, box, back, all, pixelsOf, first) {
  const place = { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top };
  const clip = element("clipPath", { id: `${svg.id}-clip` }, element("rect", { ...place, width: place.width + 6 }));
  const dots = [];
  const groups = all.map((line) => {
    const pixels = line.path.map(pixelsOf);
    for (let step = first; step <= Math.min(chosen.step, pixels.length - 1); step++) {
      dots.push({ line, step, at: pixels[step] });
    }
    return drawn(line, pixels, first);
  });
  const front = element("g", { "clip-path": `url(#${clip.id})` }, ...groups);
  svg.replaceChildren(clip, ...back, element("rect", { class: "frame", ...place }), front);
  plots[svg.id] = { box, dots };
}

function drawMap(all) {
  const surface = DATA.surfaces[chosen.surface];
  const svg = $("map");
  const box = boxOf(svg, [30, 8, 8, 24], surface.window);
  drawContours(box);
  const [x0, x1, y0, y1] = surface.window;
  const back = [];
  const stride = x1 - x0 > 6 ? 2 : 1;
  for (let x = Math.ceil(x0 / stride) * stride; x <= x1; x += stride) {
    back.push(element("text", { x: box.x(x), y: box.bottom + 17, "text-anchor": "middle" }, minus(x)));
  }
  for (let y = Math.ceil(y0 / stride) * stride; y <= y1; y += stride) {
    back.push(element("text", { x: box.left - 6, y: box.y(y) + 4, "text-anchor": "end" }, minus(y)));
  }
  const [x, y] = surface.start;
  back.push(element("circle", { class: "mark", cx: box.x(x), cy: box.y(y), r: 7 }));
  for (const [x, y] of surface.minima) {
    const place = `translate(${box.x(x)} ${box.y(y)})`;
    back.push(element("path", { class: "mark", d: "M-5,-5L5,5M-5,5L5,-5", transform: place }));
  }
  show(svg, box, back, all, (point) => [box.x(point.x), box.y(point.y)], 0);
}

const minus = (x) => String(x).replace("-", "−");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim().split(" ").map(Number);
}

let contoured = "";

/** Bands of equal steps of the loss's logarithm, with a line where one ends. */
function drawContours(box) {
  const canvas = $("contours");
  const [low, high] = [colour("--low"), colour("--high")];
  const key = [chosen.surface, box.right, box.bottom, devicePixelRatio, low].join();
  if (key === contoured) return;
  contoured = key;
  const [width, height] = [box.right - box.left, box.bottom - box.top].map((x) => Math.round(x * devicePixelRatio));
  if (width < 1 || height < 1) return;
  Object.assign(canvas, { width, height });
  Object.assign(canvas.style, {
    left: `${box.left}px`,
    top: `${box.top}px`,
    width: `${box.right - box.left}px`,
    height: `${box.bottom - box.top}px`,
  });

  const [x0, x1, y0, y1] = DATA.surfaces[chosen.surface].window;
  const heights = new Float64Array(width * height);
  for (let row = 0; row < height; row++) {
    const y = y1 - ((row + HALF) / height) * (y1 - y0);
    for (let column = 0; column < width; column++) {
      heights[row * width + column] = LOSSES[chosen.surface](x0 + ((column + HALF) / width) * (x1 - x0), y);
    }
  }
  const most = heights.reduce((a, b) => Math.max(a, b));
  const range = Math.log(1e4);
  const bands = heights.map((one) => Math.floor((Math.log1p((one / most) * 1e4) / range) * BANDS));

  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  bands.forEach((band, i) => {
    const edge = band !== bands[i + 1] || band !== bands[i + width] ? 0.1 : 0;
    const part = Math.min(1, band / BANDS);
    for (let k = 0; k < 3; k++) {
      const plain = low[k] + part * (high[k] - low[k]);
      image.data[4 * i + k] = plain + edge * (low[k] > 128 ? -plain : 255 - plain);
    }
    image.data[4 * i + 3] = 255;
  });
  context.putImageData(image, 0, 0);
}

/** A chart with a logarithmic axis, whose range is that of the whole paths: it stays while the step moves. */
function drawChart(id, what, all, first) {
  const values = all.flatMap((line) => line.path.slice(first).map((point) => point[what]));
  const inside = (value) => Math.min(Math.max(value, LEAST[id]), MOST);
  const from = Math.floor(Math.log10(inside(Math.min(...values, 1))));
  const to = Math.max(from + 1, Math.ceil(Math.log10(inside(Math.max(...values, LEAST[id])))));
  const svg = $(id);
  const box = boxOf(svg, [40, 14, 8, 24], [0, DATA.steps, from, to]);
  const back = [];
  const stride = Math.ceil((to - from) / 6);
  for (let exponent = from; exponent <= to; exponent += stride) {
    const y = Math.round(box.y(exponent)) + HALF;
    back.push(element("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }));
    back.push(element("text", { x: box.left - 6, y: y + 4, "text-anchor": "end" }, power(exponent)));
  }
  for (let step = 0; step <= DATA.steps; step += 20) {
    back.push(element("text", { x: box.x(step), y: box.bottom + 17, "text-anchor": "middle" }, String(step)));
  }
  const now = Math.round(box.x(chosen.step)) + HALF;
  back.push(element("line", { class: "now", x1: now, x2: now, y1: box.top, y2: box.bottom }));
  // Values that are too small are drawn on the axis; those that are too large are cut off.
  const pixelsOf = (point, step) => [box.x(step), box.y(Math.log10(Math.max(point[what], 10 ** from)))];
  show(svg, box, back, all, pixelsOf, first);
}

function drawLegend(all) {
  const byName = new Map(all.map((line) => [line.name, line]));
  for (const row of $("legend").querySelectorAll("tr[data-optimizer]")) {
    const line = byName.get(row.dataset.optimizer);
    row.classList.toggle("off", !line);
    row.querySelector("input").checked = Boolean(line);
    const texts = line ? values(line) : ["", "", ""];
    row.querySelectorAll("td").forEach((cell, i) => (cell.textContent = texts[i]));
  }
}

/** The rate, and the loss and the last step's length at the step that is shown. */
function values(line) {
  const rate = String(DATA.rates[line.rate]);
  const point = line.path[chosen.step];
  if (!point) return [rate, `gone at ${line.path.length}`, ""];
  return [rate, shown(point.loss), chosen.step ? shown(point.norm) : ""];
}

function draw() {
  const surface = DATA.surfaces[chosen.surface];
  const all = lines();
  const rate = String(DATA.rates[chosen.rate]);
  $("surface").value = chosen.surface;
  $("formula").textContent = `Loss: ${surface.formula}`;
  $("about").textContent = surface.about;
  $("rate").value = chosen.rate;
  $("rate").setAttribute("aria-valuetext", rate);
  $("rate-shown").textContent = chosen.best ? "see the table" : rate;
  $("best").checked = chosen.best;
  $("step").value = chosen.step;
  $("step-shown").textContent = chosen.step;
  $("play").textContent = playing === null ? "Play" : "Pause";
  drawMap(all);
  drawChart("losses", "loss", all, 0);
  drawChart("norms", "norm", all, 1);
  drawLegend(all);
}

// Animation.

function pause() {
  cancelAnimationFrame(playing);
  playing = null;
}

function play() {
  const from = chosen.step < DATA.steps ? chosen.step : 0;
  let began = null;
  const next = (now) => {
    began ??= now;
    const step = Math.min(from + Math.floor(((now - began) / 1000) * PACE), DATA.steps);
    playing = step < DATA.steps ? requestAnimationFrame(next) : null;
    choose({ step });
  };
  playing = requestAnimationFrame(next);
  $("play").textContent = "Pause";
}

// Pointer.

function emphasize(name) {
  document.querySelector("main").classList.toggle("faded", name !== null);
  for (const one of document.querySelectorAll("[data-optimizer]")) {
    one.classList.toggle("strong", one.dataset.optimizer === name);
  }
}

function point(event) {
  const svg = event.currentTarget;
  const outline = svg.getBoundingClientRect();
  const [x, y] = [event.clientX - outline.left, event.clientY - outline.top];
  const { box, dots } = plots[svg.id];
  let [near, distance] = [null, 30];
  for (const dot of dots) {
    const found = Math.hypot(dot.at[0] - x, Math.min(Math.max(dot.at[1], box.top), box.bottom) - y);
    if (found < distance) [near, distance] = [dot, found];
  }
  if (!near) return leave();
  const { line, step } = near;
  const at = line.path[step];
  const tip = $("tip");
  tip.textContent = [
    `${line.name}, rate ${DATA.rates[line.rate]}, step ${step}`,
    `at (${minus(at.x.toPrecision(4))}, ${minus(at.y.toPrecision(4))})`,
    `loss ${shown(at.loss)}${step ? `, length of the step ${shown(at.norm)}` : ""}`,
  ].join("\n");
  tip.hidden = false;
  const right = document.documentElement.clientWidth - tip.offsetWidth - 4;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, right)) + scrollX}px`;
  tip.style.top = `${event.clientY + 18 + scrollY}px`;
  emphasize(line.name);
}

function leave() {
  $("tip").hidden = true;
  emphasize(null);
}

// The start.

function swatch(i) {
  const line = element("line", { class: "line", x1: 0, x2: 34, y1: 6, y2: 6 });
  const group = element("g", {
    class: `path ${i % 2 ? "second" : "first"}`,
    style: `--colour: var(--c${i >> 1})`,
  });
  group.append(line, mark(i, 17, 6));
  return element("svg", { class: "swatch", viewBox: "0 0 34 12", "aria-hidden": "true" }, group);
}

function legendRow(one, i) {
  const row = document.createElement("tr");
  row.dataset.optimizer = one.name;
  row.title = `gradtx.${one.call}`;
  const head = document.createElement("th");
  head.scope = "row";
  const label = document.createElement("label");
  const tick = document.createElement("input");
  tick.type = "checkbox";
  tick.addEventListener("change", () => {
    const optimizers = new Set(chosen.optimizers);
    if (tick.checked) optimizers.add(one.name);
    else optimizers.delete(one.name);
    choose({ optimizers });
  });
  label.append(tick, swatch(i), one.name);
  head.append(label);
  row.append(head, ...[0, 1, 2].map(() => document.createElement("td")));
  row.addEventListener("pointerenter", () => emphasize(chosen.optimizers.has(one.name) ? one.name : null));
  row.addEventListener("pointerleave", () => emphasize(null));
  return row;
}

function familyRow(family) {
  const row = document.createElement("tr");
  const cell = document.createElement("th");
  Object.assign(cell, { colSpan: 4, className: "family", textContent: family });
  row.append(cell);
  return row;
}

function build() {
  for (const [name, surface] of Object.entries(DATA.surfaces)) $("surface").add(new Option(surface.title, name));
  $("rate").max = DATA.rates.length - 1;
  $("step").max = DATA.steps;
  DATA.optimizers.forEach((one, i) => {
    if (i % 2 === 0) $("legend").append(familyRow(one.family));
    $("legend").append(legendRow(one, i));
  });

  $("surface").addEventListener("change", (event) => choose({ surface: event.target.value }));
  $("rate").addEventListener("input", (event) => choose({ rate: Number(event.target.value), best: false }));
  $("best").addEventListener("change", (event) => choose({ best: event.target.checked }));
  $("step").addEventListener("input", (event) => {
    pause();
    choose({ step: Number(event.target.value) });
  });
  $("play").addEventListener("click", () => {
    if (playing === null) return play();
    pause();
    choose({});
  });
  $("all").addEventListener("click", () => choose({ optimizers: new Set(NAMES) }));
  $("none").addEventListener("click", () => choose({ optimizers: new Set() }));
  for (const id of ["map", "losses", "norms"]) {
    $(id).addEventListener("pointermove", point);
    $(id).addEventListener("pointerdown", point);
    $(id).addEventListener("pointerleave", leave);
  }
  window.addEventListener("hashchange", () => {
    readAddress();
    draw();
  });
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  readAddress();
  draw();
}

build();
