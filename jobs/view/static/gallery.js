// The paged gallery: what is selected, page by page, with the summary of the run beside it.

import { address, about, get, told } from "./api.js";
import { chip, h, percent, replace, say } from "./dom.js";
import { bind } from "./keys.js";
import { changed, current, link, shared } from "./selection.js";

const NUMBERS = {
  confidence: "confidence",
  coverage: "covered by superpixels",
  area: "area with a class",
  disagreement: "coarse and fine differ",
  iou: "IoU",
  changed: "changed",
};
const SORTS = {
  uncertainty: "most uncertain first",
  confidence: "most confident first",
  iou: "lowest IoU first",
  disagreement: "coarse and fine differ most",
  coverage: "least covered first",
  area: "largest area first",
  changed: "changed most first",
  id: "by id",
  run: "as in the run",
};
const SHOWN = {
  fine: "seeds",
  image: "photographs",
  map: "class maps",
  coarse: "coarse seeds",
  truth: "seeds and ground truth",
  against: "seeds and the other run's",
};
const AGAIN_MS = 1000;

let run, grid, count, pager, form, timer;

export async function showGallery(told_run, main) {
  run = told_run;
  grid = h("div", { id: "grid", class: "grid" });
  count = h("p", { id: "count", class: "soft" });
  pager = h("nav", { id: "pager", "aria-label": "pages" });
  form = filters();
  replace(document.getElementById("top"), head());
  replace(
    main,
    h("div", { class: "columns" }, h("div", { class: "side" }, panel("Find", form, true), panel("Classes", summary(), false)),
      h("section", { "aria-label": "images" }, h("div", { class: "bar" }, count, list()), grid, pager)),
  );
  bind({ j: () => step(1), k: () => step(-1), n: () => turn(1), p: () => turn(-1), "/": () => form.elements.text.focus() });
  await load();
  again();
}

function head() {
  const told = [`${run.images.toLocaleString("en")} images`];
  if (run.failed) told.push(`${run.failed} failed`);
  const fine = run.rows.find((row) => row.name === "fine");
  if (fine && fine.miou !== null) told.push(`mIoU ${(100 * fine.miou).toFixed(1)}`);
  if (run.against) told.push(`against ${run.against}`);
  return [h("h1", {}, run.name), h("span", { class: "soft", id: "told" }, told.join(" · ")),
    h("span", { class: "soft keys" }, "j k: image, n p: page, / search")];
}

// Open where there is room; a person who closes it is not argued with.
function panel(title, content, isOpen) {
  return h("details", { class: "box", open: isOpen && matchMedia("(min-width: 900px)").matches }, h("summary", {}, title), content);
}

function filters() {
  const query = current();
  const names = run.classes.filter((own) => own.images).map((own) => own.name);
  const select = (name, label, options) =>
    h("label", {}, label, h("select", { name, value: "" }, options.map(([value, text]) =>
      h("option", { value, selected: (query.get(name) || "") === value }, text))));
  const numbers = run.numbers.map((name) =>
    h("fieldset", {}, h("legend", {}, NUMBERS[name]), histogram(run.histograms[name], NUMBERS[name]),
      ...["min", "max"].map((side) =>
        h("input", { type: "number", min: 0, max: 1, step: "any", name: `${name}_${side}`, placeholder: side,
          "aria-label": `${NUMBERS[name]}, ${side}`, value: query.get(`${name}_${side}`) || "" }))));
  const sorts = Object.entries(SORTS).filter(([name]) => !(name in NUMBERS) || run.numbers.includes(name));
  const shown = Object.entries(SHOWN).filter(([name]) =>
    (name !== "against" || run.against) && (name !== "truth" || run.numbers.includes("iou")));
  return h("form", { id: "filters", on: { submit: apply, change: apply } },
    h("label", {}, "id contains", h("input", { type: "search", name: "text", value: query.get("text") || "" })),
    select("class", "class", [["", "all"], ...names.map((name) => [name, name])]),
    select("missing", "label without a pixel", [["", "does not matter"], ["any", "any"], ...names.map((name) => [name, name])]),
    select("sort", "order", sorts.map(([value, text]) => [value === "uncertainty" ? "" : value, text])),
    select("show", "show", shown.map(([value, text]) => [value === "fine" ? "" : value, text])),
    select("verdict", "reviewed", [["", "does not matter"], ["untouched", "not yet"], ["corrected", "corrected"],
      ["accepted", "accepted"], ["rejected", "rejected"]]),
    run.failed ? select("failed", "failures", [["", "with the others"], ["1", "alone"]]) : null,
    ...numbers,
    h("button", { type: "button", on: { click: () => go(new URLSearchParams(), true) } }, "Show all again"));
}

function histogram(bins, name) {
  const most = Math.max(1, ...(bins || []));
  return h("div", { class: "histogram", role: "img", "aria-label": `how ${name} is spread from 0 to 1` },
    (bins || []).map((own) => h("span", { style: { height: `${Math.round((100 * own) / most)}%` } })));
}

