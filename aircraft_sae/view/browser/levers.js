// The bench's levers: sliders for features, and the class for the margin; and the logits that result, beside those of the
// control edits.
function leversPart(app) {
  const { mode, root, source, state, ui, drawn, fail, guarded, working } = app;
  const against = latest(guarded((name) => working(async () => { // another class for the margin
    const { subject } = state;
    ui.against.value = subject.other; // until the answer comes
    const told = await source.against({ key: subject.key, name });
    if (state.subject !== subject) return;
    Object.assign(subject, told);
    ui.against.value = subject.other;
    drawSliders();
    drawLogits();
    if (state.entrance === "picture") app.showList();
    drawn(`against ${name}`);
  })));

  function sliderRow() {
    const slider = h("input", { type: "range", min: 0, max: 4, step: 0.05, value: 1 });
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
    const n = state.subject.active.length, most = Math.min(MOST_SLIDERS, n);
    ui.slidersText.textContent = n
      ? `${n} feature${n > 1 ? "s are" : " is"} active here${n > most ? `; these are the ${most} whose suppression changes the margin most${ids.length > most ? ", after those in use" : ""}` : ""}.`
      : "No feature is active in this picture.";
  }
  function setSliders() { // rows stay in place: one of them may be under the pointer
    for (const row of ui.sliders.children) {
      const [, , slider, value] = row.children, factor = state.multipliers.get(Number(row.dataset.id)) ?? 1;
      slider.value = factor;
      value.textContent = `×${factor.toFixed(2)}`;
      row.classList.toggle("changed", factor !== 1);
    }
  }
  function multiply(id, factor) {
    if (!state.subject) return fail(new Error("open a picture on the bench first: click one in the gallery"));
    factor === 1 ? state.multipliers.delete(id) : state.multipliers.set(id, factor);
    setSliders();
    return changeSoon();
  }
  const changeSoon = latest(guarded(async () => {
    const { subject } = state, cells = app.limited().map((key) => key.split(",").map(Number));
    const after = await source.change({ key: subject.key, multipliers: Object.fromEntries(state.multipliers), ...(cells.length && { cells }) });
    if (state.subject !== subject) return; // another picture has been opened
    Object.assign(state, { after: { ...after, n: cells.length }, blurring: false });
    drawLogits();
    drawn("logits");
  }));
  function resetBench() {
    if (!state.subject) return;
    Object.assign(state, { multipliers: new Map(), brush: new Set(), limit: new Set(), blurred: null, blurring: false, after: { after: state.subject.before, random: state.subject.before } });
    ui.limitOn.checked = false;
    app.brushes();
    app.drawPicture();
    drawSliders();
    changeSoon();
  }
  function suppressThis() {
    if (!state.subject) return fail(new Error("open a picture on the bench first: click one in the gallery"));
    if (!state.subject.active.some((each) => each.feature_id === state.feature)) {
      return fail(new Error(`feature ${state.feature} is not active in the picture on the bench`));
    }
    multiply(state.feature, state.multipliers.get(state.feature) === 0 ? 1 : 0);
  }

  function drawLogits() {
    const { subject, after, blurred } = state, classes = subject.classes;
    const kinds = [["as it is", subject.before], ["features changed", after.after], ["random directions", after.random],
      ["reconstruction only", subject.reconstruction], ["cells blurred", blurred && blurred.logits], ["other cells blurred", blurred && blurred.elsewhere]];
    // rows and outcome show the last change
    const [what, made, control, other_] = state.blurring ? ["Cells blurred", blurred.logits, "other cells", blurred.elsewhere]
      : ["Features changed", after.after, "random directions", after.random];
    const best = (logits) => logits.map((value, i) => [value, i]).sort((a, b) => b[0] - a[0]).map(([, i]) => i);
    const true_ = subject.label ? classes.indexOf(subject.label) : -1, [winner] = best(subject.before);
    const own = classes.indexOf(subject.own), other = classes.indexOf(subject.other);
    const shown = [...new Set([winner, own, other, ...best(made).slice(0, 3), ...best(subject.before).slice(0, 4)])].slice(0, 6);
    const head = h("tr", {}, h("th", { scope: "col" }, "class"), ...kinds.map(([name]) => h("th", { scope: "col" }, name)));
    const probabilities = kinds.map(([, logits]) => logits && softmax(logits));
    const rows = shown.map((i) => h("tr", { className: i === own ? "own" : "" },
      h("th", { scope: "row" }, i === own || i === other ? classes[i] : h("button", { type: "button", className: "link", title: "the margin against this class", onclick: () => chooseOther(classes[i]) }, classes[i]), i === true_ ? " ✓" : ""),
      ...kinds.map(([name, logits], k) => {
        const cell = h("td", {}, logits ? h("b", {}, logits[i].toFixed(3)) : "–", logits ? h("small", {}, ` ${percent(probabilities[k][i])}`) : "");
        if (logits) { cell.dataset.logit = logits[i]; cell.dataset.kind = name; cell.dataset.class = classes[i]; }
        return cell;
      })));
    rows.push(h("tr", { className: "margin" }, h("th", { scope: "row" }, `margin: ${classes[own]} − ${classes[other]}`),
      ...kinds.map(([, logits]) => h("td", {}, logits ? (logits[own] - logits[other]).toFixed(3) : "–"))));
    ui.logits.replaceChildren(h("thead", {}, head), h("tbody", {}, ...rows));
    const where = after.n && !state.blurring ? ` in ${after.n} cell${after.n > 1 ? "s" : ""}` : "";
    const now = best(made)[0], beside = other_ && best(other_)[0];
    ui.outcome.textContent = !state.blurring && !state.multipliers.size ? `Predicted: ${classes[winner]}.`
      : `${what}${where}: ${classes[now]}, ${now === winner ? "still" : `no longer ${classes[winner]}`}` + (other_ ? `; ${control}: ${classes[beside]}.` : ".");
    ui.outcome.classList.toggle("flipped", now !== winner);
    const margin = (logits) => (logits[own] - logits[other]).toFixed(2), changed = state.blurring || state.multipliers.size > 0;
    ui.margin.textContent = `Margin ${classes[own]} − ${classes[other]}: ${margin(subject.before)}` + (changed ? ` → ${margin(made)}${other_ ? `; ${control}: ${margin(other_)}` : ""}.` : ".");
    drawEcho();
  }
  function drawEcho() { // beside the button for `s`, in the panel of a feature that was changed
    if (!ui.echo) return;
    const own = state.subject && (state.blurring || state.multipliers.has(state.feature)), what = state.blurring ? "Cells blurred" : "Features changed";
    const which = state.blurring ? what : [...state.multipliers].slice(0, 4).map(([id, factor]) => `#${id} ×${factor}`).join(", ") + (state.multipliers.size > 4 ? ", …" : "");
    ui.echo.textContent = own ? `${ui.outcome.textContent.replace(what, which)} ${ui.margin.textContent}` : "";
  }

  function buildLevers() { // {buttons, told: the outcome, details: sliders and the table}
    ui.sliders = h("div", { className: "sliders" });
    ui.slidersText = h("p", { className: "quiet" });
    ui.logits = h("table", { className: "logits" });
    ui.outcome = h("p", { className: "told outcome" });
    ui.outcome.setAttribute("aria-live", "polite");
    ui.margin = h("p", { className: "margin" });
    ui.against = h("select", { ariaLabel: "class that the margin is against", onchange: () => chooseOther(ui.against.value) });
    return {
      buttons: [h("button", { type: "button", onclick: resetBench }, "Reset"), field("margin against", ui.against)],
      told: h("div", { className: "outcomes" }, ui.outcome, ui.margin),
      details: h("div", { className: "details" }, h("div", {}, ui.slidersText, ui.sliders), wide(ui.logits)),
    };
  }
  function chooseOther(name) {
    root.focus({ preventScroll: true }); // so that the key `s` does not search the list of classes
    return against(name);
  }

  Object.assign(app, { against, buildLevers, changeSoon, drawEcho, drawLogits, drawSliders, resetBench, suppressThis });
}
