// The atlas's source: what the front end asks a kernel for, read from the files beside index.html. It loads scripts
// instead of calling fetch, because a page opened from disk may load nothing else.
(() => {
  if (!window.ATLAS) {
    document.getElementById("told").textContent = "data.js is missing: keep the atlas's files together.";
    return;
  }
  const atlas = window.ATLAS, { facts, labels = {} } = atlas, waiting = new Map(), chunks = new Map();
  atlas.got = (path, value) => waiting.get(path)(value);
  function load(path) {
    if (!chunks.has(path)) {
      chunks.set(path, new Promise((done, fail) => {
        const script = document.createElement("script");
        waiting.set(path, (value) => { script.remove(); waiting.delete(path); done(value); });
        script.onerror = () => { chunks.delete(path); fail(new Error(`${path} is missing: keep the atlas's files together`)); };
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
    try { await image.decode(); } catch { throw new Error(`${path} is missing: keep the atlas's files together`); }
    return image;
  }
  const number = (n) => String(n).padStart(5, "0");
  const subjects = new Map();
  let head = null, stepped = 0, later = null, pause = 0;
  const write = (how, place) => { try { history[how](null, "", `#${place}`); } catch { /* browsers refuse many in a row */ } };
  const settle = () => {
    clearTimeout(pause);
    if (later !== null) write("replaceState", later);
    later = null;
  };

  async function readHead() {
    if (head) return;
    const { weight, bias, eps, features, decoder, random, classes } = await load("bench/head.js");
    head = { weight: floats(weight), bias: floats(bias), eps, decoder: floats(decoder), random: floats(random), classes };
    head.at = new Map(features.map((id, i) => [id, i]));
  }
  function without(hidden, taken, rows) { // logits after taking out amounts [feature, amount] of some rows
    const left = Float64Array.from(hidden), d = left.length;
    for (const [id, amount] of taken) for (let c = 0, at = head.at.get(id) * d; c < d; c++) left[c] -= amount * rows[at + c];
    return AircraftApp.headLogits(left, head);
  }
  function withInterval(values) { // their mean, and the middle 95 % of the means of 2,000 bootstrap draws
    const n = values.length, mean = (of) => of.reduce((a, b) => a + b, 0) / n;
    let seed = 1;
    const uniform = () => { // mulberry32: the same interval each time
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
    const draws = Float64Array.from({ length: 2000 }, () => mean(values.map(() => values[Math.floor(uniform() * n)]))).sort();
    return { value: mean(values), low: draws[49], high: draws[1949], n };
  }

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
      if (atlas.facts.switches) { // stored results of forward passes
        subject.active.forEach((each, i) => Object.assign(each, { after: told.after[i], random: told.random[i] }));
        return { ...subject };
      }
      await readHead();
      subject.hidden = floats(told.hidden);
      subject.before = AircraftApp.headLogits(subject.hidden, head);
      return { ...subject }; // a copy, so that changes on one bench do not show on another
    },
    regions: async () => {
      const { names, features, random } = await load("bench/regions.js");
      return { names, features: floats(features), random: floats(random) };
    },
    change: async ({ key, multipliers, cells }) => {
      const subject = subjects.get(key);
      if (atlas.facts.switches) { // the stored result for the one feature that is off
        const off = subject.active.find((each) => multipliers[each.feature_id] === 0);
        return off || { after: subject.before, random: subject.before };
      }
      const inCells = (id) => // its activation there, averaged over all cells
        cells.reduce((sum, [row, column]) => sum + (subject.cells[row * facts.grid[1] + column].find(([other]) => other === id) || [0, 0])[1], 0) / subject.cells.length;
      const strength = (id) => (cells ? inCells(id) : subject.active.find((each) => each.feature_id === id).strength);
      const taken = Object.entries(multipliers).map(([id, factor]) => [Number(id), (1 - factor) * strength(Number(id))]);
      return { after: without(subject.hidden, taken, head.decoder), random: without(subject.hidden, taken, head.random) };
    },
    effect: facts.switches || !facts.level ? undefined : async ({ feature_id, one, two }) => { // in all test pictures of two classes
      await readHead();
      const pair = [one, two].map((name) => head.classes.indexOf(name)), found = [];
      for (const [k, label] of [one, two].entries()) {
        const own = await load(`classes/${number(pair[k])}.js`), hidden = floats(own.hidden), d = hidden.length / own.rows.length;
        const strength = floats(own.strength), packed = bytes(own.features);
        const features = new ({ 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[packed.length / strength.length || 1])(packed.buffer);
        let end = 0; // of a picture's active features
        const taken = own.counts.map((n) => {
          const at = features.subarray(end, (end += n)).indexOf(feature_id);
          return at < 0 ? 0 : strength[end - n + at];
        });
        const margin = (logits) => logits[pair[k]] - logits[pair[1 - k]];
        own.rows.forEach((row, i) => {
          const pooled = hidden.subarray(i * d, (i + 1) * d), before = taken[i] && margin(AircraftApp.headLogits(pooled, head));
          const [change, random] = [head.decoder, head.random].map((rows) => taken[i] && margin(without(pooled, [[feature_id, taken[i]]], rows)) - before);
          found.push({ picture: row, label, change, random });
        });
      }
      const pictures = found.filter((each) => each.change).sort((a, b) => Math.abs(b.change) - Math.abs(a.change) || a.picture - b.picture).slice(0, 6);
      return { effect: withInterval(found.map((each) => each.change)), random: withInterval(found.map((each) => each.random)), pictures };
    },
    against: async ({ key, name }) => { // the arithmetic that the kernel does
      const subject = subjects.get(key), classes = subject.classes, margin = (logits) => logits[classes.indexOf(subject.own)] - logits[classes.indexOf(name)];
      const active = await Promise.all(subject.active.map(async (each) =>
        ({ ...each, effect: margin((await source.change({ key, multipliers: { [each.feature_id]: 0 } })).after) - margin(subject.before) })));
      return { active: active.sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)), own: subject.own, other: name };
    },
    link: (place) => `${location.href.split("#")[0]}#${place}`,
    flip: atlas.facts.switches ? undefined : async ({ key }) => subjects.get(key).flip,
    placed: (place, step) => { // Back undoes a step; quick steps in a row count as one
      const now = Date.now(), pushed = step && now - stepped > 600;
      if (step) stepped = now;
      if (pushed) { settle(); write("pushState", place); return; }
      clearTimeout(pause);
      later = `#${place}` === location.hash ? null : place;
      if (later !== null) pause = setTimeout(settle, 250);
    },
  };
  const count = (n) => n.toLocaleString("en"), named = Object.keys(labels).length;
  const works = facts.switches
    ? "This network's logits are not a function of the mean over cells, so the atlas has no sliders: on the bench, one " +
      "feature at a time can be switched off, with results from stored forward passes"
    : "Sliders on the bench work";
  document.getElementById("told").textContent =
    `${count(facts.n_features)} features of the study ${facts.name}, on ${count(facts.n_pictures)} test pictures. ` +
    `${count(named)} ${named === 1 ? "is" : "are"} labelled. ${works} for ${facts.bench_pictures.length} pictures; blurring, pictures ` +
    "of your own and the search for features that tell two classes apart need the notebook.";
  const app = AircraftApp.mount(document.getElementById("atlas"), source, "browser");
  addEventListener("popstate", () => { later = null; app.goTo(location.hash.slice(1)); });
  addEventListener("pagehide", settle);
  window.app = Object.assign(app, { source });
  app.focus(); // nothing else on the page takes keys
})();