function summary() {
  const has = (name) => run.classes.some((own) => own[name] !== null && own.images);
  const columns = [["images", (own) => own.images], ["no pixel", (own) => own.missing],
    ...(has("confidence") ? [["confidence", (own) => percent(own.confidence)]] : []),
    ...(has("iou") ? [["IoU", (own) => percent(own.iou)]] : [])];
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "classes" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "class"), columns.map(([name]) => h("th", { scope: "col", class: "num" }, name)))),
    h("tbody", {}, run.classes.filter((own) => own.images).map((own) =>
      h("tr", {}, h("th", { scope: "row" }, h("a", { href: link("/", changed(new URLSearchParams(), { class: own.name })) }, chip(own.name, run.classes))),
        columns.map(([, value]) => h("td", { class: "num" }, `${value(own)}`)))))));
}

function list() {
  return h("a", { id: "list", class: "button", download: "images.txt" }, "Save list of ids");
}

function apply(event) {
  event.preventDefault();
  const query = new URLSearchParams();
  for (const [key, value] of new FormData(form)) if (value !== "") query.set(key, value);
  go(query, false);
}

function go(query, isAnew) {
  history.pushState(null, "", link("/", query));
  if (isAnew) window.dispatchEvent(new PopStateEvent("popstate"));
  else load().catch(told);
}

async function load() {
  const query = current();
  const page = await get("/api/images", query);
  const here = shared(query);
  document.getElementById("list").href = link("/api/list", here);
  count.textContent = page.total
    ? `${page.total.toLocaleString("en")} images, page ${page.page} of ${page.pages}`
    : "no image is like this";
  replace(grid, page.images.map((image) => card(image, here)));
  const turnTo = (number, text, is) => h("a", { class: is ? "button here" : "button", href: link("/", changed(query, { page: number })),
    "aria-current": is ? "page" : null, "data-page": number, on: { click: (event) => { event.preventDefault(); toPage(number); } } }, text);
  const near = [1, page.page - 1, page.page, page.page + 1, page.pages].filter((n, i, all) => n >= 1 && n <= page.pages && all.indexOf(n) === i);
  replace(pager, page.pages > 1 ? near.map((number) => turnTo(number, `${number}`, number === page.page)) : []);
  pager.dataset.page = page.page;
  pager.dataset.pages = page.pages;
  say(count.textContent);
}

function toPage(number) {
  go(changed(current(), { page: number }), false);
  window.scrollTo(0, 0);
}

function turn(by) {
  const number = Number(pager.dataset.page) + by;
  if (number >= 1 && number <= Number(pager.dataset.pages)) toPage(number);
}

function step(by) {
  const cards = [...grid.querySelectorAll("a")];
  const next = cards.indexOf(document.activeElement) + by;
  cards[Math.min(Math.max(next, 0), cards.length - 1)]?.focus();
}

function card(image, here) {
  const show = here.get("show") || "fine";
  const pictures = { truth: ["fine", "truth"], against: ["fine", "against"] }[show] || [show];
  const told = [];
  if (image.confidence !== null) told.push(`confidence ${percent(image.confidence)}`);
  if (image.iou !== null) told.push(`IoU ${percent(image.iou)}`);
  if (image.changed !== null) told.push(`changed ${percent(image.changed)}`);
  return h("a", { class: "card", href: link("/image", changed(here, { id: image.id })), "data-id": image.id },
    h("span", { class: "pictures" }, pictures.map((layer) =>
      h("img", { src: address("/thumbnail", { id: image.id, layer, v: image.version }), alt: "", loading: "lazy", decoding: "async" }))),
    h("span", { class: "name" }, image.id),
    h("span", { class: "soft" }, told.join(", ")),
    h("span", { class: "chips" }, image.classes.map((name) => chip(name, run.classes))),
    image.missing.length ? h("span", { class: "warn" }, `no pixel: ${image.missing.join(", ")}`) : null,
    image.failed ? h("span", { class: "warn" }, "failed") : null,
    image.verdict ? h("span", { class: "verdict" }, image.verdict) : null);
}

// The first screen comes before the whole index, and before all images are compared.
function again() {
  clearTimeout(timer);
  const isDone = run.error || (run.indexed_parts === run.parts && (!run.compared || run.compared.error || run.compared.done === run.compared.all));
  if (run.error) say(run.error);
  if (isDone) return;
  timer = setTimeout(async () => {
    if (location.pathname !== "/") return;
    const before = run;
    run = await about();
    replace(document.getElementById("top"), head());
    count.textContent = `reading the run: part ${run.indexed_parts} of ${run.parts}`;
    const isNow = run.indexed_parts === run.parts && before.indexed_parts !== before.parts;
    const isCompared = run.compared && run.compared.done === run.compared.all && run.compared.all;
    if (isNow || isCompared) window.dispatchEvent(new PopStateEvent("popstate"));
    else again();
  }, AGAIN_MS);
}
