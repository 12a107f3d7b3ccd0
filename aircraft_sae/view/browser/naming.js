// Labels, notes and ratings: saved while you type, and updated with what others write.
function namingPart(app) {
  const { mode, source, state, ui, drawn, guarded } = app;
  const unsaved = new Map();
  let waiting = null;
  const saidOf = (id) => state.labels[id] || { label: "", note: "", rating: 0 };
  function drawLabel() { // at once, so that typing goes to the feature that is named
    const { label, note, rating } = unsaved.get(state.feature) || saidOf(state.feature);
    ui.title.textContent = `Feature ${state.feature}`;
    ui.label.value = label;
    ui.note.value = note;
    ui.rating.value = String(rating);
    ui.saved.textContent = "";
    app.drawSuggestion();
  }
  function saveSoon() {
    clearTimeout(waiting);
    app.drawSuggestion();
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
        state.labels = await source.label({ feature_id: id, ...changed });
        told = "saved";
      }
    } catch (error) { // kept, and tried again when the feature changes
      state.labels = { ...state.labels, [id]: before };
      if (!unsaved.has(id)) unsaved.set(id, given);
      told = "not saved";
      throw error;
    } finally { if (id === state.feature && (told === "not saved" || !unsaved.has(id))) ui.saved.textContent = told; }
    app.showList(true);
    if (state.subject) app.drawSliders(); // its caption
    drawn(`label ${id}`);
  });
  const hear = latest(guarded(async () => { // what others have written
    if (mode === "bench" || !state.facts) return;
    const before = state.labels, labels = await source.heard();
    if (state.labels !== before || state.closed) return; // a label of ours is on its way
    if (JSON.stringify(labels) === JSON.stringify(before)) return;
    state.labels = labels;
    app.showList(true);
    if (!unsaved.has(state.feature)) drawLabel();
    if (state.subject) app.drawSliders();
  }));

  Object.assign(app, { drawLabel, hear, saveNow, saveSoon });
}
