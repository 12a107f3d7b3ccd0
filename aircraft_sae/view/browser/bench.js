// One picture, whose features are multiplied and whose cells are blurred, and what the network makes of it.
function benchPart(app) {
  const { mode, root, source, state, ui, drawn, fail, guarded, columns } = app;
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
    ui.pairText_.replaceChildren();
    ui.against.replaceChildren(...options(subject.classes.filter((name) => name !== subject.own).map((name) => [name, name])));
    ui.against.value = subject.other;
    ui.cellText.textContent = "Click a cell to see which features are active there.";
    chosenPicture(subject.picture);
    drawPicture();
    drawSliders();
    drawLogits();
    if (state.entrance === "picture") app.showList();
    if (ui.suppress) app.drawSuppress();
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

  const against = latest(guarded((name) => working(async () => { // another class for the margin
    const { subject } = state;
    ui.against.value = subject.other; // until it is known
    const told = await source.against({ key: subject.key, name });
    if (state.subject !== subject) return;
    Object.assign(subject, told);
    ui.against.value = subject.other;
    ui.pairText_.replaceChildren();
    drawSliders();
    drawLogits();
    if (state.entrance === "picture") app.showList();
    drawn(`against ${name}`);
  })));
  const overPictures = guarded(() => working(async () => { // this feature, these two classes, all their pictures
    const { subject, feature } = state, [one, two] = [subject.own, subject.other];
    const found = await source.effect({ feature_id: feature, one, two });
    if (state.subject !== subject || state.feature !== feature || subject.other !== two) return;
    const told = ({ value, low, high }) => `${fixed(value)} [${fixed(low)}, ${fixed(high)}]`;
    ui.pairText_.replaceChildren(
      `Suppressing #${feature} changes the margin of the true class over the other of ${one} and ${two} by ${told(found.effect)} in ${found.effect.n} test pictures; ` +
      `as much of a random direction by ${told(found.random)}. It changes most in `,
      ...found.pictures.map(({ picture, label, change }) =>
        h("button", { type: "button", className: "link", onclick: () => reopen(picture, label === one ? two : one, feature) }, `${label}, picture ${picture}`, h("small", {}, ` ${fixed(change, 2)}`))),
    );
    drawn("effect");
  }));

  async function reopen(picture, other, feature) { // with the feature suppressed, and the list that it was chosen from
    const kept = [...ui.pairText_.childNodes];
    await goTo({ picture, against: other, x: `${feature}:0` });
    ui.pairText_.replaceChildren(...kept);
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
      ...(found.length ? found.slice(0, 8).map(([id, value]) => app.link(id, number(value, 2))) : ["no feature is active"]));
    if (mode === "browser") {
      app.setEntrance("picture");
      ui.canvas.scrollIntoView({ block: "nearest" });
      ui.canvas.focus({ preventScroll: true });
    }
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
    if (mode === "browser") name.addEventListener("click", () => app.show(Number(row.dataset.id)));
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
      text.textContent = app.caption(own.feature_id) || `peak ${number(own.peak, 2)}`;
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
    Object.assign(state, { multipliers: new Map(), brush: new Set(), blurred: null, blurring: false, after: { after: state.subject.before, random: state.subject.before } });
    ui.flipText.textContent = "";
    drawPicture();
    drawSliders();
    changeSoon();
  }
  function suppressThis() {
    if (!state.subject) return fail(new Error("open a picture on the bench first: click one in the gallery"));
    if (!state.subject.active.some((each) => each.feature_id === state.feature)) {
      return fail(new Error(`feature ${state.feature} is not ${source.upload ? "active in the bench's picture" : "among those that this atlas has of the bench's picture"}`));
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
    const true_ = subject.label ? classes.indexOf(subject.label) : -1, [winner] = best(subject.before);
    const own = classes.indexOf(subject.own), other = classes.indexOf(subject.other);
    const shown = [...new Set([winner, own, other, ...best(made).slice(0, 3), ...best(subject.before).slice(0, 4)])].slice(0, 6);
    const head = h("tr", {}, h("th", { scope: "col" }, "class"), ...kinds.map(([name]) => h("th", { scope: "col" }, name)));
    const probabilities = kinds.map(([, logits]) => logits && softmax(logits));
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
    const margin = (logits) => (logits[own] - logits[other]).toFixed(2), changed = state.blurring || state.multipliers.size > 0;
    ui.margin.textContent = `Margin ${classes[own]} − ${classes[other]}: ${margin(subject.before)}` + (changed ? ` → ${margin(made)}${other_ ? `; ${control}: ${margin(other_)}` : ""}.` : ".");
    drawEcho();
  }
  function drawEcho() { // beside the button for `s`: in the panel of a feature that was changed, not in another's
    if (!ui.echo) return;
    const own = state.subject && (state.blurring || state.multipliers.has(state.feature)), what = state.blurring ? "Cells blurred" : "Features changed";
    const which = state.blurring ? what : [...state.multipliers].slice(0, 4).map(([id, factor]) => `#${id} ×${factor}`).join(", ") + (state.multipliers.size > 4 ? ", …" : "");
    ui.echo.textContent = own ? `${ui.outcome.textContent.replace(what, which)} ${ui.margin.textContent}` : "";
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
    ui.margin = h("p", {});
    ui.against = h("select", { ariaLabel: "class that the margin is against", onchange: () => {
      root.focus({ preventScroll: true }); // so that `s` is no search in the list of classes
      against(ui.against.value);
    } });
    ui.pairText_ = h("p", { className: "links" });
    ui.over = h("button", { type: "button", onclick: overPictures, hidden: !source.effect || mode === "bench" || !state.facts.level, title: "suppress this feature in all test pictures of the two classes of the margin" }, "In all pictures of these two");
    ui.flip = h("button", { type: "button", onclick: flip, hidden: !source.flip }, "Minimal flip");
    ui.flip.title = "the fewest features whose suppression changes the prediction, whatever was changed before";
    const chooser = h("div", { className: "row" }, field("class", ui.pictureClass), field("picture", ui.pictureChoice),
      source.upload ? field("or your own", ui.upload) : null, ui.busy);
    const left = h("div", { className: "stage" }, ui.canvas, ui.pictureText, ui.cellText,
      h("div", { className: "row" }, mode === "browser" ? field("heat", ui.overlay) : null,
        source.blur ? field("blur brush", ui.brushOn) : null, source.blur ? field("blur, px", ui.sigma) : null));
    const right = h("div", { className: "levers" }, h("div", { className: "row" }, ui.flip,
      h("button", { type: "button", onclick: resetBench }, "Reset"), field("margin against", ui.against), ui.over),
    ui.outcome, ui.margin, ui.flipText, ui.pairText_, h("div", { className: "wide" }, ui.logits),
      ui.slidersText, ui.sliders);
    const classes = [...new Set(state.facts.bench_pictures.map((each) => each.label))];
    ui.pictureClass.replaceChildren(...options(classes.map((name) => [name, name || "any"])));
    ui.pictureClass.addEventListener("change", () => { fillPictures(); openPicture(Number(ui.pictureChoice.value)); });
    fillPictures();
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

  // Where the bench stands, and back to it: for links.
  const place = () => {
    const { subject } = state, all = [...state.multipliers];
    return subject && subject.picture !== null && subject.picture !== undefined ? {
      picture: subject.picture, against: subject.other, ...(all.length && { x: all.map((each) => each.join(":")).join(",") }),
      ...(state.brush.size && { blur: [...state.brush].join(";"), sigma: ui.sigma.value }),
    } : {};
  };
  async function goTo({ picture, against: name, x, blur, sigma }) {
    await openPicture(Number(picture));
    if (state.subject?.picture !== Number(picture)) return;
    if (name && name !== state.subject.other) await against(name);
    if (x) {
      const there = new Set(state.subject.active.map((each) => each.feature_id));
      const given = x.split(",").map((each) => each.split(":").map(Number)), kept = given.filter(([id]) => there.has(id));
      state.multipliers = new Map(state.facts.switches ? kept.slice(0, 1) : kept);
      if (kept.length < given.length) fail(new Error("the link changes features that are not among this picture's here: they stay as they are"));
      drawSliders();
      await changeSoon();
    }
    if (blur && source.blur) {
      ui.sigma.value = sigma || "8";
      state.brush = new Set(blur.split(";"));
      await blurSoon();
    }
  }

  Object.assign(app, { benchPlace: place, drawEcho, benchTo: goTo, buildBench, drawPicture, drawSliders, openPicture, resetBench, suppressThis });
}
