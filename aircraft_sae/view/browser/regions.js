// The part of the aircraft that a linear head names in each cell: as it is, with features changed, and with random
// directions in their place. The head is linear in a cell's acts, so all of this is computed here.
const PART_COLOURS = [ // twelve that colour-blind people can tell apart: Krzywinski, mk.bcgsc.ca/colorblind
  "#008df9", "#ffc33b", "#e20134", "#00fccf", "#8400cd", "#ff6e3a", "#009f81", "#ffb2fd", "#9f0162", "#00c2f9", "#a40122", "#ff5aaf",
];
const partColour = (region) => PART_COLOURS[(region - 1) % PART_COLOURS.length];

// The head's logits for each cell: the original ones plus (m - 1) f times what a unit of each feature adds.
// seen: {cells, regions}; adds: (features, regions); multipliers: {feature: m}; acts(i): whether cell i changes.
function regionLogits({ cells, regions }, adds, multipliers, acts = () => true) {
  return regions.map((logits, i) => {
    const made = Float64Array.from(logits), n = made.length;
    for (const [id, value] of acts(i) ? cells[i] : []) {
      const change = ((multipliers.get(id) ?? 1) - 1) * value;
      if (change) for (let r = 0; r < n; r++) made[r] += change * adds[id * n + r];
    }
    return made;
  });
}
const named = (logits) => logits.map((each) => each.indexOf(Math.max(...each)));

function regionsPart(app) {
  const { state, ui } = app;
  let at = null; // the cell whose names are shown
  function drawRegions() {
    const { head, subject, blurred, multipliers, facts } = state;
    if (!head || !subject) return;
    const limit = new Set(app.limited()), acts = (i) => !limit.size || limit.has(`${Math.floor(i / facts.grid[1])},${i % facts.grid[1]}`);
    const [after, random] = [head.features, head.random].map((adds) => regionLogits(blurred || subject, adds, multipliers, acts));
    state.regions = { before: subject.regions, after, random };
    const names = Object.values(state.regions).map(named), n = multipliers.size;
    const text = blurred && n ? "blurred, changed" : blurred ? "cells blurred" : "features changed";
    [["as it is", subject.bitmap], [text, blurred?.bitmap || subject.bitmap]].forEach(([title, bitmap], k) => {
      const { canvas, caption } = ui.regions[k];
      caption.textContent = title;
      canvas.ariaLabel = `Parts that the head names in each cell, ${title}: arrow keys move.`;
      drawNamed(canvas.getContext("2d"), bitmap, names[k], (i) => k && names[0][i] !== names[1][i]);
    });
    const counts = names.map((own) => head.names.map((_, region) => own.filter((each) => each === region).length));
    const shown = head.names.map((name, region) => [name, region]).filter(([, region]) => counts.some((own) => own[region]));
    const differ = names.slice(1).map((own) => own.filter((region, i) => region !== names[0][i]).length);
    ui.regionCounts.replaceChildren(...table(["part", "as it is", text, "random directions"], [...shown.map(([name, region]) => [
      h("span", {}, h("i", { className: "swatch", style: region ? `background: ${partColour(region)}` : "" }), words(name)), ...counts.map((own, k) => k < 2 || n ? own[region] : "–")]),
      ["cells named differently", "", differ[0], n ? differ[1] : "–"]]).children);
    tell(names);
  }
  function drawNamed(context, bitmap, own, changed) { // grey, with each cell in the colour of its part
    const { width, height } = context.canvas, { grid } = state.facts;
    context.globalCompositeOperation = "source-over";
    context.drawImage(bitmap, 0, 0, width, height);
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = 0.65;
    own.forEach((region, i) => {
      const [top, bottom] = [0, 1].map((more) => Math.round(((Math.floor(i / grid[1]) + more) * height) / grid[0]));
      const [left, right] = [0, 1].map((more) => Math.round((((i % grid[1]) + more) * width) / grid[1]));
      context.fillStyle = partColour(region);
      if (region) context.fillRect(left, top, right - left, bottom - top);
    });
    context.globalAlpha = 1;
    own.forEach((_, i) => { if (changed(i)) outline(context, [Math.floor(i / grid[1]), i % grid[1]], grid, "#ffffff"); });
    if (at) outline(context, at, grid);
  }
  function tell(names) {
    const [before, after] = at ? names.map((own) => words(state.head.names[own[at[0] * state.facts.grid[1] + at[1]]])) : [];
    ui.regionText.textContent = at ? `Row ${at[0] + 1}, column ${at[1] + 1}: ${before}${before === after ? ", unchanged" : `, now ${after}`}.` : "Point at a cell to see its names. Cells that change have a white border.";
  }
  function moveTo(cell) {
    at = cell;
    if (state.subject) drawRegions();
  }
  function buildRegions() { // nothing without a head
    if (!state.head) return null;
    ui.regions = [0, 1].map(() => {
      const canvas = h("canvas", { width: 224, height: 224, tabIndex: 0 });
      canvas.setAttribute("role", "img");
      for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, (event) => moveTo(app.under(canvas, event)));
      canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") moveTo(null); });
      canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) moveTo(at || [0, 0]); });
      canvas.addEventListener("blur", () => moveTo(null));
      canvas.addEventListener("keydown", (event) => app.arrows(event, (move) => moveTo(app.moved(at || [0, 0], move))));
      return { canvas, caption: h("figcaption") };
    });
    ui.regionText = h("p", { className: "quiet" });
    ui.regionText.setAttribute("aria-live", "polite");
    ui.regionCounts = h("table");
    const counts = h("div", { className: "wide counts", tabIndex: 0, role: "group", ariaLabel: "cells of each part" }, ui.regionCounts);
    return h("section", { className: "regions", ariaLabel: "segmentation" },
      h("div", { className: "maps" }, ...ui.regions.map(({ canvas, caption }) => h("figure", {}, caption, canvas))), h("div", {}, h("h4", { title: "a guess from the activations, not the true part" }, "The part that a linear head names in each cell"), ui.regionText, counts));
  }

  Object.assign(app, { buildRegions, drawRegions });
}
