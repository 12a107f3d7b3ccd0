// The atlas' source: what the front end asks a kernel for, read from the files beside index.html. Scripts in place of
// fetch, because a page opened from disk may load scripts and nothing else.
(() => {
  if (!window.ATLAS) {
    document.getElementById("told").textContent = "data.js is missing: keep the atlas' files together.";
    return;
  }
  const atlas = window.ATLAS, { facts, labels = {} } = atlas, waiting = new Map(), chunks = new Map();
  atlas.got = (path, value) => waiting.get(path)(value);
  function load(path) {
    if (!chunks.has(path)) {
      chunks.set(path, new Promise((done, fail) => {
        const script = document.createElement("script");
        waiting.set(path, (value) => { script.remove(); waiting.delete(path); done(value); });
        script.onerror = () => { chunks.delete(path); fail(new Error(`${path} is missing: keep the atlas' files together`)); };
        script.src = path;
        document.head.append(script);
      }));
    }
    return chunks.get(path);
  }
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  async function picture(path) {
    const image = Object.assign(new Image(), { src: path });
    try { await image.decode(); } catch { throw new Error(`${path} is missing: keep the atlas' files together`); }
    return image;
  }
  const number = (n) => String(n).padStart(5, "0");
  const subjects = new Map();
  let head = null, stepped = 0;

  const source = {
    overview: async () => ({ facts: atlas.facts, labels, at: location.hash.slice(1) }),
    feature: async ({ feature_id, how }) => {
      const first = feature_id - (feature_id % atlas.chunk);
      const own = (await load(`features/${number(first)}.js`))[feature_id - first];
      const gallery = own.galleries[how], top = atlas.facts.columns.max[feature_id] || 0;
      return { ...own.about, feature_id, how, fresh: [], gallery: gallery.tiles.map((tile) => ({ predicted: tile.label, ...tile })), maps: Float32Array.from(bytes(gallery.maps), (value) => (value * top) / 255) };
    },
    pictures: (rows) => Promise.all(rows.map(async (row) => [row, await picture(`pictures/${number(row)}.jpg`)])),
    open: async (row) => {
      const told = await load(`bench/${number(row)}.js`);
      const subject = { ...told, active: told.active.map((each) => ({ ...each })), key: row, bitmap: await picture(`bench/${number(row)}.jpg`) };
      subjects.set(row, subject);
      if (atlas.facts.switches) { // what forward passes gave of each
        subject.active.forEach((each, i) => Object.assign(each, { after: told.after[i], random: told.random[i] }));
        return { ...subject };
      }
      if (!head) {
        const { weight, bias, eps, features, decoder, random } = await load("bench/head.js");
        head = { weight: floats(weight), bias: floats(bias), eps, decoder: floats(decoder), random: floats(random) };
        head.at = new Map(features.map((id, i) => [id, i]));
      }
      subject.hidden = floats(told.hidden);
      subject.before = AircraftApp.headLogits(subject.hidden, head);
      return { ...subject }; // what is made of it on one bench is not seen on another
    },
    change: async ({ key, multipliers }) => {
      const subject = subjects.get(key);
      if (atlas.facts.switches) { // what forward passes gave, of the one feature that is off
        const off = subject.active.find((each) => multipliers[each.feature_id] === 0);
        return off || { after: subject.before, random: subject.before };
      }
      const d = subject.hidden.length, made = {};
      for (const [name, rows] of [["after", head.decoder], ["random", head.random]]) {
        const h = Float64Array.from(subject.hidden);
        for (const [id, factor] of Object.entries(multipliers)) {
          const own = subject.active.find((each) => each.feature_id === Number(id)), at = head.at.get(Number(id)) * d;
          for (let c = 0; c < d; c++) h[c] -= (1 - factor) * own.strength * rows[at + c];
        }
        made[name] = AircraftApp.headLogits(h, head);
      }
      return made;
    },
    against: async ({ key, name }) => { // the arithmetic that the kernel does
      const subject = subjects.get(key), classes = subject.classes, margin = (logits) => logits[classes.indexOf(subject.own)] - logits[classes.indexOf(name)];
      const active = await Promise.all(subject.active.map(async (each) =>
        ({ ...each, effect: margin((await source.change({ key, multipliers: { [each.feature_id]: 0 } })).after) - margin(subject.before) })));
      return { active: active.sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)), own: subject.own, other: name };
    },
    link: (place) => `${location.href.split("#")[0]}#${place}`,
    flip: atlas.facts.switches ? undefined : async ({ key }) => subjects.get(key).flip,
    placed: (place, step) => { // Back undoes a step; of steps in a row, the last
      if (`#${place}` === location.hash) return;
      const now = Date.now();
      history[step && now - stepped > 600 ? "pushState" : "replaceState"](null, "", `#${place}`);
      if (step) stepped = now;
    },
  };
  const count = (n) => n.toLocaleString("en");
  const works = facts.switches
    ? "This network's logits are no function of the mean over cells, so that the atlas has no sliders: on the bench one " +
      "feature at a time can be switched off, and what then comes out was worked out by forward passes"
    : "Sliders on the bench work";
  document.getElementById("told").textContent =
    `${count(facts.n_features)} features of the study ${facts.name}, on ${count(facts.n_pictures)} test pictures. ` +
    `${Object.keys(labels).length} are labelled. ${works}, for ${facts.bench_pictures.length} pictures; blurring, pictures ` +
    "of your own and the comparison of two classes need the notebook.";
  const app = AircraftApp.mount(document.getElementById("atlas"), source, "browser");
  addEventListener("popstate", () => app.goTo(location.hash.slice(1)));
  window.app = app;
  app.focus(); // nothing else on the page takes keys
})();
