// What all parts of the front end share: elements, numbers as text and heat.
const PAGE = 50, KEPT_PICTURES = 400, KEPT_VIEWS = 40, HEAT = 0.75, MOST_SLIDERS = 20;
const HOWS = { top: "strongest", interval: "whole range", random: "any" };
const SYNONYMS = { // what people call parts, for the search
  nose_gear: "landing gear undercarriage wheel", main_gear: "landing gear undercarriage wheel", fin: "tail rudder vertical stabilizer",
  stabilizer: "tail elevator stabiliser tailplane", wing: "winglet aileron flap", engine: "nacelle turbine jet", propeller: "blade prop",
  cockpit: "windscreen windshield flight deck", window: "cabin porthole", flap_fairing: "flap track fairing", strut: "brace biplane", fuselage: "body hull",
};
const WORDS = [
  ["bench", "one picture whose features you change"],
  ["half A, half B", "claims about a feature are chosen on half A of the test pictures and measured on the held-out half B"],
  ["AP", "average precision: 1 if the cells that show the part all rank first"],
  ["tier 1 to 4", "1: AP above every null; 2: also tells the part from other cells of the same family and position; 3: also falls when the part is removed; 4: also found by two other seeds"],
  ["other seeds: cosine", "cosine between this direction and its match in other seeds; a claim can replicate even if no direction does"],
  ["chance", "the share of cells that show the part, which is the AP of a random order"],
  ["lost without it", "share of the feature's maximum that is lost when the part is removed"],
  ["random directions", "the control: the same edit along a random direction of the same length"],
  ["margin", "the logit of the picture's class minus that of another class, which you choose"],
];
const KEYS = [
  ["← →", "previous, next feature"], ["↑ ↓", "move through the list; Enter shows the feature"], ["r", "random feature"], ["h", "heat on or off"],
  ["l", "write a label; Enter saves it"], ["s", "suppress this feature in the bench's picture"], ["0", "reset all multipliers"], ["/", "search"],
  ["?", "this help"], ["Esc", "close this help, leave a field"],
];

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const field = (text, control) => h("label", { className: "field" }, h("span", {}, text), control);
const options = (pairs) => pairs.map(([value, text]) => h("option", { value }, text));
const words = (name) => String(name).replaceAll("_", " ");
const number = (value, digits = 3) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : Number(value.toPrecision(digits)).toString();
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)}%`);
const SHARES = new Set(["density_cell", "density_image"]); // shown, and filtered, as percent
const shown = (name, value) => (SHARES.has(name) && value !== null ? number(100 * value) : number(value));
const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));

// Controls {name: [control, initial value]} in links: placed() keeps those that have changed, place() restores them.
const current = (control) => (control.type === "checkbox" ? control.checked : control.value);
const placed = (controls) => Object.fromEntries(Object.entries(controls)
  .filter(([, [control, first]]) => current(control) !== first).map(([name, [control]]) => [name, String(current(control))]));
function place(controls, wanted) {
  for (const [name, [control, first]] of Object.entries(controls)) {
    const value = wanted[name] ?? String(first);
    if (control.type === "checkbox") control.checked = value === "true"; else control.value = value;
    if (control.selectedIndex === -1) control.value = first; // a link of another study
  }
}

class Kept extends Map { // drops the least recently used entry
  constructor(most) { super(); this.most = most; }
  get(key) {
    const value = super.get(key);
    if (value !== undefined) { super.delete(key); super.set(key, value); }
    return value;
  }
  set(key, value) {
    super.set(key, value);
    if (this.size > this.most) super.delete(this.keys().next().value);
    return this;
  }
}

// Runs one request at a time and remembers only the latest one made meanwhile.
function latest(work) {
  let running = null, wanted = null;
  async function run(given) {
    try { await work(...given); } finally {
      const next = wanted;
      wanted = null;
      if (next) await run(next); else running = null;
    }
  }
  return (...given) => { // settles with the last one
    if (running) wanted = given; else running = run(given);
    return running;
  };
}

function softmax(logits) {
  const top = Math.max(...logits), powers = logits.map((value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

// Where each of `size` pixels lies between `n` cells: [cell, next cell, share of the next].
const between = new Map();
function places(size, n) {
  const key = `${size}/${n}`;
  if (!between.has(key)) {
    between.set(key, Array.from({ length: size }, (_, i) => {
      const at = Math.min(n - 1, Math.max(0, ((i + 0.5) * n) / size - 0.5)), low = Math.floor(at);
      return [low, Math.min(n - 1, low + 1), at - low];
    }));
  }
  return between.get(key);
}

const layers = new Map(); // one heat canvas per size
function layer(width, height) {
  const key = `${width}x${height}`;
  if (!layers.has(key)) layers.set(key, Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", { willReadFrequently: true }));
  return layers.get(key);
}

// Draw a map (rows x columns) over a picture, on a scale that ends at `top`, as aircraft_sae.view.plots.heat does.
function drawHeat(context, picture, map, grid, top, alpha, colours) {
  const { width, height } = context.canvas;
  context.fillStyle = "rgb(180,180,180)";
  context.fillRect(0, 0, width, height);
  context.globalAlpha = 1 - (0.25 * alpha) / HEAT;
  context.drawImage(picture, 0, 0, width, height);
  context.globalAlpha = 1;
  const over = layer(width, height), image = over.createImageData(width, height), pixels = image.data;
  const down = places(height, grid[0]), across = places(width, grid[1]);
  const share = Float32Array.from(map, (value) => Math.min(1, Math.max(0, value / Math.max(top, 1e-12))));
  for (let y = 0, at = 0; y < height; y++) {
    const [y0, y1, v] = down[y], first = y0 * grid[1], second = y1 * grid[1];
    for (let x = 0; x < width; x++, at += 4) {
      const [x0, x1, u] = across[x];
      const upper = share[first + x0] * (1 - u) + share[first + x1] * u;
      const value = upper * (1 - v) + (share[second + x0] * (1 - u) + share[second + x1] * u) * v;
      if (!value) continue; // already transparent
      const colour = 3 * Math.min(255, Math.floor(value * 256));
      for (let c = 0; c < 3; c++) pixels[at + c] = colours[colour + c];
      pixels[at + 3] = 255 * alpha * Math.sqrt(value);
    }
  }
  over.putImageData(image, 0, 0);
  context.drawImage(over.canvas, 0, 0);
}

function outline(context, [row, column], grid, colour = "#00ffff") {
  const { width, height } = context.canvas, line = Math.max(1, Math.floor(width / 112));
  const [top, bottom] = [row, row + 1].map((at) => Math.round((at * height) / grid[0]));
  const [left, right] = [column, column + 1].map((at) => Math.round((at * width) / grid[1]));
  context.fillStyle = colour;
  context.fillRect(left, top, right - left, line);
  context.fillRect(left, bottom - line, right - left, line);
  context.fillRect(left, top, line, bottom - top);
  context.fillRect(right - line, top, line, bottom - top);
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  node.append(...children);
  return node;
}
// A box for what may be too wide: then it says so and takes the focus, so that arrow keys scroll it.
function wide(...children) {
  const box = h("div", { className: "wide" }, ...children), told = h("p", { className: "quiet", hidden: true }, "This table is wider than its box: scroll it sideways.");
  const seen = new ResizeObserver(() => {
    const over = box.scrollWidth > box.clientWidth + 1;
    told.hidden = !over;
    over ? Object.assign(box, { tabIndex: 0, role: "group", ariaLabel: "a wide table" }) : ["tabindex", "role", "aria-label"].forEach((name) => box.removeAttribute(name));
  });
  [box, ...children].forEach((each) => seen.observe(each));
  return h("div", {}, told, box);
}
function table(head, rows) {
  return h("table", {}, h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell))))));
}
