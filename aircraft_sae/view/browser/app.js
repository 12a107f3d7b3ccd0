// The browser's and the atlas' front end. mount(el, source, mode) draws everything into el and asks `source` for what
// it shows: a kernel (widgets.py) or files on disk (atlas.py). Widgets are made once; later only values change.
const AircraftApp = (() => {
  const PAGE = 50, KEPT_PICTURES = 400, KEPT_VIEWS = 40, HEAT = 0.75, MOST_SLIDERS = 20;
  const HOWS = { top: "strongest", interval: "whole range", random: "any" };
  const KEYS = [
    ["← →", "previous, next feature"], ["↑ ↓", "in the list: to another feature; Enter shows it"], ["r", "random feature"], ["h", "heat on or off"],
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

  class Kept extends Map { // forgets what was used longest ago
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

  // Keeps one request under way and remembers only the latest one wanted meanwhile.
  function latest(work) {
    let busy = false, wanted = null;
    return async function ask(...given) {
      if (busy) { wanted = given; return; }
      busy = true;
      try { await work(...given); } finally {
        busy = false;
        if (wanted) { const next = wanted; wanted = null; ask(...next); }
      }
    };
  }

  // Logits of a pooled vector: LayerNorm (none where eps is null) without its gain, which the weights hold, then linear.
  function headLogits(pooled, { weight, bias, eps }) {
    const d = pooled.length, plain = eps === null, mean = plain ? 0 : pooled.reduce((a, b) => a + b, 0) / d;
    const centred = Float64Array.from(pooled, (value) => value - mean);
    const scale = plain ? 1 : Math.sqrt(centred.reduce((a, b) => a + b * b, 0) / d + eps);
    return Array.from(bias, (shift, i) => {
      let sum = 0;
      for (let c = 0; c < d; c++) sum += centred[c] * weight[i * d + c];
      return sum / scale + shift;
    });
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

  const layers = new Map(); // one canvas for heat of each size
  function layer(width, height) {
    const key = `${width}x${height}`;
    if (!layers.has(key)) layers.set(key, Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", { willReadFrequently: true }));
    return layers.get(key);
  }

  // A picture under a map (rows x columns), on a scale that ends at `top`; as aircraft_sae.view.plots.heat. Pixels of the
  // picture are never read: a page opened from disk may not.
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
        if (!value) continue; // clear already
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

  function mount(el, source, mode = "browser") {
    const root = h("div", { className: `sae-app sae-${mode}`, tabIndex: 0 });
    root.setAttribute("data-lm-suppress-shortcuts", "true");
    root.setAttribute("role", "application");
    root.setAttribute("aria-label", mode === "bench" ? "Intervention bench" : "Feature browser");
    el.replaceChildren(root);
    const state = {
      facts: null, labels: {}, ids: [], page: 0, feature: null, towards: 1, how: "top", alpha: HEAT, heat: true, view: null,
      entrance: "features", subject: null, multipliers: new Map(), brush: new Set(), after: null, blurred: null, blurring: false, cell: null,
      pair: null, closed: false,
    };
    const pictures = new Kept(KEPT_PICTURES), views = new Kept(KEPT_VIEWS);
    const ui = {};
    root.dataset.revision = "0";
    const drawn = (what) => {
      root.dataset.revision = String(Number(root.dataset.revision) + 1);
      root.dataset.drawn = what;
      keepFocus();
    };
    // What was clicked may hide, or be made anew: without this the keys would then go nowhere.
    let ours = false;
    const keepFocus = () => { if (ours && document.activeElement === document.body) root.focus({ preventScroll: true }); };
    const whose = (event) => { ours = root.contains(event.target); };
    addEventListener("pointerdown", whose, true);
    root.addEventListener("focusin", () => { ours = true; });
    root.addEventListener("click", () => requestAnimationFrame(keepFocus));

    // ---------------------------------------------------------------- errors
    ui.error = h("div", { className: "error", hidden: true });
    ui.error.setAttribute("role", "alert");
    let hand = root; // what was last used: the message goes there, since in JupyterLab the page's top may be far away
    for (const kind of ["pointerdown", "focusin", "change"]) root.addEventListener(kind, (event) => { hand = event.target; }, true);
    function fail(error) {
      ((hand.isConnected && hand.closest(".row, .stage, .levers, .naming, nav, main, aside, header")) || root).prepend(ui.error);
      ui.error.hidden = false;
      ui.error.replaceChildren(
        h("span", {}, String(error.message || error)),
        h("button", { type: "button", onclick: () => { ui.error.hidden = true; }, ariaLabel: "Dismiss the message" }, "×"),
      );
      ui.error.scrollIntoView({ block: "nearest" });
      drawn("error");
    }
    const settle = (event) => { if (!event.target.closest(".error")) ui.error.hidden = true; }; // what was said is past
    root.addEventListener("pointerdown", settle);
    root.addEventListener("input", settle);
    const guarded = (work) => async (...given) => {
      try { return await work(...given); } catch (error) { fail(error); }
    };

    // ---------------------------------------------------------------- the list
    const columns = () => state.facts.columns;
    function titled(name) {
      const [level, what] = name.includes("/") ? name.split("/") : [null, name];
      if (level) return { auroc: `AUROC of its ${level}`, z: `selectivity for a ${level} (z)`, class: level }[what];
      return {
        feature_id: "number", density_cell: "share of cells, %", density_image: "share of pictures, %", mean: "mean when active",
        max: "maximum", part_ap: "part: average precision", part_excess: "part: AUROC beyond guesses",
        response: "part: share that goes with it", seed_match: "found by other seeds (cosine)",
        suppressed: "effect of suppression", suppressed_random: "effect of a random direction", rating: "your rating",
      }[name] || words(name);
    }
    const sortable = () => Object.keys(columns()).filter((name) => columns()[name].some((value) => typeof value === "number"));
    const valueOf = (name, id) => (name === "rating" ? (state.labels[id] || {}).rating || null : columns()[name][id]);

    const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
    function said(id) { // what the search looks through
      const own = state.labels[id] || {}, c = columns();
      const parts = [`#${id}`, own.label, own.note, c.part && c.part[id], c.verdict && c.verdict[id]];
      return parts.concat(state.facts.levels.map((level) => c[`${level}/class`][id])).filter(Boolean).join(" ");
    }

    function listed() {
      const c = columns();
      if (state.entrance === "picture" && state.subject) {
        const at = state.cell && state.subject.cells[state.cell[0] * state.facts.grid[1] + state.cell[1]];
        return at ? at.map(([id]) => id) : state.subject.active.map((each) => each.feature_id);
      }
      if (state.entrance === "class") {
        if (state.pair) return state.pair.map((each) => each.feature_id);
        const level = ui.level.value, name = ui.className.value;
        const own = state.all.filter((id) => c[`${level}/class`][id] === name && c.placed[id] !== "none");
        return own.sort((a, b) => (c[`${level}/z`][b] ?? -Infinity) - (c[`${level}/z`][a] ?? -Infinity));
      }
      const search = plain(ui.search.value).split(/\s+/).filter(Boolean), ranges = [...ui.ranges.children].map((row) => row.range());
      const kept = state.all.filter((id) => {
        if (ui.alive.checked && !c.density_cell[id]) return false;
        if (ui.labelled.checked && !(state.labels[id] || {}).label) return false;
        if (search.length) {
          const text = plain(said(id));
          if (!search.every((word) => text.includes(word))) return false;
        }
        return ranges.every(([name, low, high]) => {
          const value = valueOf(name, id), seen = Number(shown(name, value)); // as a person reads it in the list
          return value !== null && (low === null || seen >= low) && (high === null || seen <= high);
        });
      });
      const name = ui.sort.value, sign = ui.up.checked ? 1 : -1;
      return kept.sort((a, b) => { // missing values last, either way
        const one = valueOf(name, a), two = valueOf(name, b);
        if (one === null || two === null) return (one === null) - (two === null) || a - b;
        return sign * (one - two) || a - b;
      });
    }

    function caption(id) {
      const own = state.labels[id] || {}, c = columns();
      if (own.label) return own.label;
      if (c.verdict && /^(detector|follows)/.test(c.verdict[id])) return c.verdict[id];
      if (c.placed[id] !== "none") return `${c[`${c.placed[id]}/class`][id]}?`;
      return "";
    }

    function beside(id) { // the number that the list is sorted by
      if (state.entrance === "picture" && state.subject) {
        const own = state.subject.active.find((each) => each.feature_id === id);
        return own ? fixed(own.effect, 2) : "";
      }
      if (state.entrance === "class" && state.pair) return fixed(state.pair.find((each) => each.feature_id === id).value, 3);
      if (state.entrance === "class") return `z ${number(columns()[`${ui.level.value}/z`][id])}`;
      return shown(ui.sort.value, valueOf(ui.sort.value, id));
    }

    function showList(keepPage = false) {
      state.ids = listed();
      const n = Math.max(1, Math.ceil(state.ids.length / PAGE)), at = state.ids.indexOf(state.feature);
      if (!keepPage && at >= 0) state.page = Math.floor(at / PAGE);
      state.page = Math.min(n - 1, Math.max(0, state.page));
      const ids = state.ids.slice(state.page * PAGE, (state.page + 1) * PAGE);
      while (ui.list.children.length < ids.length) {
        const button = h("button", { type: "button" }, h("b"), h("span"), h("i"));
        button.addEventListener("click", () => show(Number(button.dataset.id)));
        ui.list.append(h("li", {}, button));
      }
      [...ui.list.children].forEach((item, i) => {
        item.hidden = i >= ids.length;
        if (item.hidden) return;
        const id = ids[i], button = item.firstChild, [name, text, value] = button.children;
        button.dataset.id = id;
        name.textContent = `#${id}`;
        text.textContent = caption(id);
        text.title = text.textContent.endsWith("?") ? "a guess from what was measured, nobody's label" : "";
        value.textContent = beside(id);
        button.setAttribute("aria-current", id === state.feature ? "true" : "false");
      });
      rove(ids.indexOf(state.feature));
      const current = ui.list.children[ids.indexOf(state.feature)];
      if (current && !keepPage) { // into the list's view, without moving the page
        const { offsetTop: top, offsetHeight: tall } = current, { scrollTop, clientHeight } = ui.list;
        if (top < scrollTop || top + tall > scrollTop + clientHeight) ui.list.scrollTop = top - clientHeight / 2;
      }
      const more = state.entrance === "picture" && state.subject && !state.cell && state.subject.n_active > state.ids.length;
      ui.count.textContent = state.ids.length
        ? `${state.page * PAGE + 1}–${state.page * PAGE + ids.length} of ${state.ids.length.toLocaleString("en")}${more ? `, of ${state.subject.n_active} active` : ""}`
        : state.entrance === "class" ? "no feature is selective for it" : `no feature is like that${ui.alive.checked && state.entrance === "features" ? ", dead ones left out" : ""}`;
      ui.back.disabled = state.page === 0;
      ui.forth.disabled = state.page >= n - 1;
    }

    function rove(at) { // one of the list's buttons can be tabbed to; up and down go to the others
      [...ui.list.children].forEach((item, i) => { item.firstChild.tabIndex = i === Math.max(0, at) ? 0 : -1; });
    }
    function roam(event) {
      const seen = [...ui.list.children].filter((item) => !item.hidden), at = seen.findIndex((item) => item.contains(event.target));
      const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: seen.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      if (!seen[to]) return;
      rove(to);
      seen[to].firstChild.focus();
    }

    function step(by) {
      if (!state.ids.length) return;
      state.towards = by;
      const at = state.ids.indexOf(state.feature);
      const next = at < 0 ? 0 : (at + by + state.ids.length) % state.ids.length;
      return show(state.ids[next]);
    }
    const random = () => state.ids.length && show(state.ids[Math.floor(Math.random() * state.ids.length)]);

    // ---------------------------------------------------------------- one feature
    function asked(id) {
      const wanted = { feature_id: id, how: state.how };
      if (ui.only && ui.only.checked && state.entrance === "class") Object.assign(wanted, { level: ui.level.value, name: ui.className.value });
      if (ui.wrong && ui.wrong.checked) wanted.wrong = true;
      return wanted;
    }
    async function viewed(wanted) {
      const key = JSON.stringify(wanted);
      if (!views.get(key)) { // kept while it is under way: a feature fetched ahead is not asked for again
        const coming = source.feature(wanted, [...pictures.keys()]);
        views.set(key, coming);
        coming.then((view) => view.fresh.splice(0).forEach(([row, bitmap]) => pictures.set(row, bitmap)), () => views.delete(key));
      }
      const view = await views.get(key);
      const rows = view.gallery.map((each) => each.picture).filter((row) => !pictures.get(row));
      if (rows.length) (await source.pictures([...new Set(rows)])).forEach(([row, bitmap]) => pictures.set(row, bitmap));
      return view;
    }

    const fetchAndDraw = latest(guarded(async (id) => {
      const view = await viewed(asked(id));
      if (state.closed || id !== state.feature) return; // another one was chosen meanwhile
      state.view = view;
      drawGallery();
      drawFacts();
      if (state.subject) { drawPicture(); drawSliders(); } // its heat, and its slider
      root.dataset.feature = id;
      drawn(`feature ${id}`);
      setTimeout(() => { // when it is on the screen
        if (state.feature !== id) return;
        if (source.chosen) source.chosen(id);
        const next = state.ids[state.ids.indexOf(id) + state.towards];
        if (next !== undefined && source.prefetch) viewed(asked(next)).catch(() => {});
        clearTimeout(pause);
        pause = setTimeout(hear, 300); // not between two presses of a key
      });
    }));

    function show(id) {
      if (!Number.isInteger(id) || id < 0 || id >= state.facts.n_features) {
        return fail(new Error(`feature ${id} is not one of 0 .. ${state.facts.n_features - 1}`));
      }
      saveNow();
      if (id !== state.feature) { state.feature = id; drawLabel(); }
      ui.go.value = id;
      showList();
      return fetchAndDraw(id);
    }

    function drawGallery() {
      const { gallery, maps } = state.view, [rows, columns_] = state.facts.grid, cells = rows * columns_;
      const top = columns().max[state.feature] || 1e-9, tile = state.facts.tile;
      ui.empty.hidden = gallery.length > 0;
      ui.empty.textContent = columns().density_cell[state.feature]
        ? "Active in no test picture of this choice." : "A dead feature: never active in any picture.";
      while (ui.tiles.children.length < gallery.length) {
        const canvas = h("canvas", { width: tile, height: tile }), button = h("button", { type: "button", className: "tile" }, canvas, h("span"));
        button.addEventListener("click", () => {
          const row = Number(button.dataset.picture);
          openPicture(row);
          if (state.onBench.has(row)) ui.canvas.scrollIntoView({ block: "nearest" });
        });
        button.addEventListener("mouseenter", () => mark(Number(button.dataset.value)));
        button.addEventListener("mouseleave", () => mark(null));
        ui.tiles.append(button);
      }
      [...ui.tiles.children].forEach((button, i) => {
        button.hidden = i >= gallery.length;
        if (button.hidden) return;
        const each = gallery[i], [canvas, text] = button.children, context = canvas.getContext("2d", { willReadFrequently: true });
        const map = maps.subarray(i * cells, (i + 1) * cells), alpha = state.heat ? state.alpha : 0;
        drawHeat(context, pictures.get(each.picture), map, state.facts.grid, top, alpha, state.facts.colours);
        if (state.heat) outline(context, each.cell, state.facts.grid);
        if (ui.field.checked && state.facts.radius) {
          context.beginPath();
          const [y, x] = [0, 1].map((k) => ((each.cell[k] + 0.5) * tile) / state.facts.grid[k]);
          context.arc(x, y, (state.facts.radius * tile) / state.facts.image_size, 0, 2 * Math.PI);
          context.strokeStyle = "#ffffff";
          context.setLineDash([4, 3]);
          context.lineWidth = 1.5;
          context.stroke();
          context.setLineDash([]);
        }
        button.dataset.picture = each.picture;
        button.dataset.value = each.value;
        button.classList.toggle("wrong", each.predicted !== each.label);
        button.classList.toggle("open", state.onBench.has(each.picture));
        text.textContent = `${Math.round((100 * each.value) / top)}% · ${each.label}`;
        button.ariaLabel = button.title =
          `${each.label}${each.predicted !== each.label ? `, taken for ${each.predicted}` : ""}: ${number(each.value)}, ` +
          `${Math.round((100 * each.value) / top)}% of this feature's maximum, in row ${each.cell[0] + 1}, column ${each.cell[1] + 1}.` +
          (state.onBench.has(each.picture) ? " Open it on the bench." : " Not on this atlas' bench.");
      });
    }

    function svg(tag, attributes, ...children) {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
      node.append(...children);
      return node;
    }
    const HISTOGRAM = { left: 34, right: 284, top: 8, bottom: 92 };
    function drawHistogram({ counts, top, n_cells }) {
      const { left, right, top: high, bottom } = HISTOGRAM, most = Math.log10(1 + Math.max(1, ...counts));
      const bars = counts.map((count, i) => {
        const y = bottom - ((bottom - high) * Math.log10(1 + count)) / most, width = (right - left) / counts.length;
        return svg("rect", { x: left + i * width, y, width: Math.max(1, width - 1), height: bottom - y, class: "bar" });
      });
      const text = (x, y, anchor, words_) => svg("text", { x, y, "text-anchor": anchor }, words_);
      ui.marker = svg("line", { y1: high, y2: bottom, class: "marker", visibility: "hidden" });
      const active = counts.reduce((a, b) => a + b, 0);
      ui.histogram.replaceChildren(
        ...bars, svg("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }),
        text(left, bottom + 12, "middle", "0"), text(right, bottom + 12, "end", number(top)),
        text((left + right) / 2, bottom + 22, "middle", "activation"),
        text(left - 4, high + 8, "end", Math.max(0, ...counts).toLocaleString("en")), text(left - 4, bottom, "end", "0"), ui.marker,
      );
      ui.histogram.setAttribute("aria-label",
        `Histogram of activation: ${active.toLocaleString("en")} of ${n_cells.toLocaleString("en")} test cells active, up to ${number(top)}; counts on a logarithmic scale`);
      ui.histogramNote.textContent =
        `${active.toLocaleString("en")} of ${n_cells.toLocaleString("en")} test cells are active; heights are logarithms of counts.`;
    }
    function mark(value) {
      if (!ui.marker || !state.view) return;
      const { left, right } = HISTOGRAM, x = left + ((right - left) * value) / state.view.histogram.top;
      ui.marker.setAttribute("visibility", value === null ? "hidden" : "visible");
      if (value !== null) { ui.marker.setAttribute("x1", x); ui.marker.setAttribute("x2", x); }
    }

    const link = (id, text) => (mode === "browser" // the bench alone shows no feature
      ? h("button", { type: "button", className: "link", title: caption(id), onclick: () => show(id) }, `#${id}`, h("small", {}, ` ${text}`))
      : h("span", {}, `#${id}`, h("small", {}, ` ${text}`)));
    function table(head, rows) {
      return h("table", {}, h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell))))));
    }

    function drawSuggestion() {
      const id = state.feature, c = columns(), part = c.part && c.part[id], useful = part && (c.part_ap[id] || 0) >= 0.1;
      ui.suggestion.hidden = !useful || !!ui.label.value;
      if (useful) ui.suggestion.textContent = `suggestion: ${words(part)} (AP ${fixed(c.part_ap[id], 2)})`;
      ui.suggestion.onclick = () => { ui.label.value = words(part); saveSoon(); };
    }
    function drawSuppress() {
      const there = state.subject && state.subject.active.some((each) => each.feature_id === state.feature);
      ui.suppress.disabled = !there;
      ui.suppress.title = there ? "s" : "this feature is not among those of the bench's picture";
    }
    function drawFacts() {
      const id = state.feature, c = columns(), view = state.view;
      const verdict = c.verdict && c.verdict[id];
      ui.verdict.textContent = verdict || (state.facts.has_verdicts ? "not tested: not on the frozen list" : "no verdicts yet: run notebook 05");
      ui.verdict.className = `badge ${verdict && verdict.startsWith("detector") ? "good" : ""}`;
      ui.verdict.title = (c.why && c.why[id] && `failed: ${c.why[id]}`) || "";
      const match = c.seed_match && c.seed_match[id];
      ui.stability.textContent = match === undefined || match === null ? "stability not known" : `other seeds: cosine ${fixed(match, 2)}`;
      ui.stability.className = `badge ${match >= 0.7 ? "good" : ""}`;
      ui.why.textContent = (c.why && c.why[id] && `Tests failed: ${c.why[id]}.`) || "";
      const rows = [
        ["active in", `${shown("density_cell", c.density_cell[id])}% of cells, ${shown("density_image", c.density_image[id])}% of pictures, test or not`],
        ["when active", `mean ${number(c.mean[id])}, maximum ${number(c.max[id])}, test or not`],
      ];
      if (c.suppressed) rows.push(["suppressing it", `moves its pictures' logit by ${fixed(c.suppressed[id])}; a random direction by ${fixed(c.suppressed_random[id])}`]);
      ui.numbers.replaceChildren(...rows.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
      drawHistogram(view.histogram);
      ui.selectivity.replaceChildren(...view.selectivity.map((each) => {
        const low = each.null === null ? 0.5 : Math.max(0, 0.5 - each.null), high = each.null === null ? 0.5 : Math.min(1, 0.5 + each.null);
        const bar = h("span", { className: "scale" },
          h("span", { className: "band", style: `left:${100 * low}%;width:${100 * (high - low)}%` }),
          h("span", { className: "dot", style: `left:${100 * (each.auroc ?? 0.5)}%`, hidden: each.auroc === null }));
        const told = each.z === null ? "too rare to be tested" : `AUROC ${fixed(each.auroc, 2)}, z ${number(each.z)}`;
        return h("div", { className: "level" }, h("b", {}, each.level), h("span", {}, each.class ?? "–"), bar, h("small", {}, told));
      }));
      ui.classes.replaceChildren(...Object.entries(view.classes).map(([level, bars]) => {
        const most = bars.length ? bars[0][1] : 1;
        return h("div", { className: "bars" }, h("b", {}, level), ...bars.map(([name, value]) =>
          h("div", {}, h("span", { className: "fill", style: `width:${(60 * value) / most}%` }), h("small", {}, `${name} ${number(value, 2)}`))));
      }));
      ui.parts.replaceChildren(state.facts.has_parts
        ? table(["part", "AP", "beyond guesses", "goes with it"], view.parts.slice(0, 6).map((each) =>
          [words(each.part), fixed(each.ap, 2), fixed(each.excess, 2), percent(each.response, 0)]))
        : h("p", { className: "quiet" }, "These are photographs: without part masks it can't be known which parts a feature follows."));
      ui.neighbours.replaceChildren(...view.neighbours.map((each) => link(each.feature_id, fixed(each.cosine, 2))));
      ui.coactive.replaceChildren(...(view.coactive.length
        ? view.coactive.map((each) => link(each.feature_id, percent(each.share, 0))) : [h("span", { className: "quiet" }, "none beyond chance")]));
      drawSuppress();
    }

    // ---------------------------------------------------------------- labels
    const unsaved = new Map();
    let waiting = null;
    const saidOf = (id) => state.labels[id] || { label: "", note: "", rating: 0 };
    function drawLabel() { // at once, so that what is typed next belongs to the feature that is named
      const { label, note, rating } = unsaved.get(state.feature) || saidOf(state.feature);
      ui.title.textContent = `Feature ${state.feature}`;
      ui.label.value = label;
      ui.note.value = note;
      ui.rating.value = String(rating);
      ui.saved.textContent = "";
      drawSuggestion();
    }
    function saveSoon() {
      clearTimeout(waiting);
      drawSuggestion();
      ui.saved.textContent = "…";
      unsaved.set(state.feature, { label: ui.label.value, note: ui.note.value, rating: Number(ui.rating.value) });
      waiting = setTimeout(saveNow, 250);
    }
    function saveNow() {
      clearTimeout(waiting);
      const all = [...unsaved];
      unsaved.clear();
      all.forEach(([id, given]) => save(id, given));
    }
    const save = guarded(async (id, given) => {
      const before = saidOf(id), changed = Object.fromEntries(Object.entries(given).filter(([name, value]) => value !== before[name]));
      let told = "";
      try {
        if (Object.keys(changed).length) {
          state.labels = { ...state.labels, [id]: given };
          Object.assign(state, await source.label({ feature_id: id, ...changed }));
          told = "saved";
        }
      } catch (error) { // kept, and tried again when the feature changes
        state.labels = { ...state.labels, [id]: before };
        if (!unsaved.has(id)) unsaved.set(id, given);
        told = "not saved";
        throw error;
      } finally { if (id === state.feature && (told === "not saved" || !unsaved.has(id))) ui.saved.textContent = told; }
      showList(true);
      if (state.subject) drawSliders(); // its caption
      drawn(`label ${id}`);
    });
    let pause = 0;
    const hear = latest(guarded(async () => { // what others wrote meanwhile
      if (!source.heard || mode === "bench" || !state.facts) return;
      const before = state.labels, { labels, stamp } = await source.heard({ stamp: state.stamp });
      if (!labels || state.labels !== before || state.closed) return; // nothing new, or a label of ours on its way
      Object.assign(state, { labels, stamp });
      showList(true);
      if (!unsaved.has(state.feature)) drawLabel();
      if (state.subject) drawSliders();
    }));

    // ---------------------------------------------------------------- the bench
    const bring = latest(guarded((get) => working(async () => openSubject(await get()))));
    function openPicture(row) {
      if (state.onBench.has(row)) return bring(() => source.open(row));
      fail(new Error("this picture is not on the bench: an atlas has only those of the bench's list, the notebook has all"));
    }
    let underWay = 0;
    async function working(work) {
      busy(++underWay);
      try { return await work(); } finally { busy(--underWay); }
    }
    const busy = (n) => { ui.busy.hidden = !n; root.setAttribute("aria-busy", String(n > 0)); };
    function openSubject(subject) {
      Object.assign(state, { subject, multipliers: new Map(), brush: new Set(), blurred: null, blurring: false, cell: null });
      state.after = { after: subject.before, random: subject.before };
      ui.flipText.textContent = "";
      ui.cellText.textContent = "Click a cell to see which features are active there.";
      chosenPicture(subject.picture);
      drawPicture();
      drawSliders();
      drawLogits();
      if (state.entrance === "picture") showList();
      if (ui.suppress) drawSuppress();
      root.dataset.picture = subject.picture ?? "upload";
      drawn(`picture ${root.dataset.picture}`);
    }

    function drawPicture() {
      const { subject } = state, context = ui.canvas.getContext("2d"), grid = state.facts.grid;
      const bitmap = (state.blurred && state.blurred.bitmap) || subject.bitmap, size = ui.canvas.width;
      const hot = ui.overlay.checked && state.feature !== null;
      drawHeat(context, bitmap, hot ? mapOf(state.feature) : new Float32Array(grid[0] * grid[1]), grid,
        hot ? columns().max[state.feature] || 1e-9 : 1, hot ? state.alpha : 0, state.facts.colours);
      context.strokeStyle = "rgba(255,255,255,0.35)";
      context.lineWidth = 1;
      for (let i = 1; i < grid[0]; i++) line(context, 0, (i * size) / grid[0], size, (i * size) / grid[0]);
      for (let i = 1; i < grid[1]; i++) line(context, (i * size) / grid[1], 0, (i * size) / grid[1], size);
      if (state.cell) outline(context, state.cell, grid);
      state.brush.forEach((key) => outline(context, key.split(",").map(Number), grid, "#ff9500"));
      const { label, predicted } = subject;
      ui.pictureText.textContent = `${label ? `${label}. ` : ""}Predicted: ${predicted}${subject.classes.includes(label) && label !== predicted ? " (wrong)" : ""}`;
      ui.canvas.ariaLabel = `${ui.pictureText.textContent}. A grid of ${grid[0]} by ${grid[1]} cells: arrow keys move, Enter chooses.`;
    }
    function line(context, x0, y0, x1, y1) {
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
      context.stroke();
    }
    function mapOf(id) { // the feature's activations in the bench's picture
      const { cells } = (state.blurred || state.subject);
      return Float32Array.from(cells, (cell) => (cell.find(([other]) => other === id) || [0, 0])[1]);
    }

    function chooseCell(row, column) {
      if (ui.brushOn.checked && source.blur) {
        const key = `${row},${column}`;
        state.brush.has(key) ? state.brush.delete(key) : state.brush.add(key);
        drawPicture();
        return blurSoon();
      }
      state.cell = [row, column];
      drawPicture();
      const found = state.subject.cells[row * state.facts.grid[1] + column];
      ui.cellText.replaceChildren(`Row ${row + 1}, column ${column + 1}: `,
        ...(found.length ? found.slice(0, 8).map(([id, value]) => link(id, number(value, 2))) : ["no feature is active"]));
      if (mode === "browser") setEntrance("picture");
      drawn(`cell ${row},${column}`);
    }
    function paint(cell, stroke) { // and the cells on the way, which a fast hand skips
      const n = Math.max(1, ...cell.map((at, k) => Math.abs(at - stroke.last[k])));
      for (let i = 0; i <= n; i++) {
        const key = String(cell.map((at, k) => Math.round(stroke.last[k] + ((at - stroke.last[k]) * i) / n)));
        stroke.add ? state.brush.add(key) : state.brush.delete(key);
      }
      stroke.last = cell;
      drawPicture();
    }
    const blurSoon = latest(guarded(() => working(async () => {
      const { brush, subject } = state, cells = [...brush].map((key) => key.split(",").map(Number));
      const blurred = cells.length ? await source.blur({ key: subject.key, cells, sigma: Number(ui.sigma.value) }) : null;
      if (state.brush !== brush) return; // reset, or another picture, meanwhile
      Object.assign(state, { blurred, blurring: blurred !== null });
      drawPicture();
      drawLogits();
      drawn(cells.length ? `blur ${cells.length}` : "blur none");
    })));

    function sliderRow() {
      const slider = h("input", { type: "range", min: 0, ...(state.facts.switches ? { max: 1, step: 1 } : { max: 4, step: 0.05 }), value: 1 });
      const value = h("output"), name = mode === "browser" ? h("button", { type: "button", className: "link" }) : h("span");
      const off = h("button", { type: "button", title: "suppress: multiply by 0" }, "0"), back = h("button", { type: "button", title: "unchanged: multiply by 1" }, "1");
      const row = h("div", { className: "slider" }, name, h("small"), slider, value, off, back);
      const set = (factor) => multiply(Number(row.dataset.id), factor);
      slider.addEventListener("input", () => set(Number(slider.value)));
      off.addEventListener("click", () => set(0));
      back.addEventListener("click", () => set(1));
      if (mode === "browser") name.addEventListener("click", () => show(Number(row.dataset.id)));
      return row;
    }
    function sliderIds() {
      const active = state.subject.active.map((each) => each.feature_id), first = active.slice(0, MOST_SLIDERS);
      const extra = [...state.multipliers.keys(), state.feature].filter((id) => active.includes(id) && !first.includes(id));
      return [...new Set([...extra, ...first])];
    }
    function drawSliders() {
      const ids = sliderIds();
      while (ui.sliders.children.length < ids.length) ui.sliders.append(sliderRow());
      [...ui.sliders.children].forEach((row, i) => {
        row.hidden = i >= ids.length;
        if (row.hidden) return;
        const own = state.subject.active.find((each) => each.feature_id === ids[i]), [name, text, slider, , off, back] = row.children;
        row.dataset.id = own.feature_id;
        name.textContent = `#${own.feature_id}`;
        text.textContent = caption(own.feature_id) || `peak ${number(own.peak, 2)}`;
        slider.ariaLabel = `multiplier of feature ${own.feature_id}`;
        off.ariaLabel = `suppress feature ${own.feature_id}`;
        back.ariaLabel = `leave feature ${own.feature_id} as it is`;
      });
      setSliders();
      const n = state.subject.n_active, most = Math.min(MOST_SLIDERS, state.subject.active.length);
      ui.slidersText.textContent = n
        ? `${n} feature${n > 1 ? "s are" : " is"} active here${n > most ? `; below the ${most} whose suppression moves the margin most${ids.length > most ? ", after those in hand" : ""}` : ""}.` +
          (state.facts.switches ? " Switch one off at a time: forward passes gave what then comes out." : "")
        : "No feature is active in this picture.";
    }
    function setSliders() { // rows stay where they are: one of them may be under the hand
      for (const row of ui.sliders.children) {
        const [, , slider, value] = row.children, factor = state.multipliers.get(Number(row.dataset.id)) ?? 1;
        slider.value = factor;
        value.textContent = `×${factor.toFixed(2)}`;
        row.classList.toggle("changed", factor !== 1);
      }
    }
    function multiply(id, factor) {
      if (!state.subject) return fail(new Error("open a picture on the bench first: click one in the gallery"));
      ui.flipText.textContent = "";
      if (state.facts.switches) state.multipliers.clear(); // one at a time
      factor === 1 ? state.multipliers.delete(id) : state.multipliers.set(id, factor);
      setSliders();
      return changeSoon();
    }
    const changeSoon = latest(guarded(async () => {
      const { subject } = state, after = await source.change({ key: subject.key, multipliers: Object.fromEntries(state.multipliers) });
      if (state.subject !== subject) return; // another picture meanwhile
      Object.assign(state, { after, blurring: false });
      drawLogits();
      drawn("logits");
    }));
    function resetBench() {
      if (!state.subject) return;
      Object.assign(state, { multipliers: new Map(), brush: new Set(), blurred: null });
      ui.flipText.textContent = "";
      drawPicture();
      drawSliders();
      changeSoon();
    }
    function suppressThis() {
      if (!state.subject) return fail(new Error("open a picture on the bench first: click one in the gallery"));
      if (!state.subject.active.some((each) => each.feature_id === state.feature)) {
        return fail(new Error(`feature ${state.feature} is not active in the bench's picture`));
      }
      multiply(state.feature, state.multipliers.get(state.feature) === 0 ? 1 : 0);
    }

    function drawLogits() {
      const { subject, after, blurred } = state, classes = subject.classes;
      const kinds = [["as it is", subject.before], ["features changed", after.after], ["random directions", after.random],
        ["reconstruction only", subject.reconstruction]];
      if (source.blur) kinds.push(["cells blurred", blurred && blurred.logits], ["as much blurred elsewhere", blurred && blurred.elsewhere]);
      // rows and outcome are of what was changed last
      const [what, made, control, other_] = state.blurring ? ["Cells blurred", blurred.logits, "as much elsewhere", blurred.elsewhere]
        : ["Features changed", after.after, "random directions", after.random];
      const best = (logits) => logits.map((value, i) => [value, i]).sort((a, b) => b[0] - a[0]).map(([, i]) => i);
      const true_ = subject.label ? classes.indexOf(subject.label) : -1, [winner, rival] = best(subject.before);
      const shown = [...new Set([winner, ...(true_ >= 0 ? [true_] : []), ...best(made).slice(0, 3), ...best(subject.before).slice(0, 4)])].slice(0, 6);
      const head = h("tr", {}, h("th", { scope: "col" }, "class"), ...kinds.map(([name]) => h("th", { scope: "col" }, name)));
      const probabilities = kinds.map(([, logits]) => logits && softmax(logits));
      const own = true_ >= 0 ? true_ : winner, other = own === winner ? rival : winner;
      const rows = shown.map((i) => h("tr", { className: i === own ? "own" : "" },
        h("th", { scope: "row" }, classes[i], i === true_ ? " ✓" : ""),
        ...kinds.map(([name, logits], k) => {
          const cell = h("td", {}, logits ? h("b", {}, logits[i].toFixed(3)) : "–", logits ? h("small", {}, ` ${percent(probabilities[k][i])}`) : "");
          if (logits) { cell.dataset.logit = logits[i]; cell.dataset.kind = name; cell.dataset.class = classes[i]; }
          return cell;
        })));
      rows.push(h("tr", { className: "margin" }, h("th", { scope: "row" }, `margin: ${classes[own]} − ${classes[other]}`),
        ...kinds.map(([, logits]) => h("td", {}, logits ? (logits[own] - logits[other]).toFixed(3) : "–"))));
      ui.logits.replaceChildren(h("thead", {}, head), h("tbody", {}, ...rows));
      const now = best(made)[0], beside = other_ && best(other_)[0];
      ui.outcome.textContent = !state.blurring && !state.multipliers.size ? `Predicted: ${classes[winner]}.`
        : `${what}: ${classes[now]}, ${now === winner ? "still" : `no longer ${classes[winner]}`}` + (other_ ? `; ${control}: ${classes[beside]}.` : ".");
      ui.outcome.classList.toggle("flipped", now !== winner);
    }

    const flip = guarded(() => working(async () => {
      const { subject } = state;
      if (!subject) throw new Error("open a picture on the bench first: click one in the gallery");
      const found = await source.flip({ key: subject.key }), n = found.features.length;
      if (state.subject !== subject) return;
      if (n) {
        state.multipliers = new Map(found.features.map((id) => [id, 0]));
        drawSliders();
        await changeSoon();
      }
      ui.flipText.textContent = n
        ? `Suppressing ${n} feature${n > 1 ? "s" : ""} (${found.features.map((id) => `#${id}`).join(", ")}) turns ${found.before} into ` +
          `${found.after}. A forward pass of the whole network ${found.verified ? "agrees" : "disagrees"}` +
          `${found.needed ? `; putting ${n > 1 ? "any of them" : "it"} back undoes it.` : "."}`
        : "No set of features was found whose suppression changes the prediction.";
      drawn("flip");
    }));

    // ---------------------------------------------------------------- what there is on the screen
    function setEntrance(name) {
      state.entrance = name;
      root.dataset.entrance = name;
      [...ui.tabs.children].forEach((tab) => tab.setAttribute("aria-selected", String(tab.dataset.name === name)));
      ui.forFeatures.hidden = name !== "features";
      ui.forPicture.hidden = name !== "picture";
      ui.forClass.hidden = name !== "class";
      state.page = 0;
      showList();
      drawn(`entrance ${name}`);
    }
    function fillClasses() {
      ui.className.replaceChildren(...options((state.facts.classes[ui.level.value] || []).map((name) => [name, name])));
    }
    const noPair = () => {
      Object.assign(state, { pair: null, page: 0 });
      ui.pairText.replaceChildren();
    };
    const classChosen = () => {
      noPair();
      showList();
      if (state.ids.length) show(state.ids[0]); else drawn("class");
    };
    const comparePair = guarded(async () => {
      state.pair = await source.pair({ one: ui.one.value, two: ui.two.value });
      ui.pairText.replaceChildren(table(["feature", "margin", "interval", "random"], state.pair.map((each) =>
        [link(each.feature_id, ""), fixed(each.value, 3), `${fixed(each.low, 3)} to ${fixed(each.high, 3)}`, fixed(each.random, 3)])),
      h("button", { type: "button", onclick: classChosen }, "back to the class"),
      h("p", { className: "quiet" }, `Change of the true class's logit less the other's when the feature is suppressed: chosen on half A, measured on ${state.pair.length ? state.pair[0].n : 0} pictures of half B; random: as much of a random direction.`));
      state.page = 0;
      showList();
      drawn("pair");
    });

    function range() {
      const name = h("select", { ariaLabel: "filter by" }, ...options(sortable().map((column) => [column, titled(column)])));
      name.value = "density_cell";
      const [low, high] = ["at least", "at most"].map((text) => h("input", { type: "number", step: "any", placeholder: text, ariaLabel: text }));
      const row = h("div", { className: "range" }, name, low, high, h("button", { type: "button", ariaLabel: "remove this filter", onclick: () => { row.remove(); filtered(); } }, "×"));
      row.range = () => [name.value, low.value === "" ? null : Number(low.value), high.value === "" ? null : Number(high.value)];
      [name, low, high].forEach((control) => control.addEventListener("input", filtered));
      return row;
    }
    const filtered = () => { state.page = 0; showList(true); drawn("list"); };
    const redraw = () => { if (state.view) { drawGallery(); drawn("gallery"); } if (state.subject) drawPicture(); };

    function buildBench() {
      ui.canvas = h("canvas", { width: 336, height: 336, tabIndex: 0 });
      ui.canvas.setAttribute("role", "img");
      let cursor = [0, 0], stroke = null;
      const under = ({ clientX, clientY }) => { // the cell there, or the nearest
        const box = ui.canvas.getBoundingClientRect();
        return [(clientY - box.top) / box.height, (clientX - box.left) / box.width].map((share, k) =>
          Math.min(state.facts.grid[k] - 1, Math.max(0, Math.floor(share * state.facts.grid[k]))));
      };
      const brushing = () => ui.brushOn.checked && source.blur;
      ui.canvas.addEventListener("click", (event) => { if (state.subject && !brushing()) chooseCell(...under(event)); });
      ui.canvas.addEventListener("pointerdown", (event) => {
        if (!state.subject || !brushing() || event.button) return;
        const cell = under(event);
        stroke = { last: cell, add: !state.brush.has(String(cell)) }; // from a blurred cell, it takes blur away
        ui.canvas.setPointerCapture(event.pointerId);
        paint(cell, stroke);
      });
      ui.canvas.addEventListener("pointermove", (event) => { if (stroke) paint(under(event), stroke); });
      ui.canvas.addEventListener("lostpointercapture", () => { if (stroke) { stroke = null; blurSoon(); } }); // once a stroke
      ui.canvas.addEventListener("keydown", (event) => {
        const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (!state.subject || (!move && event.key !== "Enter")) return;
        event.preventDefault();
        event.stopPropagation();
        if (!move) return chooseCell(...cursor);
        cursor = cursor.map((at, k) => Math.min(state.facts.grid[k] - 1, Math.max(0, at + move[k])));
        drawPicture();
        outline(ui.canvas.getContext("2d"), cursor, state.facts.grid, "#ffffff");
      });
      ui.pictureText = h("p", { className: "told" });
      ui.cellText = h("p", { className: "links" }, "Click a cell to see which features are active there.");
      ui.overlay = h("input", { type: "checkbox", checked: mode === "browser", onchange: () => { if (state.subject) { drawPicture(); drawn("picture"); } } });
      ui.brushOn = h("input", { type: "checkbox", onchange: () => ui.canvas.classList.toggle("brush", ui.brushOn.checked) });
      ui.sigma = h("select", { onchange: () => state.brush.size && blurSoon() }, ...options([[4, "4"], [8, "8"], [16, "16"]]));
      ui.sigma.value = "8";
      ui.busy = h("span", { className: "busy", hidden: true }, "working…");
      ui.pictureClass = h("select", { ariaLabel: "class of the picture" });
      ui.pictureChoice = h("select", { ariaLabel: "picture", onchange: () => openPicture(Number(ui.pictureChoice.value)) });
      ui.upload = h("input", { type: "file", accept: "image/*", ariaLabel: "a picture of your own", onchange: guarded(async () => {
        const file = ui.upload.files[0];
        if (file) await bring(() => source.upload(file));
        ui.upload.value = "";
      }) });
      ui.sliders = h("div", { className: "sliders" });
      ui.slidersText = h("p", { className: "quiet" });
      ui.logits = h("table", { className: "logits" });
      ui.outcome = h("p", { className: "told outcome" });
      ui.outcome.setAttribute("aria-live", "polite");
      ui.flipText = h("p", { className: "told" });
      ui.flip = h("button", { type: "button", onclick: flip, hidden: !source.flip }, "Minimal flip");
      const chooser = h("div", { className: "row" }, field("class", ui.pictureClass), field("picture", ui.pictureChoice),
        source.upload ? field("or your own", ui.upload) : null, ui.busy);
      const left = h("div", { className: "stage" }, ui.canvas, ui.pictureText, ui.cellText,
        h("div", { className: "row" }, mode === "browser" ? field("heat", ui.overlay) : null,
          source.blur ? field("blur brush", ui.brushOn) : null, source.blur ? field("blur, px", ui.sigma) : null));
      const right = h("div", { className: "levers" }, h("div", { className: "row" }, ui.flip,
        h("button", { type: "button", onclick: resetBench }, "Reset")), ui.outcome, ui.flipText, h("div", { className: "wide" }, ui.logits),
        ui.slidersText, ui.sliders);
      return h("section", { className: "bench", ariaLabel: "bench" },
        h("h3", {}, "Bench: change one picture's features"), chooser, h("div", { className: "columns" }, left, right));
    }

    function fillPictures() {
      const own = state.facts.bench_pictures.filter((each) => each.label === ui.pictureClass.value);
      ui.pictureChoice.replaceChildren(...options(own.map((each) => [each.picture, `${each.name}${each.right ? "" : " (misclassified)"}`])));
    }

    function chosenPicture(row) {
      const own = state.facts.bench_pictures.find((each) => each.picture === row);
      if (own && ui.pictureClass.value !== own.label) { ui.pictureClass.value = own.label; fillPictures(); }
      ui.pictureChoice.value = own ? row : "";
    }

    function build() {
      const { facts } = state, bench = buildBench();
      const classes = [...new Set(facts.bench_pictures.map((each) => each.label))];
      ui.pictureClass.replaceChildren(...options(classes.map((name) => [name, name || "any"])));
      ui.pictureClass.addEventListener("change", () => { fillPictures(); openPicture(Number(ui.pictureChoice.value)); });
      fillPictures();
      if (mode === "bench") { root.replaceChildren(ui.error, bench); return; }

      ui.tabs = h("div", { className: "tabs" }, ...[["features", "Features"], ["picture", "Picture"], ["class", "Classes"]].slice(0, facts.levels.length ? 3 : 2).map(([name, text]) => {
        const tab = h("button", { type: "button", onclick: () => setEntrance(name) }, text);
        tab.setAttribute("role", "tab");
        tab.dataset.name = name;
        return tab;
      }));
      ui.tabs.setAttribute("role", "tablist");
      ui.go = h("input", { type: "number", min: 0, max: facts.n_features - 1, ariaLabel: "feature number", placeholder: "number",
        onchange: () => { if (ui.go.value !== "") { show(Number(ui.go.value)); root.focus({ preventScroll: true }); } } });
      ui.search = h("input", { type: "search", placeholder: "search labels, classes, parts", ariaLabel: "search", oninput: filtered, onsearch: filtered,
        onkeydown: (event) => {
          if (event.key !== "Enter") return;
          root.focus({ preventScroll: true });
          if (state.ids.length && !state.ids.includes(state.feature)) show(state.ids[0]);
        } });
      ui.sort = h("select", { ariaLabel: "sort by", onchange: filtered }, ...options([...sortable(), "rating"].map((name) => [name, titled(name)])));
      ui.sort.value = ["part_ap", `${facts.level}/z`, "density_image"].find((name) => sortable().includes(name));
      ui.up = h("input", { type: "checkbox", onchange: filtered });
      ui.alive = h("input", { type: "checkbox", checked: true, onchange: filtered });
      ui.labelled = h("input", { type: "checkbox", onchange: filtered });
      ui.ranges = h("div", {});
      ui.help = h("dialog", { onclose: () => root.focus({ preventScroll: true }) }, h("h3", {}, "Keys"), table(["key", "what it does"], KEYS.map(([key, text]) => [h("kbd", {}, key), text])),
        h("button", { type: "button", onclick: () => ui.help.close() }, "Close"));
      const header = h("header", {}, ui.tabs,
        h("button", { type: "button", onclick: () => step(-1), title: "previous (←)" }, "← Previous"),
        h("button", { type: "button", onclick: () => step(1), title: "next (→)" }, "Next →"),
        h("button", { type: "button", onclick: random, title: "random (r)" }, "Random"), field("go to", ui.go),
        h("button", { type: "button", onclick: () => ui.help.showModal(), title: "keys (?)" }, "?"));

      ui.list = h("ul", { className: "list", onkeydown: roam });
      ui.count = h("span", {});
      ui.back = h("button", { type: "button", ariaLabel: "page back", onclick: () => { state.page--; showList(true); drawn("list"); } }, "‹");
      ui.forth = h("button", { type: "button", ariaLabel: "page on", onclick: () => { state.page++; showList(true); drawn("list"); } }, "›");
      ui.forFeatures = h("div", { className: "choice" }, ui.search, field("sort by", ui.sort), h("div", { className: "row" },
        field("smallest first", ui.up), field("hide dead", ui.alive), field("labelled only", ui.labelled),
        h("button", { type: "button", onclick: () => { ui.ranges.append(range()); } }, "+ filter")), ui.ranges);
      ui.forPicture = h("div", { className: "choice", hidden: true }, h("p", { className: "quiet" },
        "Features active in the bench's picture, or in the cell that you click; beside each, the change of the margin when it is suppressed."),
        h("button", { type: "button", onclick: () => { state.cell = null; showList(); if (state.subject) drawPicture(); drawn("list"); } }, "whole picture"));
      ui.level = h("select", { onchange: () => { fillClasses(); classChosen(); } }, ...options(facts.levels.map((level) => [level, level])));
      ui.className = h("select", { onchange: classChosen });
      ui.only = h("input", { type: "checkbox", onchange: () => state.feature !== null && show(state.feature) });
      const pairs = (facts.classes[facts.level] || []).map((name) => [name, name]);
      const repaired = () => { ui.compare.disabled = ui.one.value === ui.two.value; noPair(); showList(); drawn("no pair"); };
      ui.one = h("select", { ariaLabel: "first class", onchange: repaired }, ...options(pairs));
      ui.two = h("select", { ariaLabel: "second class", onchange: repaired }, ...options(pairs));
      if (pairs.length > 1) ui.two.value = pairs[1][0];
      ui.compare = h("button", { type: "button", onclick: comparePair, disabled: pairs.length < 2 }, "What tells them apart?");
      ui.pairText = h("div", { className: "wide pair" });
      ui.forClass = h("div", { className: "choice", hidden: true }, field("level", ui.level), field("class", ui.className),
        source.byClass ? field("gallery of this class only", ui.only) : null,
        source.pair ? h("div", { className: "row", hidden: pairs.length < 2 }, ui.one, h("span", {}, "or"), ui.two, ui.compare) : null, ui.pairText);
      const left = h("nav", { ariaLabel: "list of features" }, ui.forFeatures, ui.forPicture, ui.forClass,
        h("div", { className: "row pager" }, ui.back, ui.count, ui.forth), ui.list);

      ui.how = h("select", { onchange: () => { state.how = ui.how.value; show(state.feature); } }, ...options(facts.hows.map((how) => [how, HOWS[how]])));
      ui.heat = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: HEAT, oninput: () => { state.alpha = Number(ui.heat.value); state.heat = state.alpha > 0; redraw(); } });
      ui.field = h("input", { type: "checkbox", onchange: redraw, title: "a circle that holds half of the feature's gradient in the picture" });
      ui.wrong = h("input", { type: "checkbox", onchange: () => show(state.feature) });
      ui.tiles = h("div", { className: "tiles" });
      ui.empty = h("p", { className: "empty", hidden: true });
      const centre = h("main", {}, h("div", { className: "row" }, field("show", ui.how), field("heat", ui.heat),
        source.byClass ? field("misclassified only", ui.wrong) : null,
        facts.radius ? field("half of its gradient", ui.field) : null), ui.empty, ui.tiles,
      h("p", { className: "quiet" }, "One scale for the feature, from 0 to its maximum in any picture, test or not. Cyan: the cell that was picked. Red: misclassified. " +
        (state.onBench.size < facts.n_pictures ? "“bench”: a click puts it there; this atlas has the others' galleries only." : "Click a picture to put it on the bench.")));
      if (state.onBench.size < facts.n_pictures) ui.tiles.classList.add("some");

      ui.title = h("h2");
      ui.verdict = h("span", { className: "badge" });
      ui.stability = h("span", { className: "badge" });
      ui.why = h("p", { className: "quiet" });
      ui.label = h("input", { type: "text", maxLength: 200, placeholder: source.label ? "what does it show?" : "not labelled", oninput: saveSoon, onchange: saveNow, ariaLabel: "label", disabled: !source.label,
        onkeydown: (event) => { if (event.key === "Enter") { saveNow(); root.focus({ preventScroll: true }); } } });
      ui.rating = h("select", { onchange: saveSoon, ariaLabel: "rating", disabled: !source.label }, ...options([[0, "no rating"], ...[1, 2, 3, 4, 5].map((n) => [n, "★".repeat(n)])]));
      ui.note = h("textarea", { rows: 2, maxLength: 5000, placeholder: source.label ? "notes" : "no notes", oninput: saveSoon, onchange: saveNow, ariaLabel: "notes", disabled: !source.label });
      ui.saved = h("small", { className: "saved" });
      ui.saved.setAttribute("aria-live", "polite");
      ui.suggestion = h("button", { type: "button", className: "suggestion", hidden: true, disabled: !source.label });
      ui.numbers = h("dl");
      ui.histogram = svg("svg", { viewBox: "0 0 290 118", role: "img" });
      ui.histogramNote = h("p", { className: "quiet" });
      ui.selectivity = h("div");
      ui.classes = h("div", { className: "three" });
      ui.parts = h("div", { className: "wide" });
      ui.neighbours = h("div", { className: "links" });
      ui.coactive = h("div", { className: "links" });
      ui.suppress = h("button", { type: "button", disabled: true, onclick: suppressThis, title: "s" }, "Suppress on the bench");
      const fold = (title, open, ...children) => h("details", { open }, h("summary", {}, title), ...children);
      const own = h("section", { className: "naming", ariaLabel: "the feature" },
        h("div", { className: "row" }, ui.title, ui.verdict, ui.stability), columns().why ? ui.why : null,
        h("div", { className: "row" }, ui.label, ui.rating, ui.saved), facts.has_parts ? ui.suggestion : null, ui.note);
      const right = h("aside", {}, ui.numbers, ui.suppress,
        fold("Activation", true, ui.histogram, ui.histogramNote),
        fold("Classes: AUROC on half B, grey where labels in random order end up", true, ui.selectivity),
        fold("Mean of pictures' maxima, by class", false, ui.classes),
        fold("Parts", true, ui.parts), fold("Nearest decoder directions (cosine)", true, ui.neighbours), fold("Active in the same cells (share)", true, ui.coactive));
      root.replaceChildren(ui.error, header, h("div", { className: "panes" }, left, own, centre, right), bench, ui.help);
    }

    // JupyterLab forbids line breaks inside a cell, and with them Enter in every field of ours.
    root.addEventListener("beforeinput", (event) => { if (event.inputType === "insertLineBreak") event.stopPropagation(); }, true);
    root.addEventListener("keydown", (event) => {
      event.stopPropagation(); // at any key, JupyterLab takes the focus to the cell that it holds for the active one
      const typing = event.target.closest("input:not([type=checkbox]):not([type=range]), textarea, select");
      if (event.key === "Escape") { event.preventDefault(); if (ui.help && ui.help.open) ui.help.close(); root.focus(); return; }
      if (ui.help && ui.help.open) return;
      if (typing || event.ctrlKey || event.metaKey || event.altKey || mode === "bench" && event.key !== "0") return;
      if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
      const keys = {
        ArrowLeft: () => step(-1), ArrowRight: () => step(1), r: random, s: suppressThis, 0: resetBench, l: () => ui.label.focus(),
        h: () => { state.heat = !state.heat; redraw(); }, "/": () => { setEntrance("features"); ui.search.focus(); },
        "?": () => ui.help.showModal(),
      };
      if (!keys[event.key] || !state.facts) return;
      event.preventDefault();
      ui.error.hidden = true;
      keys[event.key]();
    });

    const start = guarded(async () => {
      const { facts, labels, stamp, feature } = await source.overview();
      Object.assign(state, { facts, labels, stamp, all: Array.from({ length: facts.n_features }, (_, id) => id), onBench: new Set(facts.bench_pictures.map((each) => each.picture)) });
      build();
      if (mode === "browser") {
        fillClasses();
        setEntrance("features");
        const first = Number.isInteger(feature) && feature >= 0 && feature < facts.n_features ? feature : state.ids[0] ?? 0;
        await show(first);
      }
      if (facts.bench_pictures.length) await openPicture(facts.bench_pictures[0].picture);
      drawn("ready");
    });
    root.append(ui.error, h("p", { className: "quiet" }, "loading…"));
    addEventListener("pagehide", saveNow);
    addEventListener("focus", hear);
    root.addEventListener("focusin", (event) => { if (!root.contains(event.relatedTarget)) hear(); });
    start();
    return { show: guarded(show), close: () => { saveNow(); removeEventListener("pagehide", saveNow); removeEventListener("focus", hear); removeEventListener("pointerdown", whose, true); state.closed = true; }, state, focus: () => root.focus({ preventScroll: true }) };
  }

  return { mount, softmax, headLogits };
})();
