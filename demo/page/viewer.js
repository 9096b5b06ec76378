// Shows the values that viewer.py makes: the drawing, the region under the cursor, the legend.
// Gradio runs this as the body of a function with `element`, `props` and `watch`.
let shown = 0; // number of values so far: a value that is decoded late must not replace a newer one

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

const percent = (share) => `${Math.round(100 * share)}%`;

async function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Type(await new Response(stream).arrayBuffer());
}

async function show(value) {
  const turn = ++shown;
  if (value && value.nothing) return put();
  if (!value || value.message) {
    const text = value ? value.message : "The result appears here. Point at it to read class and score.";
    put(node("div", { className: value ? "message" : "empty" }, node("p", { textContent: text })));
    return;
  }
  const image = node("img", { src: value.image, alt: describe(value.regions || []) });
  const ids = value.ids && (await unpack(value.ids, Uint16Array));
  const scores = value.scores && (await unpack(value.scores, Uint8Array));
  await image.decode().catch(() => {});
  if (turn !== shown) return;
  const canvas = node("canvas", { width: value.width, height: value.height });
  const tip = node("div", { className: "tip", hidden: true });
  const frame = node("div", { className: "frame" }, image, canvas, tip);
  // As large as the page allows, with the aspect ratio of the image.
  frame.style.aspectRatio = `${value.width} / ${value.height}`;
  frame.style.width = `min(100%, calc(60vh * ${value.width / value.height}))`;
  const parts = [node("div", { className: "stage" }, frame)];
  if (ids) {
    const legend = node("ul", { className: "legend" });
    parts.push(legend);
    point(frame, canvas, tip, legend, { ...value, ids, scores });
  }
  put(...parts);
  element.querySelector(".viewer").dataset.kind = value.kind || "";
}

function put(...parts) {
  const viewer = element.querySelector(".viewer");
  viewer.dataset.kind = "";
  viewer.replaceChildren(...parts);
}

function describe(regions) {
  const names = [...new Set(regions.map((region) => region.name))];
  return names.length ? `Segmented image: ${names.join(", ")}` : "Segmented image";
}

function point(frame, canvas, tip, legend, { ids, scores, regions, width, height }) {
  const items = regions.map((region) => {
    const swatch = node("i");
    swatch.style.background = region.color;
    const figures = node("em", { textContent: percent(region.score) });
    const title = `score ${percent(region.score)}, ${(100 * region.area).toFixed(1)}% of the image`;
    return node("li", { title }, swatch, region.name, figures);
  });
  const byArea = items.map((item, index) => [regions[index].area, item]).sort((a, b) => b[0] - a[0]);
  legend.append(...byArea.map(([, item]) => item));

  let lit = 0;
  function light(id) {
    if (id === lit) return;
    items[lit - 1]?.classList.remove("on");
    items[id - 1]?.classList.add("on");
    lit = id;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!id) return;
    const shade = context.createImageData(width, height);
    for (let i = 0; i < ids.length; i++) if (ids[i] !== id) shade.data[4 * i + 3] = 110;
    context.putImageData(shade, 0, 0);
  }

  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return;
    const pixel = Math.floor(y * height) * width + Math.floor(x * width);
    const id = ids[pixel];
    light(id);
    const name = node("b", { textContent: id ? regions[id - 1].name : "nothing above the threshold" });
    const score = scores ? scores[pixel] / 255 : regions[id - 1]?.score;
    tip.replaceChildren(name, ...(id ? [" ", node("span", { textContent: percent(score) })] : []));
    tip.classList.toggle("left", x > 0.7);
    tip.classList.toggle("above", y > 0.85);
    tip.style.left = `${100 * x}%`;
    tip.style.top = `${100 * y}%`;
    tip.hidden = false;
  });
  frame.addEventListener("pointerleave", () => {
    tip.hidden = true;
    light(0);
  });
  items.forEach((item, index) => {
    item.addEventListener("pointerenter", () => light(index + 1));
    item.addEventListener("pointerleave", () => light(0));
  });
}

watch("value", () => show(props.value));
show(props.value);
