// The front end's source in a notebook: it asks the kernel (widgets.py) by messages.
export default { render({ model, el }) {
  let last = 0;
  const waiting = new Map();
  model.on("msg:custom", (message, buffers) => {
    const reply = waiting.get(message.id);
    if (!reply) return;
    waiting.delete(message.id);
    message.error ? reply.fail(new Error(message.error)) : reply.done([message.result, buffers || []]);
  });
  const page = Math.random().toString(36).slice(2);
  const ask = (call, given = {}, buffers = []) => new Promise((done, fail) => {
    const id = `${page}/${++last}`;
    waiting.set(id, { done, fail });
    model.send({ id, call, given }, undefined, buffers);
  });
  const bytes = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const bitmap = (view) => createImageBitmap(new Blob([bytes(view)], { type: "image/jpeg" }));
  const bitmaps = (rows, files) => Promise.all(rows.map(async (row, i) => [row, await bitmap(files[i])]));
  const subject = async ([result, [picture]]) => ({ ...result, bitmap: await bitmap(picture) });
  const small = async (file) => { // JupyterLab's connection breaks at messages of 10 MB
    if (file.size < 4e6) return file.arrayBuffer();
    const fail = () => { throw new Error(`${file.name} cannot be used: it is not a picture`); };
    const whole = await createImageBitmap(file).catch(fail);
    const share = Math.min(1, 2048 / Math.max(whole.width, whole.height));
    const [width, height] = [whole.width, whole.height].map((size) => Math.ceil(share * size));
    const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(whole, 0, 0, width, height);
    return (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 })).arrayBuffer();
  };
  const source = {
    overview: async () => {
      const at = model.get("at");
      model.set("at", ""); // another view starts where this one is
      model.save_changes();
      const [[facts], [labels]] = await Promise.all([ask("overview"), ask("heard")]);
      return { facts, labels, feature: model.get("feature_id"), at };
    },
    feature: async (wanted, known) => {
      const [view, [maps, ...files]] = await ask("feature", { ...wanted, known });
      return { ...view, maps: new Float32Array(bytes(maps)), fresh: await bitmaps(view.fresh, files) };
    },
    pictures: async (rows) => bitmaps(rows, (await ask("pictures", { rows }))[1]),
    open: async (key) => subject(await ask("open", { key })),
    upload: async (file) => subject(await ask("upload", { name: file.name }, [await small(file)])),
    change: async (given) => (await ask("change", given))[0],
    blur: async (given) => subject(await ask("blur", given)),
    against: async ({ key, name }) => (await ask("open", { key, against: name }))[0],
    link: (place, like) => `FeatureBrowser(study, like="${like}", at="${place}")`,
    pair: async (given) => (await ask("pair", given))[0],
    label: async (given) => (await ask("label", given))[0],
    heard: async () => (await ask("heard"))[0],
    chosen: (id) => { model.set("feature_id", id); model.save_changes(); },
  };
  const app = mount(el, source, model.get("mode"));
  const follow = () => { if (model.get("feature_id") !== app.state.feature) app.show(model.get("feature_id")); };
  model.on("change:feature_id", follow);
  return () => { model.off("change:feature_id", follow); app.close(); };
} };
