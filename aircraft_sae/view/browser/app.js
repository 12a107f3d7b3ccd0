// The front end of the browser. mount(el, source, mode) draws everything into el and asks `source`, the kernel
// (kernel.js), for its content. Elements are made once; later only their values change. The parts (draw, filters, list,
// feature, naming, levers, bench) come first in one script and share `app`.
function mount(el, source, mode, beside = null) {
  const root = h("div", { className: `sae-app sae-${mode}`, tabIndex: 0 });
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  root.setAttribute("role", "region");
  root.setAttribute("aria-label", mode === "bench" ? "Intervention bench" : "Feature browser");
  el.replaceChildren(root);
  const state = {
    facts: null, labels: {}, ids: [], page: 0, feature: null, towards: 1, how: "top", alpha: HEAT, heat: true, view: null,
    entrance: "features", subject: null, multipliers: new Map(), brush: new Set(), limit: new Set(), after: null, blurred: null, blurring: false, cell: null,
    pair: null, closed: false, meant: [], at: 0, last: null,
  };
  const pictures = new Kept(KEPT_PICTURES), views = new Kept(KEPT_VIEWS);
  const ui = {};
  root.state = state; // for a console and for tests
  root.dataset.revision = "0";
  const drawn = (what) => {
    root.dataset.revision = String(Number(root.dataset.revision) + 1);
    root.dataset.drawn = what;
    if (ui.link && what !== "link") ui.link.hidden = true; // the link is out of date
    keepFocus();
  };
  // The element that was clicked may be hidden or replaced: without this, key presses would then go nowhere.
  let ours = false;
  const keepFocus = () => { if (ours && document.activeElement === document.body) root.focus({ preventScroll: true }); };
  const whose = (event) => { ours = root.contains(event.target); };
  addEventListener("pointerdown", whose, true);
  root.addEventListener("focusin", () => { ours = true; });
  root.addEventListener("click", () => requestAnimationFrame(keepFocus));

  // ---------------------------------------------------------------- errors
  ui.error = h("div", { className: "error", hidden: true });
  ui.error.setAttribute("role", "alert");
  let hand = root; // where the user last acted: messages go there, since the top of the page may be far away in JupyterLab
  for (const kind of ["pointerdown", "focusin", "change"]) root.addEventListener(kind, (event) => { hand = event.target; }, true);
  function fail(error) {
    const near = hand.closest(".row, .notes, .outcomes, .details, .naming, .bench, nav, main, aside, header");
    (root.contains(near) ? near : root).prepend(ui.error); // never outside the app
    ui.error.hidden = past = false;
    ui.error.replaceChildren(
      h("span", {}, String(error.message || error)),
      h("button", { type: "button", onclick: () => { ui.error.hidden = true; }, ariaLabel: "Dismiss the message" }, "×"),
    );
    ui.error.scrollIntoView({ block: "nearest" });
    drawn("error");
  }
  let past = false; // a message disappears after the next click, so that nothing moves under the pointer
  root.addEventListener("pointerdown", (event) => { past = !ui.error.hidden && !event.target.closest(".error"); });
  root.addEventListener("click", () => { if (past) ui.error.hidden = true; past = false; });
  root.addEventListener("input", (event) => { if (!event.target.closest(".error")) ui.error.hidden = true; });
  const guarded = (work) => async (...given) => {
    try { return await work(...given); } catch (error) { fail(error); }
  };

  let underWay = 0;
  async function working(work) { // show that work is in progress
    const busy = () => { ui.busy.hidden = !underWay; root.setAttribute("aria-busy", String(underWay > 0)); };
    underWay++;
    busy();
    try { return await work(); } finally { underWay--; busy(); }
  }
  const columns = () => state.facts.columns;
  const app = { id: `sae${Math.random().toString(36).slice(2, 8)}`, mode, root, source, state, ui, pictures, views, drawn, fail, guarded, columns, working };
  for (const part of [filtersPart, listPart, featurePart, namingPart, leversPart, benchPart]) part(app);

  // ---------------------------------------------------------------- links, and two browsers side by side
  const whole = () => { // the state that a link holds
    const two = neighbour && { two: neighbour.state.ready ? neighbour.place() : neighbour.at };
    return String(new URLSearchParams({ sae: state.facts.key, feature: state.feature, ...app.benchPlace(), ...app.listPlace(), ...app.galleryPlace(), ...two }));
  };
  const goTo = guarded(async (text) => {
    const wanted = Object.fromEntries(new URLSearchParams(/^\d+$/.test(text) ? `feature=${text}` : text)), { facts } = state;
    if (wanted.sae && wanted.sae !== facts.key) throw new Error("this link is for another autoencoder: open that one");
    app.galleryTo(wanted);
    const lost = await app.listTo(wanted);
    if (lost.length) fail(new Error(lost[0]));
    if (wanted.feature) await app.show(Number(wanted.feature));
    if (wanted.picture) await app.benchTo(wanted, lost);
    if (wanted.two && app.beside) app.beside(wanted.two);
  });
  app.copyLink = guarded(async () => {
    ui.link.value = source.link(whole(), state.facts.like);
    ui.link.hidden = false;
    ui.link.select();
    await navigator.clipboard?.writeText(ui.link.value).catch(() => {}); // not allowed on every page, so the text is selected too
    drawn("link");
  });
  let neighbour = null;
  app.beside = beside ? null : (at = whole()) => {
    if (neighbour) neighbour.close();
    const other = neighbour ? null : h("div", {});
    if (neighbour) el.lastChild.remove(); else el.append(other);
    el.classList.toggle("sae-two", !neighbour);
    const own = { ...source, chosen: undefined, overview: async () => ({ ...(await source.overview()), feature: state.feature, at }) };
    neighbour = neighbour ? null : Object.assign(mount(other, own, mode, app), { at });
    drawn("beside");
  };

  function build() {
    const bench = app.buildBench();
    ui.live = h("p", { className: "unseen" });
    ui.live.setAttribute("aria-live", "polite");
    if (mode === "bench") { root.replaceChildren(ui.error, bench); return; }
    const { header, left } = app.buildList(), { centre, own, right } = app.buildFeature();
    ui.link = h("input", { type: "text", readOnly: true, hidden: true, ariaLabel: "link" });
    header.append(ui.link);
    const skip = h("button", { type: "button", className: "skip", onclick: () => ui.canvas.focus() }, "Skip to the bench");
    Object.assign(ui, { bench, panes: h("div", { className: "panes" }, left, own, centre, right) });
    root.replaceChildren(skip, ui.error, header, ui.panes, bench, ui.live, ui.help);
  }

  // JupyterLab forbids line breaks inside an output, and with them Enter in our text fields.
  root.addEventListener("beforeinput", (event) => { if (event.inputType === "insertLineBreak") event.stopPropagation(); }, true);
  root.addEventListener("keydown", (event) => {
    event.stopPropagation(); // at any key, JupyterLab would move the focus to the cell that it thinks is active
    const typing = event.target.closest("input:not([type=checkbox]):not([type=range]), textarea, select");
    if (event.key === "Escape") { event.preventDefault(); if (ui.help && ui.help.open) ui.help.close(); root.focus(); return; }
    if (ui.help && ui.help.open) return;
    if (typing || event.ctrlKey || event.metaKey || event.altKey || mode === "bench" && event.key !== "0") return;
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
    const keys = {
      ArrowLeft: () => app.step(-1), ArrowRight: () => app.step(1), r: app.random, s: app.suppressThis, 0: app.resetBench, l: () => ui.label.focus(),
      h: () => { state.heat = !state.heat; app.redraw(); }, "/": () => { app.setEntrance("features"); ui.search.focus(); },
      "?": () => ui.help.showModal(),
    };
    if (!keys[event.key] || !state.facts) return;
    event.preventDefault();
    ui.error.hidden = true;
    keys[event.key]();
  });

  const start = guarded(async () => {
    const { facts, labels, feature, at } = await source.overview();
    for (const scores of Object.values(facts.parts)) { // fill in scores that are not known
      for (const name of ["ap", "response", "tier"]) scores[name] ??= Array(facts.n_features).fill(null);
    }
    Object.assign(state, { facts, labels, all: Array.from({ length: facts.n_features }, (_, id) => id) });
    build();
    if (mode === "browser") {
      app.setEntrance("features");
      const first = Number.isInteger(feature) && feature >= 0 && feature < facts.n_features ? feature : state.ids[0] ?? 0;
      await app.show(first);
    }
    if (facts.bench_pictures.length) await app.openPicture(facts.bench_pictures[0].picture);
    if (at && mode === "browser") await goTo(at);
    state.ready = true;
    drawn("ready");
  });
  root.append(ui.error, h("p", { className: "quiet" }, "loading…"));
  addEventListener("pagehide", app.saveNow);
  addEventListener("focus", app.hear);
  root.addEventListener("focusin", (event) => { if (!root.contains(event.relatedTarget)) app.hear(); });
  start();
  return { place: whole, show: guarded(app.show), close: () => { if (neighbour) neighbour.close(); app.saveNow(); removeEventListener("pagehide", app.saveNow); removeEventListener("focus", app.hear); removeEventListener("pointerdown", whose, true); state.closed = true; }, state };
}

