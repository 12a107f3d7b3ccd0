// The list of features, and its tabs: all of them, by part, by picture and by class.
function listPart(app) {
  const { root, source, state, ui, drawn, guarded, columns, chosen, passes, sortable, titled } = app;
  const ofMeant = (id) => Math.max(...state.meant.map((part) => state.facts.parts[part].ap[id] ?? -1));
  const valueOf = (name, id) => name === "part_ap" && state.meant.length ? (ofMeant(id) < 0 ? null : ofMeant(id)) : (name === "rating" ? (state.labels[id] || {}).rating || null : columns()[name][id]);

  const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  const has = (text, word) => text.includes(word) || (word.endsWith("s") && text.includes(word.slice(0, -1))); // plurals, too
  const named = (part) => `${words(part)} ${SYNONYMS[part] || ""}`;
  const ofParts = new Map(); // names of the parts that a feature is among the ten best for
  function fillParts() {
    for (const [part, { ap }] of Object.entries(state.facts.parts)) {
      const best = state.all.filter((id) => ap[id] !== null).sort((a, b) => ap[b] - ap[a]).slice(0, 10);
      best.forEach((id) => ofParts.set(id, `${ofParts.get(id) || ""} ${named(part)}`));
    }
  }
  function said(id) { // the text that the search covers
    const own = state.labels[id] || {}, c = columns();
    const parts = [`#${id}`, own.label, own.note, c.part && c.part[id], ofParts.get(id), c.verdict && c.verdict[id]];
    return parts.concat(state.facts.levels.map((level) => c[`${level}/class`][id])).filter(Boolean).join(" ");
  }

  const listed = () => {
    const all = entered(), kept = chosen() ? all.filter(passes) : all;
    state.hidden = all.length - kept.length;
    return kept;
  };
  function entered() {
    const c = columns();
    if (state.entrance === "picture" && state.subject) {
      const at = state.cell && state.subject.cells[state.cell[0] * state.facts.grid[1] + state.cell[1]];
      return at ? at.map(([id]) => id) : state.subject.active.map((each) => each.feature_id);
    }
    if (state.entrance === "part") {
      const scores = state.facts.parts[ui.part.value][ui.partSort.value], ap = state.facts.parts[ui.part.value].ap;
      const kept = state.all.filter((id) => scores[id] !== null);
      return kept.sort((a, b) => scores[b] - scores[a] || (ap[b] ?? -1) - (ap[a] ?? -1) || a - b);
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
      if (search.length) {
        const text = plain(said(id));
        if (!search.every((word) => has(text, word))) return false;
      }
      return ranges.every(([name, low, high]) => {
        const value = valueOf(name, id), seen = Number(shown(name, value)); // as the list shows it
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

  function caption(id) { // the same everywhere, however the list is sorted
    const own = state.labels[id] || {}, c = columns();
    if (own.label) return own.label;
    if (c.verdict && /^(detector|follows)/.test(c.verdict[id])) return c.verdict[id];
    if (c.part && c.part[id] && c.part_ap[id] >= 0.1) return `${words(c.part[id])}?`;
    return c.placed[id] !== "none" ? `${c[`${c.placed[id]}/class`][id]}?` : "";
  }
  function beside(id) { // the number that the list is sorted by
    if (state.entrance === "picture" && state.subject && state.cell) {
      return number(state.subject.cells[state.cell[0] * state.facts.grid[1] + state.cell[1]].find(([other]) => other === id)[1]);
    }
    if (state.entrance === "picture" && state.subject) {
      const own = state.subject.active.find((each) => each.feature_id === id);
      return own ? fixed(own.effect, 2) : "";
    }
    if (state.entrance === "part") {
      const own = state.facts.parts[ui.part.value], by = ui.partSort.value, value = own[by][id];
      if (by === "tier") return `tier ${value}`;
      return `${by === "response" ? percent(value, 0) : fixed(value, 2)}${own.tier[id] > 0 ? `, tier ${own.tier[id]}` : ""}`;
    }
    if (state.entrance === "class" && state.pair) return fixed(state.pair.find((each) => each.feature_id === id).value, 3);
    if (state.entrance === "class") return `z ${number(columns()[`${ui.level.value}/z`][id])}`;
    const part = ui.sort.value === "part_ap" && state.meant.find((each) => state.facts.parts[each].ap[id] === ofMeant(id));
    return `${part ? `${words(part)} ` : ""}${shown(ui.sort.value, valueOf(ui.sort.value, id))}`;
  }

  function showList(keepPage = false) {
    state.ids = listed();
    const n = Math.max(1, Math.ceil(state.ids.length / PAGE)), at = state.ids.indexOf(state.feature);
    if (!keepPage && at >= 0) state.page = Math.floor(at / PAGE);
    if (at >= 0) Object.assign(state, { at, last: state.feature });
    state.page = Math.min(n - 1, Math.max(0, state.page));
    const ids = state.ids.slice(state.page * PAGE, (state.page + 1) * PAGE);
    while (ui.list.children.length < ids.length) {
      const button = h("button", { type: "button" }, h("b"), h("span"), h("i"));
      button.addEventListener("click", () => app.show(Number(button.dataset.id)));
      ui.list.append(h("li", {}, button));
    }
    [...ui.list.children].forEach((item, i) => {
      item.hidden = i >= ids.length;
      item.firstChild.setAttribute("aria-current", "false");
      if (item.hidden) return;
      const id = ids[i], button = item.firstChild, [name, text, value] = button.children;
      button.dataset.id = id;
      name.textContent = `#${id}`;
      text.textContent = caption(id);
      text.title = text.textContent.endsWith("?") ? "a guess from measurements, not a label" : "";
      value.textContent = beside(id);
      button.setAttribute("aria-current", id === state.feature ? "true" : "false");
    });
    rove(ids.indexOf(state.feature));
    const current = ui.list.children[ids.indexOf(state.feature)];
    if (current && !keepPage) { // scroll the list, not the page
      const { offsetTop: top, offsetHeight: tall } = current, { scrollTop, clientHeight } = ui.list;
      if (top < scrollTop || top + tall > scrollTop + clientHeight) ui.list.scrollTop = top - clientHeight / 2;
    }
    ui.filtered.textContent = chosen() ? `Filters: ${state.hidden.toLocaleString("en")} left out` : "Filters";
    ui.count.textContent = state.ids.length
      ? `${state.page * PAGE + 1}–${state.page * PAGE + ids.length} of ${state.ids.length.toLocaleString("en")}`
      : state.hidden ? "no feature passes the filters" : state.entrance === "part" ? "no feature has this score" : state.entrance === "class" ? "no feature is selective for this class" : `no feature matches${ui.alive.checked && state.entrance === "features" ? "; dead ones are hidden" : ""}`;
    ui.back.disabled = state.page === 0;
    ui.forth.disabled = state.page >= n - 1;
  }

  function rove(at) { // Tab stops at one button of the list; up and down move to the others
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
    const n = state.ids.length, at = state.ids.indexOf(state.feature), left = state.ids[state.at] !== state.last;
    const from = at < 0 ? state.at - (by > 0 && left ? 1 : 0) : at; // if the feature has left the list, the next one took its place
    return app.show(state.ids[(from + by + n) % n]);
  }
  const random = () => state.ids.length && app.show(state.ids[Math.floor(Math.random() * state.ids.length)]);

  function setEntrance(name) {
    state.entrance = name;
    root.dataset.entrance = name;
    for (const tab of ui.tabs.children) {
      tab.setAttribute("aria-selected", String(tab.dataset.name === name));
      tab.tabIndex = tab.dataset.name === name ? 0 : -1;
    }
    Object.entries(ui.panels).forEach(([own, panel]) => { panel.hidden = own !== name; });
    const first = name === "picture"; // in the tab Picture, the bench comes first
    if ((ui.bench.nextSibling === ui.panes) !== first) ui.panes[first ? "before" : "after"](ui.bench);
    state.page = state.at = ui.list.scrollTop = 0;
    showList();
    drawn(`entrance ${name}`);
  }
  function fillClasses() {
    ui.className.replaceChildren(...options((state.facts.classes[ui.level.value] || []).map((name) => [name, name])));
  }
  const noPair = () => {
    Object.assign(state, { pair: null, page: 0, at: 0 });
    ui.pairText.replaceChildren();
  };
  const classChosen = () => {
    noPair();
    showList();
    if (state.ids.length) app.show(state.ids[0]); else drawn("class");
  };
  const comparePair = guarded(async (one = ui.one.value, two = ui.two.value) => {
    Object.assign(ui.one, { value: one });
    Object.assign(ui.two, { value: two });
    if (state.entrance !== "class") setEntrance("class");
    state.pair = await source.pair({ one, two });
    ui.pairText.replaceChildren(wide(table(["feature", "margin", "interval", "random"], state.pair.map((each) =>
      [app.link(each.feature_id, ""), fixed(each.value, 3), `${fixed(each.low, 3)} to ${fixed(each.high, 3)}`, fixed(each.random, 3)]))),
    h("button", { type: "button", onclick: classChosen }, "back to the class"),
    h("p", { className: "quiet" }, `Change of the margin (true class minus the other) when the feature is suppressed. Features are chosen on half A and measured on ${state.pair.length ? state.pair[0].n : 0} pictures of half B. Random: the same edit along a random direction.`));
    state.page = 0;
    showList();
    drawn("pair");
  });

  const filtered = () => { state.page = state.at = 0; showList(true); drawn("list"); };
  const redraw = () => { if (state.view) { app.drawGallery(); drawn("gallery"); } if (state.subject) app.drawPicture(); };
  function choosePart(part) {
    if (part) ui.part.value = part;
    setEntrance("part");
    return state.ids.length ? app.show(state.ids[0]) : undefined;
  }
  function searched() { // offer the parts that the words mean
    const asked = plain(ui.search.value).split(/\s+/).filter((word) => word.length > 2);
    const meant = asked.length ? Object.keys(state.facts.parts).filter((part) => asked.every((word) => has(plain(named(part)), word))) : [];
    state.meant = meant;
    ui.meant.replaceChildren(...meant.map((part) => h("button", { type: "button", onclick: () => choosePart(part) }, `all features by ${words(part)}`)));
    filtered();
  }
  function turn(event) { // arrow keys move between tabs
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], tabs = [...ui.tabs.children];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const next = tabs[(tabs.indexOf(event.target) + by + tabs.length) % tabs.length];
    setEntrance(next.dataset.name);
    next.focus();
  }

  function buildList() { // the header, and the column left of the gallery
    const { facts } = state;
    const parts = Object.keys(facts.parts), entrances = [["features", "Features"], ["picture", "Picture"]];
    if (parts.length) entrances.splice(1, 0, ["part", "Parts"]);
    if (facts.levels.length) entrances.push(["class", "Classes"]);
    ui.tabs = h("div", { className: "tabs", onkeydown: turn }, ...entrances.map(([name, text]) => {
      const tab = h("button", { type: "button", id: `${app.id}-${name}-tab`, onclick: () => {
        const own = columns().part && columns().part[state.feature];
        if (name === "part" && own) ui.part.value = own;
        setEntrance(name);
      } }, text);
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", `${app.id}-${name}`);
      tab.dataset.name = name;
      return tab;
    }));
    ui.tabs.setAttribute("role", "tablist");
    ui.go = h("input", { type: "number", min: 0, max: facts.n_features - 1, ariaLabel: "feature number", placeholder: "number",
      onchange: () => { if (ui.go.value !== "") { app.show(Number(ui.go.value)); root.focus({ preventScroll: true }); } } });
    ui.search = h("input", { type: "search", placeholder: "label, class or part", ariaLabel: "search", oninput: searched, onsearch: searched,
      onkeydown: (event) => {
        if (event.key !== "Enter") return;
        root.focus({ preventScroll: true });
        if (state.ids.length && !state.ids.includes(state.feature)) app.show(state.ids[0]);
      } });
    ui.meant = h("div", { className: "row" });
    ui.part = h("select", { onchange: () => choosePart() }, ...options(parts.map((part) => [part, words(part)])));
    const known = [["ap", "average precision"], ["tier", "tier reached"], ["response", "share lost without the part"]]
      .filter(([name]) => parts.some((part) => facts.parts[part][name].some((value) => value !== null)));
    ui.partSort = h("select", { onchange: () => choosePart() }, ...options(known));
    ui.sort = h("select", { ariaLabel: "sort by", onchange: filtered }, ...options([...sortable(), "rating"].map((name) => [name, titled(name)])));
    ui.sort.value = ["part_ap", `${facts.level}/z`, "density_image"].find((name) => sortable().includes(name));
    ui.firstSort = ui.sort.value;
    ui.up = h("input", { type: "checkbox", onchange: filtered });
    ui.alive = h("input", { type: "checkbox", checked: true, onchange: filtered });
    app.buildFilters();
    ui.ranges = h("div", {});
    ui.help = h("dialog", { onclose: () => root.focus({ preventScroll: true }) }, h("h3", {}, "Keys"), table(["key", "what it does"], KEYS.map(([key, text]) => [h("kbd", {}, key), text])),
      h("h3", {}, "Words"), h("dl", {}, ...WORDS.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])),
      h("button", { type: "button", onclick: () => ui.help.close() }, "Close"));
    const header = h("header", {}, ui.tabs,
      h("button", { type: "button", onclick: () => step(-1), title: "previous (←)" }, "← Previous"),
      h("button", { type: "button", onclick: () => step(1), title: "next (→)" }, "Next →"),
      h("button", { type: "button", onclick: random, title: "random (r)" }, "Random"), field("go to", ui.go),
      h("button", { type: "button", onclick: app.copyLink, title: "a link to this feature, picture and bench" }, "Copy link"),
      app.beside ? h("button", { type: "button", onclick: () => app.beside(), title: "a second browser beside this one" }, "Side by side") : null,
      h("button", { type: "button", onclick: () => ui.help.showModal(), title: "keys (?)", ariaLabel: "keys" }, "?"));

    ui.list = h("ul", { className: "list", onkeydown: roam });
    ui.count = h("span", {});
    ui.back = h("button", { type: "button", ariaLabel: "page back", onclick: () => { state.page--; showList(true); drawn("list"); } }, "‹");
    ui.forth = h("button", { type: "button", ariaLabel: "page on", onclick: () => { state.page++; showList(true); drawn("list"); } }, "›");
    const panel = (name, ...children) => {
      const made = h("div", { className: "choice", id: `${app.id}-${name}`, hidden: true }, ...children);
      made.setAttribute("role", "tabpanel");
      made.setAttribute("aria-labelledby", `${app.id}-${name}-tab`);
      return made;
    };
    ui.panels = {};
    ui.panels.features = panel("features", ui.search, ui.meant, field("sort by", ui.sort), h("div", { className: "row" },
      field("smallest first", ui.up), field("hide dead", ui.alive),
      h("button", { type: "button", onclick: () => { ui.ranges.append(app.range()); } }, "+ filter")), ui.ranges);
    if (parts.length) ui.panels.part = panel("part", field("part", ui.part), field("ranked by", ui.partSort));
    ui.panels.picture = panel("picture", h("p", { className: "quiet" },
      "Features active in the picture on the bench, with the change of the margin when each is suppressed. Click a cell for the features active there, with their activations."),
      h("button", { type: "button", onclick: () => { state.cell = null; showList(); if (state.subject) app.drawPicture(); drawn("list"); } }, "whole picture"));
    ui.level = h("select", { onchange: () => { fillClasses(); classChosen(); } }, ...options(facts.levels.map((level) => [level, level])));
    ui.className = h("select", { onchange: classChosen });
    ui.only = h("input", { type: "checkbox", onchange: () => state.feature !== null && app.show(state.feature) });
    const pairs = (facts.classes[facts.level] || []).map((name) => [name, name]);
    const repaired = () => { ui.compare.disabled = ui.one.value === ui.two.value; noPair(); showList(); drawn("no pair"); };
    ui.one = h("select", { ariaLabel: "first class", onchange: repaired }, ...options(pairs));
    ui.two = h("select", { ariaLabel: "second class", onchange: repaired }, ...options(pairs));
    if (pairs.length > 1) ui.two.value = pairs[1][0];
    ui.compare = h("button", { type: "button", onclick: () => comparePair(), disabled: pairs.length < 2 }, "What tells them apart?");
    ui.pairText = h("div", { className: "pair" });
    if (facts.levels.length) ui.panels.class = panel("class", field("level", ui.level), field("class", ui.className),
      field("gallery of this class only", ui.only),
      h("div", { className: "row", hidden: pairs.length < 2 }, ui.one, h("span", {}, "or"), ui.two, ui.compare), ui.pairText);
    const left = h("nav", { ariaLabel: "list of features" }, ...Object.values(ui.panels), ui.filters,
      h("div", { className: "row pager" }, ui.back, ui.count, ui.forth), ui.list);
    fillParts();
    fillClasses();
    return { header, left };
  }

  Object.assign(app, { buildList, caption, comparePair, fillClasses, filtered, noPair, random, redraw, searched, setEntrance, showList, step });
}
