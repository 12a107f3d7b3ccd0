// The list's filters: by part, class, tier and label, and by ranges of measured values.
function filtersPart(app) {
  const { state, ui, columns } = app;
  function titled(name) {
    const [level, what] = name.includes("/") ? name.split("/") : [null, name];
    if (level) return { auroc: `AUROC of its ${level}`, z: `selectivity for a ${level} (z)`, class: level }[what];
    return {
      feature_id: "number", density_cell: "share of cells, %", density_image: "share of pictures, %", mean: "mean when active",
      max: "maximum", part_ap: "part: average precision",
      response: "part: share lost without it", seed_match: "match in other seeds (cosine)", tier: "tier reached",
      suppressed: "effect of suppression", suppressed_random: "effect of a random direction", rating: "your rating",
    }[name] || words(name);
  }
  const TIERS = [...[1, 2, 3].map((n) => [n, `tier ${n} or higher`]), [4, "tier 4"], [0, "none reached, or not tested"]];
  const sortable = () => Object.keys(columns()).filter((name) => columns()[name].some((value) => typeof value === "number"));
  const tierOf = (id) => { // for the part in the filter, or the one chosen in the tab Parts
    const of = ui.ofPart.value || (state.entrance === "part" && ui.part.value);
    return (of ? state.facts.parts[of].tier[id] : (columns().tier || [])[id]) ?? null;
  };
  function passes(id) { // filters act in every tab
    const c = columns(), part = ui.ofPart.value, [level, ...name] = ui.ofClass.value.split("|"), tier = ui.ofTier.value, label = ui.ofLabel.value;
    if (part && c.part[id] !== part && state.facts.parts[part].tier[id] === null) return false;
    if (level && (c[`${level}/class`][id] !== name.join("|") || c.placed[id] === "none")) return false;
    if (tier && (tier === "0" ? tierOf(id) > 0 : (tierOf(id) ?? 0) < Number(tier))) return false;
    return !label || Boolean((state.labels[id] || {}).label) === (label === "some");
  }
  const chosen = () => [ui.ofPart, ui.ofClass, ui.ofTier, ui.ofLabel].filter((each) => each.value).length;
  function range() {
    const name = h("select", { ariaLabel: "filter by" }, ...options(sortable().map((column) => [column, titled(column)])));
    name.value = "density_cell";
    const [low, high] = ["at least", "at most"].map((text) => h("input", { type: "number", step: "any", placeholder: text, ariaLabel: text }));
    const row = h("div", { className: "range" }, name, h("button", { type: "button", ariaLabel: "remove this filter", onclick: () => { row.remove(); app.filtered(); } }, "×"), low, high);
    row.controls = [name, low, high];
    row.range = () => [name.value, low.value === "" ? null : Number(low.value), high.value === "" ? null : Number(high.value)];
    [name, low, high].forEach((control) => control.addEventListener("input", app.filtered));
    return row;
  }
  function buildFilters() {
    const { facts } = state, parts = Object.keys(facts.parts);
    const tiers = Object.values(facts.parts).some(({ tier }) => tier.some((value) => value !== null)) || columns().tier;
    const filter = (name, pairs, hidden = false) => h("select", { ariaLabel: `filter by ${name}`, hidden, onchange: app.filtered }, ...options(pairs));
    ui.ofPart = filter("part", [["", "any part"], ...parts.map((part) => [part, words(part)])], !parts.length);
    ui.ofClass = filter("class", [["", "any class"]], !facts.levels.length);
    ui.ofClass.append(...facts.levels.map((level) => h("optgroup", { label: level }, ...options(facts.classes[level].map((name) => [`${level}|${name}`, name])))));
    ui.ofTier = filter("tier", [["", "any tier"], ...(tiers ? TIERS : [])], !tiers);
    ui.ofLabel = filter("label", [["", "labelled or not"], ["some", "labelled"], ["none", "not labelled"]]);
    ui.filtered = h("summary", {}, "Filters");
    ui.filters = h("details", { className: "filters" }, ui.filtered, ui.ofPart, ui.ofClass, ui.ofTier, ui.ofLabel);
  }

  // The list's state for links, without what has its initial value; listTo restores it.
  const controls = () => ({
    q: [ui.search, ""], sort: [ui.sort, ui.firstSort], up: [ui.up, false], alive: [ui.alive, true], only: [ui.only, false],
    "of-part": [ui.ofPart, ""], "of-class": [ui.ofClass, ""], "of-tier": [ui.ofTier, ""], "of-label": [ui.ofLabel, ""],
  });
  const listPlace = () => {
    const { entrance } = state, ranges = [...ui.ranges.children].map((row) => row.controls.map((each) => each.value).join("~"));
    return {
      ...(entrance !== "features" && { in: entrance }), ...placed(controls()), ...(ranges.length && { ranges: ranges.join("|") }),
      ...(entrance === "part" && { part: ui.part.value, ...(ui.partSort.selectedIndex > 0 && { by: ui.partSort.value }) }),
      ...(entrance === "class" && (state.pair ? { pair: `${ui.one.value}|${ui.two.value}` } : { level: ui.level.value, class: ui.className.value })),
    };
  };
  async function listTo(wanted) {
    const has = (select, value) => [...select.options].some((each) => each.value === value);
    place(controls(), wanted);
    const differs = ([name, [control]]) => wanted[name] !== undefined && String(current(control)) !== wanted[name];
    const lost = Object.entries(controls()).filter(differs).map(([, [control]]) => control.ariaLabel), known = sortable();
    const ranges = (wanted.ranges ? wanted.ranges.split("|") : []).filter((text) => {
      const [name] = text.split("~");
      return known.includes(name) || void lost.push(`filter by ${titled(name)}`);
    });
    ui.filters.open = ui.filters.open || chosen() > 0;
    ui.ranges.replaceChildren(...ranges.map((text) => {
      const row = range();
      text.split("~").forEach((value, i) => { row.controls[i].value = value; });
      return row;
    }));
    if (has(ui.part, wanted.part)) ui.part.value = wanted.part;
    if (has(ui.partSort, wanted.by)) ui.partSort.value = wanted.by; else ui.partSort.selectedIndex = 0;
    if (has(ui.level, wanted.level)) { ui.level.value = wanted.level; app.fillClasses(); }
    if (has(ui.className, wanted.class)) ui.className.value = wanted.class;
    app.noPair();
    app.searched();
    const entrance = wanted.in || (wanted.pair || wanted.class ? "class" : wanted.part ? "part" : "features");
    app.setEntrance(ui.panels[entrance] ? entrance : "features");
    if (wanted.pair) await app.comparePair(...wanted.pair.split("|"));
    return lost.length ? [`this study does not have what the link asks for: ${lost.join(", ")}`] : [];
  }

  Object.assign(app, { buildFilters, chosen, listPlace, listTo, passes, range, sortable, titled });
}
