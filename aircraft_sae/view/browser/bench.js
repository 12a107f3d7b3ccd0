// The bench: one picture, with its features multiplied or its cells blurred, and the network's answer.
function benchPart(app) {
  const { mode, root, source, state, ui, drawn, fail, guarded, columns, working } = app;
  const bring = latest(guarded((get) => working(async () => openSubject(await get()))));
  const openPicture = (row) => bring(() => source.open(row));
  async function another(row) { // of the same class: keep the margin, and the multipliers of features active there
    const before = state.subject, kept = [...state.multipliers]; // before it opens
    await openPicture(row);
    const { subject } = state, active = new Set(subject && subject.active.map((each) => each.feature_id));
    if (!before || !subject || subject.picture !== row || subject === before || subject.own !== before.own) return;
    const x = kept.filter(([id]) => active.has(id)).map((each) => each.join(":")).join(",");
    await restore({ against: before.other, x });
    drawn(`picture ${row}`);
  }
  function openSubject(subject) {
    Object.assign(state, { subject, multipliers: new Map(), brush: new Set(), limit: new Set(), blurred: null, blurring: false, cell: null });
    ui.limitOn.checked = false; // no cell of it is chosen
    brushes();
    state.after = { after: subject.before, random: subject.before };
    ui.against.replaceChildren(...options(subject.classes.filter((name) => name !== subject.own).map((name) => [name, name])));
    ui.against.value = subject.other;
    chosenPicture(subject.picture);
    drawPicture();
    app.drawSliders();
    app.drawLogits();
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
    limited().forEach((key) => outline(context, key.split(",").map(Number), grid, "#ff4dff"));
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
  function mapOf(id) { // the feature's activations in the picture on the bench
    const { cells } = (state.blurred || state.subject);
    return Float32Array.from(cells, (cell) => (cell.find(([other]) => other === id) || [0, 0])[1]);
  }

  function tellCell(row, column) {
    state.cell = [row, column];
    drawPicture();
    const found = state.subject.cells[row * state.facts.grid[1] + column];
    ui.cellText.replaceChildren(`Row ${row + 1}, column ${column + 1}: `,
      ...(found.length ? found.slice(0, 8).map(([id, value]) => app.link(id, number(value, 2))) : ["no feature is active"]));
  }
  // The painted cells: those to blur, or those that sliders are limited to.
  const painted = () => (ui.limitOn.checked ? state.limit : ui.brushOn.checked ? state.brush : null);
  const limited = () => (ui.limitOn.checked ? [...state.limit] : []);
  function brushes() { // say what the brush does
    ui.canvas.classList.toggle("brush", Boolean(painted()));
    const none = state.limit.size ? "" : " None is chosen yet: sliders act in all cells.";
    ui.cellText.textContent = !painted() ? "Click a cell to see which features are active there."
      : `Click or drag over cells to ${ui.limitOn.checked ? "choose" : "blur"} them, and do it again to undo.${ui.limitOn.checked ? none : ""}`;
  }
  const paintedSoon = () => (ui.limitOn.checked ? limitSoon() : blurSoon());
  function limitSoon() {
    brushes();
    drawPicture();
    if (state.multipliers.size) return app.changeSoon();
    drawn("logits");
  }
  function chooseCell(row, column) {
    const key = `${row},${column}`, cells = painted();
    if (cells) {
      cells.has(key) ? cells.delete(key) : cells.add(key);
      drawPicture();
      return paintedSoon();
    }
    tellCell(row, column);
    if (mode === "browser") {
      app.setEntrance("picture");
      ui.canvas.scrollIntoView({ block: "nearest" });
      ui.canvas.focus({ preventScroll: true });
    }
    drawn(`cell ${row},${column}`);
  }
  function paint(cell, stroke) { // and the cells on the way, which a fast pointer skips
    const n = Math.max(1, ...cell.map((at, k) => Math.abs(at - stroke.last[k])));
    for (let i = 0; i <= n; i++) {
      const key = String(cell.map((at, k) => Math.round(stroke.last[k] + ((at - stroke.last[k]) * i) / n)));
      stroke.add ? stroke.cells.add(key) : stroke.cells.delete(key);
    }
    stroke.last = cell;
    drawPicture();
  }
  const blurSoon = latest(guarded(() => working(async () => {
    const { brush, subject } = state, cells = [...brush].map((key) => key.split(",").map(Number));
    const blurred = cells.length ? await source.blur({ key: subject.key, cells, sigma: Number(ui.sigma.value) }) : null;
    if (state.brush !== brush) return; // reset meanwhile, or another picture
    Object.assign(state, { blurred, blurring: blurred !== null });
    drawPicture();
    app.drawLogits();
    drawn(cells.length ? `blur ${cells.length}` : "blur none");
  })));

  const under = ({ clientX, clientY }) => { // the cell there, or the nearest one
    const box = ui.canvas.getBoundingClientRect();
    return [(clientY - box.top) / box.height, (clientX - box.left) / box.width].map((share, k) =>
      Math.min(state.facts.grid[k] - 1, Math.max(0, Math.floor(share * state.facts.grid[k]))));
  };

  function buildBench() {
    ui.canvas = h("canvas", { width: 336, height: 336, tabIndex: 0 });
    ui.canvas.setAttribute("role", "img");
    let cursor = [0, 0], stroke = null;
    ui.canvas.addEventListener("click", (event) => { if (state.subject && !painted()) chooseCell(...under(event)); });
    ui.canvas.addEventListener("pointerdown", (event) => {
      const cells = painted();
      if (!state.subject || !cells || event.button) return;
      const cell = under(event);
      stroke = { cells, last: cell, add: !cells.has(String(cell)) }; // starting on a painted cell, it erases
      ui.canvas.setPointerCapture(event.pointerId);
      paint(cell, stroke);
    });
    ui.canvas.addEventListener("pointermove", (event) => { if (stroke) paint(under(event), stroke); });
    ui.canvas.addEventListener("lostpointercapture", () => { if (stroke) { stroke = null; paintedSoon(); } }); // once a stroke
    ui.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!state.subject || (!move && event.key !== "Enter")) return;
      event.preventDefault();
      event.stopPropagation();
      if (move) {
        cursor = cursor.map((at, k) => Math.min(state.facts.grid[k] - 1, Math.max(0, at + move[k])));
        drawPicture();
      } else chooseCell(...cursor);
      outline(ui.canvas.getContext("2d"), cursor, state.facts.grid, "#ffffff");
    });
    ui.pictureText = h("p", { className: "told" });
    ui.cellText = h("p", { className: "links" }, "Click a cell to see which features are active there.");
    ui.overlay = h("input", { type: "checkbox", checked: mode === "browser", onchange: () => { if (state.subject) { drawPicture(); drawn("picture"); } } });
    ui.brushOn = h("input", { type: "checkbox", onchange: () => paintWith(ui.brushOn) });
    ui.limitOn = h("input", { type: "checkbox", onchange: () => paintWith(ui.limitOn) });
    ui.sigma = h("select", { onchange: () => state.brush.size && blurSoon() }, ...options([[4, "4"], [8, "8"], [16, "16"]]));
    ui.sigma.value = "8";
    ui.busy = h("span", { className: "busy", hidden: true }, "working…");
    ui.pictureClass = h("select", { ariaLabel: "class of the picture" });
    ui.pictureChoice = h("select", { ariaLabel: "picture", onchange: guarded(() => another(Number(ui.pictureChoice.value))) });
    ui.upload = h("input", { type: "file", accept: "image/*", ariaLabel: "a picture of your own", onchange: guarded(async () => {
      const file = ui.upload.files[0];
      if (file) await bring(() => source.upload(file));
      ui.upload.value = "";
    }) });
    const { buttons, told, details } = app.buildLevers();
    const notes = h("div", { className: "notes" }, ui.pictureText, ui.cellText,
      h("div", { className: "row" }, mode === "browser" ? field("heat", ui.overlay) : null,
        field("sliders in chosen cells only", ui.limitOn), field("blur brush", ui.brushOn), field("blur, px", ui.sigma)));
    const classes = [...new Set(state.facts.bench_pictures.map((each) => each.label))];
    ui.pictureClass.replaceChildren(...options(classes.map((name) => [name, name || "any"])));
    ui.pictureClass.addEventListener("change", () => { fillPictures(); openPicture(Number(ui.pictureChoice.value)); });
    fillPictures();
    return h("section", { className: "bench", ariaLabel: "bench" },
      h("div", { className: "row" }, h("h3", { title: "change one picture's features" }, "Bench"), field("class", ui.pictureClass), field("picture", ui.pictureChoice),
        field("or your own", ui.upload), ...buttons, ui.busy),
      h("div", { className: "stage" }, h("div", { className: "strip" }, ui.canvas, told), notes, details));
  }

  function paintWith(one) { // one brush at a time; without chosen cells, sliders act in all
    const limited = one === ui.limitOn || ui.limitOn.checked;
    for (const other of [ui.brushOn, ui.limitOn]) other.checked &&= other === one;
    brushes();
    if (limited && state.subject) limitSoon();
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

  // The bench's state for links; goTo restores it.
  const place = () => {
    const { subject } = state, all = [...state.multipliers];
    return subject && subject.picture !== null && subject.picture !== undefined ? {
      picture: subject.picture, against: subject.other, ...(all.length && { x: all.map((each) => each.join(":")).join(",") }),
      ...(limited().length && { limit: limited().join(";") }), ...(state.brush.size && { blur: [...state.brush].join(";"), sigma: ui.sigma.value, ...(!state.blurring && { last: "features" }) }),
      ...(state.cell && { cell: state.cell.join(",") }),
    } : {};
  };
  async function goTo(wanted, lost = []) {
    await openPicture(Number(wanted.picture));
    if (state.subject?.picture !== Number(wanted.picture)) return;
    await restore(wanted, lost);
    if (lost.length) fail(new Error(lost.join("; "))); // all that the link could not restore
  }
  const inGrid = (key) => /^\d+,\d+$/.test(key || "") && key.split(",").every((each, k) => Number(each) < state.facts.grid[k]);
  const asCells = (text) => text.split(";").filter(inGrid).map((key) => String(key.split(",").map(Number)));
  async function restore({ against: name, x, limit, blur, sigma, last, cell }, lost = []) {
    const { subject } = state;
    if (name && (!subject.classes.includes(name) || name === subject.own)) lost.push(`the link's margin is against ${name}, which is not another class here`);
    else if (name && name !== subject.other) await app.against(name);
    if (limit && !asCells(limit).length) lost.push("the link chooses cells that this picture does not have: features change in all cells");
    else if (limit) {
      Object.assign(ui.limitOn, { checked: true });
      state.limit = new Set(asCells(limit));
      paintWith(ui.limitOn);
    }
    if (x) {
      const there = new Set(state.subject.active.map((each) => each.feature_id));
      const given = x.split(",").map((each) => each.split(":").map(Number)), kept = given.filter(([id, factor]) => there.has(id) && factor >= 0 && factor <= 4);
      state.multipliers = new Map(kept);
      if (kept.length < given.length) lost.push("the link changes features that are not active here, or by a factor outside 0 to 4: they stay as they are");
      app.drawSliders();
      await app.changeSoon();
    }
    if (blur) {
      ui.sigma.value = sigma || "8";
      state.brush = new Set(asCells(blur));
      await blurSoon();
      if (last === "features") { state.blurring = false; app.drawLogits(); }
    }
    if (inGrid(cell)) {
      tellCell(...cell.split(",").map(Number));
      if (state.entrance === "picture") app.showList();
    }
  }

  Object.assign(app, { brushes, benchPlace: place, benchTo: goTo, buildBench, drawPicture, limited, openPicture });
}
