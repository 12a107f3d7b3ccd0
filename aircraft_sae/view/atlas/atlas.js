// The atlas' source: what the front end asks a kernel for, read from the files beside index.html. Scripts in place of
// fetch, because a page opened from disk may load scripts and nothing else.
(() => {
  const atlas = window.ATLAS, waiting = new Map(), chunks = new Map();
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
    const image = new Image();
    image.src = path;
    try { await image.decode(); } catch { throw new Error(`${path} is missing: keep the atlas' files together`); }
    return image;
  }
  const number = (n) => String(n).padStart(5, "0");
  let head = null, subject = null;

  const source = {
    overview: async () => ({ facts: atlas.facts, labels: atlas.labels, feature: Number.parseInt(location.hash.slice(1), 10) }),
    feature: async ({ feature_id, how }) => {
      const first = feature_id - (feature_id % atlas.chunk);
      const own = (await load(`features/${number(first)}.js`))[feature_id - first];
      const gallery = own.galleries[how], top = atlas.facts.columns.max[feature_id] || 0;
      return { ...own.about, feature_id, how, fresh: [], gallery: gallery.tiles.map((tile) => ({ predicted: tile.label, ...tile })), maps: Float32Array.from(bytes(gallery.maps), (value) => (value * top) / 255) };
    },
    pictures: (rows) => Promise.all(rows.map(async (row) => [row, await picture(`pictures/${number(row)}.jpg`)])),
    open: async (row) => {
      const told = await load(`bench/${number(row)}.js`);
      if (!head) {
        const { weight, bias, eps, features, decoder, random } = await load("bench/head.js");
        head = { weight: floats(weight), bias: floats(bias), eps, decoder: floats(decoder), random: floats(random) };
        head.at = new Map(features.map((id, i) => [id, i]));
      }
      subject = { ...told, pooled: floats(told.pooled), bitmap: await picture(`bench/${number(row)}.jpg`) };
      subject.before = AircraftApp.headLogits(subject.pooled, head);
      return subject;
    },
    change: async ({ multipliers }) => {
      const d = subject.pooled.length, made = {};
      for (const [name, rows] of [["after", head.decoder], ["random", head.random]]) {
        const pooled = Float64Array.from(subject.pooled);
        for (const [id, factor] of Object.entries(multipliers)) {
          const own = subject.active.find((each) => each.feature_id === Number(id)), at = head.at.get(Number(id)) * d;
          for (let c = 0; c < d; c++) pooled[c] -= (1 - factor) * own.strength * rows[at + c];
        }
        made[name] = AircraftApp.headLogits(pooled, head);
      }
      return made;
    },
    flip: async () => subject.flip,
    chosen: (id) => history.replaceState(null, "", `#${id}`),
  };
  const app = AircraftApp.mount(document.getElementById("atlas"), source, "browser");
  addEventListener("hashchange", () => {
    const id = Number.parseInt(location.hash.slice(1), 10);
    if (Number.isInteger(id) && id !== app.state.feature) app.show(id);
  });
  window.app = app;
  app.focus(); // nothing else on the page takes keys
})();
