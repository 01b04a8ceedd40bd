// The page of one image: layers over the photograph, what is known of it, and corrections where they are allowed.

import { address, get, told } from "./api.js";
import { correctionPanel } from "./correcting.js";
import { chip, h, percent, replace, say } from "./dom.js";
import { bind } from "./keys.js";
import { changed, current, link, shared } from "./selection.js";
import { Viewport } from "./viewport.js";

const TITLES = {
  fine: "fine seed", coarse: "coarse seed", map: "class map", whole: "superpixels: whole", part: "superpixels: part",
  subpart: "superpixels: sub-part", doubt: "doubt", truth: "ground truth", prediction: "prediction", refined: "refined prediction",
  against: "fine seed of the other run",
};
const PAN_PX = 60;

let run, image, stage, viewport, panel, corrections;
// Which layers are on, and how strong: kept from image to image.
const state = JSON.parse(sessionStorage.getItem("layers") || "{}");

export async function showImage(told_run, main) {
  run = told_run;
  stage = h("div", { class: "stage" });
  const frame = h("div", { class: "frame", tabindex: "0", role: "img", "aria-label": "the image with its layers" }, stage);
  panel = h("div", { class: "side" });
  replace(main, h("div", { class: "columns looking" }, h("section", { "aria-label": "image" }, frame, zoomBar()), panel));
  viewport = new Viewport(frame, stage, (x, y) => corrections?.pickAt(x, y));
  await load(current().get("id"));
}

function zoomBar() {
  const button = (text, label, action) => h("button", { type: "button", "aria-label": label, on: { click: action } }, text);
  return h("div", { class: "bar" }, button("+", "larger", () => viewport.zoom(1.25)), button("−", "smaller", () => viewport.zoom(0.8)),
    button("fit", "fit into the window", () => viewport.fit()),
    h("span", { class: "soft keys" }, "j k: next, previous; 1-9: layers; + - f: zoom; arrows: move; g: gallery"));
}

async function load(id) {
  const isNew = !image || image.id !== id;
  image = await get("/api/image", changed(current(), { id }));
  if (!Object.keys(state).length && image.layers.length) state[image.layers[0]] = { on: true, opacity: 0.6 };
  const here = shared();
  replace(document.getElementById("top"), h("a", { class: "button", href: link("/", here), id: "back" }, "← images"),
    h("h1", {}, image.id),
    h("span", { class: "soft", id: "place" }, image.place === null ? "not in the selection" : `${image.place + 1} of ${image.total.toLocaleString("en")}`),
    neighbour("previous", "k"), neighbour("next", "j"));
  document.title = `${image.id} · ${run.name}`;
  drawLayers();
  if (isNew) viewport.setSize(image.width_px || 1, image.height_px || 1);
  corrections = run.editable && image.is_there ? correctionPanel({ run, image, stage, reload: () => load(image.id) }) : null;
  replace(panel, corrections && h("section", { class: "box", "aria-label": "corrections" }, h("h2", {}, "Correct"), corrections.element),
    h("section", { class: "box", "aria-label": "layers" }, h("h2", {}, "Layers"), image.layers.map(layerRow)),
    h("section", { class: "box", "aria-label": "about the image" }, h("h2", {}, "Known"), known()));
  bind({
    j: () => follow("next"), k: () => follow("previous"), g: () => location.assign(link("/", here)), f: () => viewport.fit(),
    "+": () => viewport.zoom(1.25), "=": () => viewport.zoom(1.25), "-": () => viewport.zoom(0.8),
    ArrowLeft: () => viewport.pan(PAN_PX, 0), ArrowRight: () => viewport.pan(-PAN_PX, 0),
    ArrowUp: () => viewport.pan(0, PAN_PX), ArrowDown: () => viewport.pan(0, -PAN_PX),
    ...Object.fromEntries(image.layers.slice(0, 9).map((name, index) => [`${index + 1}`, () => toggle(name)])),
    ...(corrections ? corrections.keys : {}),
  });
}

function neighbour(which, key) {
  const text = `${which} (${key})`;
  if (!image[which]) return h("span", { class: "button off" }, text);
  return h("a", { class: "button", rel: which === "next" ? "next" : "prev", href: link("/image", changed(shared(), { id: image[which] })),
    on: { click: (event) => { event.preventDefault(); follow(which); } } }, text);
}

function follow(which) {
  if (!image[which]) return say(`there is no ${which} image`);
  history.pushState(null, "", link("/image", changed(shared(), { id: image[which] })));
  load(image[which]).catch(told);
}

function source(layer) {
  return address("/layer", { id: image.id, layer, v: layer === "fine" ? image.version : "" });
}

function drawLayers() {
  const pictures = image.is_there ? [h("img", { class: "photo", src: source("image"), alt: "" })] : [];
  for (const name of image.layers) {
    const own = state[name];
    if (own?.on) pictures.push(h("img", { src: source(name), alt: "", "data-layer": name, style: { opacity: `${own.opacity}` } }));
  }
  replace(stage, pictures);
}

function toggle(name) {
  state[name] = { on: !state[name]?.on, opacity: state[name]?.opacity ?? 0.6 };
  keep();
  const box = panel.querySelector(`input[data-toggle="${name}"]`);
  if (box) box.checked = state[name].on;
  say(`${TITLES[name]} ${state[name].on ? "on" : "off"}`);
}

function keep() {
  sessionStorage.setItem("layers", JSON.stringify(state));
  const marked = stage.querySelector(".marked");
  drawLayers();
  if (marked) stage.append(marked);
}

function layerRow(name, index) {
  const key = index < 9 ? `${index + 1}` : "";
  return h("div", { class: "layer" },
    h("label", {}, h("input", { type: "checkbox", "data-toggle": name, checked: state[name]?.on || null, on: { change: () => toggle(name) } }),
      h("kbd", {}, key), TITLES[name]),
    h("input", { type: "range", min: 0, max: 1, step: 0.05, value: state[name]?.opacity ?? 0.6, "aria-label": `opacity of ${TITLES[name]}`,
      on: { input: (event) => { state[name] = { on: state[name]?.on ?? false, opacity: Number(event.target.value) }; keep(); } } }));
}

function known() {
  const facts = [
    ["labels", h("span", { class: "chips" }, image.classes.map((name) => chip(name, run.classes)))],
    ["no pixel", image.missing.join(", ")],
    ["confidence", percent(image.confidence)],
    ["covered", percent(image.coverage)],
    ["area with a class", percent(image.area)],
    ["coarse and fine differ", percent(image.disagreement)],
    ["IoU", percent(image.iou)],
    ["changed", percent(image.changed)],
    ["size", image.is_there ? `${image.width_px} × ${image.height_px} px` : ""],
    ["reviewed", image.verdict ? `${image.verdict}, ${image.corrections} corrections` : ""],
  ].filter(([, value]) => value);
  return [h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]).flat()),
    ...image.failures.map((own) => h("p", { class: "warn" }, `${own.stage}: ${own.error_type}: ${own.message}`))];
}
