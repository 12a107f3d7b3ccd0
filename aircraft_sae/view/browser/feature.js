// One feature: its gallery and its measurements.
function featurePart(app) {
  const { mode, root, source, state, ui, pictures, views, drawn, fail, guarded, columns } = app;
  function asked(id) {
    const wanted = { feature_id: id, how: state.how };
    if (ui.only.checked && state.entrance === "class") Object.assign(wanted, { level: ui.level.value, name: ui.className.value });
    if (ui.wrong.checked) wanted.wrong = true;
    return wanted;
  }
  async function viewed(wanted) {
    const key = JSON.stringify(wanted);
    if (!views.get(key)) { // kept while on its way: a prefetched feature is not asked for twice
      const coming = source.feature(wanted, [...pictures.keys()]);
      views.set(key, coming);
      coming.then((view) => view.fresh.splice(0).forEach(([row, bitmap]) => pictures.set(row, bitmap)), () => views.delete(key));
    }
    const view = await views.get(key);
    const rows = view.gallery.map((each) => each.picture).filter((row) => !pictures.get(row));
    if (rows.length) (await source.pictures([...new Set(rows)])).forEach(([row, bitmap]) => pictures.set(row, bitmap));
    return view;
  }

  let pause = 0;
  const fetchAndDraw = latest(guarded(async (id) => {
    const view = await viewed(asked(id));
    if (state.closed || id !== state.feature) return; // another one has been chosen
    state.view = view;
    drawGallery();
    drawFacts();
    if (state.subject) { app.drawPicture(); app.drawSliders(); } // its heat and its slider
    ui.live.textContent = `Feature ${id} ${app.caption(id)}`;
    root.dataset.feature = id;
    drawn(`feature ${id}`);
    setTimeout(() => { // once it is on the screen
      if (state.feature !== id) return;
      if (source.chosen) source.chosen(id);
      const next = state.ids[state.ids.indexOf(id) + state.towards];
      if (next !== undefined) viewed(asked(next)).catch(() => {});
      clearTimeout(pause);
      pause = setTimeout(app.hear, 300); // not between two key presses
    });
  }));

  function show(id) {
    if (!Number.isInteger(id) || id < 0 || id >= state.facts.n_features) {
      ui.go.value = state.feature;
      return fail(new Error(`feature ${id} is not one of 0 .. ${state.facts.n_features - 1}`));
    }
    app.saveNow();
    if (id !== state.feature) { state.feature = id; app.drawLabel(); }
    ui.go.value = id;
    app.showList();
    return fetchAndDraw(id);
  }

  function drawGallery() {
    const { gallery, maps } = state.view, [rows, columns_] = state.facts.grid, cells = rows * columns_;
    const top = columns().max[state.feature] || 1e-9, tile = state.facts.tile;
    ui.empty.hidden = gallery.length > 0;
    ui.empty.textContent = columns().density_cell[state.feature]
      ? "Not active in any of these test pictures." : "A dead feature: never active in any picture.";
    while (ui.tiles.children.length < gallery.length) {
      const canvas = h("canvas", { width: tile, height: tile }), button = h("button", { type: "button", className: "tile" }, canvas, h("span"));
      button.addEventListener("click", () => {
        app.openPicture(Number(button.dataset.picture));
        ui.canvas.scrollIntoView({ block: "nearest" });
      });
      button.addEventListener("mouseenter", () => mark(Number(button.dataset.value)));
      button.addEventListener("mouseleave", () => mark(null));
      ui.tiles.append(button);
    }
    [...ui.tiles.children].forEach((button, i) => {
      button.hidden = i >= gallery.length;
      if (button.hidden) return;
      const each = gallery[i], [canvas, text] = button.children, context = canvas.getContext("2d", { willReadFrequently: true });
      closeUp(context, each.cell, ui.crop.checked ? CLOSE : 1);
      const map = maps.subarray(i * cells, (i + 1) * cells), alpha = state.heat ? state.alpha : 0;
      drawHeat(context, pictures.get(each.picture), map, state.facts.grid, top, alpha, state.facts.colours);
      if (state.heat) outline(context, each.cell, state.facts.grid);
      button.dataset.picture = each.picture;
      button.dataset.value = each.value;
      button.classList.toggle("wrong", each.predicted !== each.label);
      text.textContent = `${Math.round((100 * each.value) / top)}% · ${each.label}`;
      button.ariaLabel = button.title =
        `${each.label}${each.predicted !== each.label ? `, taken for ${each.predicted}` : ""}: ${number(each.value)}, ` +
        `${Math.round((100 * each.value) / top)}% of this feature's maximum, in row ${each.cell[0] + 1}, column ${each.cell[1] + 1}. Open it on the bench.`;
    });
  }

  const CLOSE = 224 / 72;
  function closeUp(context, cell, zoom) { // about a third of the picture, around the cell
    const { width } = context.canvas;
    const [y, x] = [0, 1].map((k) => Math.min(0, Math.max(width * (1 - zoom), width / 2 - ((cell[k] + 0.5) * width * zoom) / state.facts.grid[k])));
    context.setTransform(zoom, 0, 0, zoom, x, y);
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
      `${active.toLocaleString("en")} of ${n_cells.toLocaleString("en")} test cells are active; the counts are on a logarithmic scale.`;
  }
  function mark(value) {
    if (!ui.marker || !state.view) return;
    const { left, right } = HISTOGRAM, x = left + ((right - left) * value) / state.view.histogram.top;
    ui.marker.setAttribute("visibility", value === null ? "hidden" : "visible");
    if (value !== null) { ui.marker.setAttribute("x1", x); ui.marker.setAttribute("x2", x); }
  }

  const link = (id, text) => (mode === "browser" // the bench alone shows no features
    ? h("button", { type: "button", className: "link", title: app.caption(id), onclick: () => show(id) }, `#${id}`, h("small", {}, ` ${text}`))
    : h("span", {}, `#${id}`, h("small", {}, ` ${text}`)));

  function drawSuggestion() {
    const id = state.feature, c = columns(), part = c.part && c.part[id], useful = part && (c.part_ap[id] || 0) >= 0.1;
    ui.suggestion.hidden = !useful || !!ui.label.value;
    if (useful) ui.suggestion.textContent = `suggestion: ${words(part)} (AP ${fixed(c.part_ap[id], 2)})`;
    ui.suggestion.onclick = () => { ui.label.value = words(part); app.saveSoon(); };
  }
  function drawSuppress() {
    const there = state.subject && state.subject.active.some((each) => each.feature_id === state.feature);
    ui.suppress.disabled = !there;
    app.drawEcho();
    ui.suppress.title = there ? "s" : "this feature is not active in the picture on the bench";
  }
  function drawFacts() {
    const id = state.feature, c = columns(), view = state.view;
    const verdict = c.verdict && c.verdict[id];
    ui.verdict.textContent = verdict || (state.facts.has_verdicts ? "not tested" : "no verdicts yet: run notebook 05");
    ui.verdict.className = `badge ${verdict && verdict.startsWith("detector") ? "good" : ""}`;
    ui.verdict.title = (c.why && c.why[id] && `failed: ${c.why[id]}`) || "";
    const match = c.seed_match && c.seed_match[id];
    ui.stability.textContent = match === undefined || match === null ? "stability not known" : `other seeds: cosine ${fixed(match, 2)}`;
    ui.stability.className = `badge ${match >= 0.7 ? "good" : ""}`;
    ui.why.textContent = (c.why && c.why[id] && `Tests failed: ${c.why[id]}.`) || "";
    const rows = [
      ["active in", `${shown("density_cell", c.density_cell[id])}% of cells, ${shown("density_image", c.density_image[id])}% of pictures (all splits)`],
      ["when active", `mean ${number(c.mean[id])}, maximum ${number(c.max[id])} (all splits)`],
    ];
    if (c.suppressed) rows.push(["suppressing it", `changes the true class's logit against the others by ${fixed(c.suppressed[id])}; a random direction changes it by ${fixed(c.suppressed_random[id])}`]);
    ui.numbers.replaceChildren(...rows.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
    drawHistogram(view.histogram);
    ui.selectivity.replaceChildren(...view.selectivity.map((each) => {
      const low = each.null === null ? 0.5 : Math.max(0, 0.5 - each.null), high = each.null === null ? 0.5 : Math.min(1, 0.5 + each.null);
      const bar = h("span", { className: "scale" },
        h("span", { className: "band", style: `left:${100 * low}%;width:${100 * (high - low)}%` }),
        h("span", { className: "dot", style: `left:${100 * (each.auroc ?? 0.5)}%`, hidden: each.auroc === null }));
      const told = each.z === null ? "too rare to test" : `AUROC ${fixed(each.auroc, 2)}, z ${number(each.z)}`;
      return h("div", { className: "level" }, h("b", {}, each.level), h("span", {}, each.class ?? "–"), bar, h("small", {}, told));
    }));
    const { pushes } = view;
    const signed = ([name, value]) => `${name} ${value > 0 ? "+" : "−"}${fixed(Math.abs(value))}${Math.abs(value) > pushes.band ? "*" : ""}`;
    ui.pushes.replaceChildren(...(pushes ? [
      h("p", {}, h("b", {}, "up: "), pushes.up.map(signed).join(", ")), h("p", {}, h("b", {}, "down: "), pushes.down.map(signed).join(", ")),
      h("p", { className: "quiet" }, `What the feature adds to each logit, less the mean over classes, in ${pushes.n} test pictures where it is active. 95% of random directions of the same length move no class by more than ±${fixed(pushes.band)}; * marks what is beyond that.`),
    ] : [h("p", { className: "quiet" }, view.histogram.counts.some(Boolean)
      ? "This network needs a forward pass for each picture: the bench runs it for one picture." : "Active in no test picture.")]));
    ui.classes.replaceChildren(...Object.entries(view.classes).map(([level, bars]) => {
      const most = bars.length ? bars[0][1] : 1;
      return h("div", { className: "bars" }, h("b", {}, level), ...bars.map(([name, value]) =>
        h("div", {}, h("span", { className: "fill", style: `width:${(60 * value) / most}%` }), h("small", {}, `${name} ${number(value, 2)}`))));
    }));
    ui.parts.replaceChildren(state.facts.has_parts
      ? table(["part", "AP", "chance", "lost without it"], view.parts.slice(0, 6).map((each) =>
        [words(each.part), fixed(each.ap, 2), fixed(each.prevalence, 2), percent(each.response, 0)]))
      : h("p", { className: "quiet" }, "These pictures have no part masks: the parts that a feature follows are unknown."));
    ui.neighbours.replaceChildren(...view.neighbours.map((each) => link(each.feature_id, fixed(each.cosine, 2))));
    drawSuppress();
  }

  function buildFeature() { // the gallery, the name, the measurements
    const { facts } = state;
    ui.how = h("select", { onchange: () => { state.how = ui.how.value; show(state.feature); } }, ...options(facts.hows.map((how) => [how, HOWS[how]])));
    ui.heat = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: HEAT, oninput: () => { state.alpha = Number(ui.heat.value); state.heat = state.alpha > 0; app.redraw(); } });
    ui.crop = h("input", { type: "checkbox", onchange: app.redraw });
    ui.wrong = h("input", { type: "checkbox", onchange: () => show(state.feature) });
    ui.tiles = h("div", { className: "tiles" });
    ui.empty = h("p", { className: "empty", hidden: true });
    const centre = h("main", {}, h("div", { className: "row" }, field("show", ui.how), field("heat", ui.heat),
      field("misclassified only", ui.wrong), field("close-ups", ui.crop)), ui.empty, ui.tiles,
    h("p", { className: "quiet" }, "Heat is on one scale for the feature, from 0 to its maximum in any picture of the study. Cyan: the cell whose activation is given; a cell also sees pixels beyond its square. Red: misclassified. Click a picture to put it on the bench."));

    ui.title = h("h2");
    ui.verdict = h("span", { className: "badge" });
    ui.stability = h("span", { className: "badge" });
    ui.why = h("p", { className: "quiet" });
    ui.label = h("input", { type: "text", maxLength: 200, placeholder: "what does it show?", oninput: app.saveSoon, onchange: app.saveNow, ariaLabel: "label",
      onkeydown: (event) => { if (event.key === "Enter") { app.saveNow(); root.focus({ preventScroll: true }); } } });
    ui.rating = h("select", { onchange: app.saveSoon, ariaLabel: "rating" }, ...options([[0, "no rating"], ...[1, 2, 3, 4, 5].map((n) => [n, "★".repeat(n)])]));
    ui.note = h("textarea", { rows: 2, maxLength: 5000, placeholder: "notes", oninput: app.saveSoon, onchange: app.saveNow, ariaLabel: "notes" });
    ui.saved = h("small", { className: "saved" });
    ui.saved.setAttribute("aria-live", "polite");
    ui.suggestion = h("button", { type: "button", className: "suggestion", hidden: true });
    ui.numbers = h("dl");
    ui.histogram = svg("svg", { viewBox: "0 0 290 118", role: "img" });
    ui.histogramNote = h("p", { className: "quiet" });
    ui.selectivity = h("div");
    ui.pushes = h("div");
    ui.classes = h("div");
    ui.parts = h("div", { className: "fitted" });
    ui.neighbours = h("div", { className: "links" });
    ui.echo = h("p", { className: "told echo" }); // the bench's outcome, beside the button for `s`
    ui.suppress = h("button", { type: "button", disabled: true, onclick: app.suppressThis, title: "s" }, "Suppress on the bench");
    const fold = (title, open, ...children) => h("details", { open }, h("summary", {}, title), ...children);
    const own = h("section", { className: "naming", ariaLabel: "the feature" },
      h("div", { className: "row" }, ui.title, ui.verdict, ui.stability), columns().why ? ui.why : null,
      h("div", { className: "row" }, ui.label, ui.rating, ui.saved), facts.has_parts ? ui.suggestion : null, ui.note,
      h("div", { className: "row" }, ui.suppress, ui.echo));
    const right = h("aside", {}, ui.numbers,
      fold("Activation", true, ui.histogram, ui.histogramNote),
      fold("Classes: AUROC on half B; grey: range of shuffled labels", true, ui.selectivity),
      fold("Classes it pushes up and down", true, ui.pushes),
      fold("Mean of the pictures' maxima, by class", false, ui.classes),
      fold("Parts", true, facts.has_parts ? wide(ui.parts) : ui.parts), fold("Nearest decoder directions (cosine)", true, ui.neighbours));
    return { centre, own, right };
  }

  // The gallery's settings for links; galleryTo restores them.
  const controls = () => ({ show: [ui.how, "top"], heat: [ui.heat, String(HEAT)], wrong: [ui.wrong, false], close: [ui.crop, false] });
  const galleryPlace = () => ({ ...placed(controls()), ...(!state.heat && { plain: "1" }) });
  function galleryTo(wanted) {
    place(controls(), wanted);
    state.how = ui.how.value;
    state.heat = wanted.plain !== "1";
    state.alpha = Number(ui.heat.value);
  }

  Object.assign(app, { galleryPlace, galleryTo, buildFeature, drawGallery, drawSuggestion, drawSuppress, link, show });
}
