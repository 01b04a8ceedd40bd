// Corrections of one image: a superpixel gets a class, a label comes or goes, a verdict is given; the last one can be undone.

import { address, correct, get, told } from "./api.js";
import { chip, h, replace, say } from "./dom.js";

const LEVELS = ["sub-part", "part", "whole"];

export function correctionPanel({ run, image, stage, reload }) {
  let found = [], place = -1, at = null, all = null;
  const picked = h("p", { class: "soft", id: "picked" }, "Click on the image, or press s, to pick a superpixel.");
  const mark = h("img", { class: "marked", alt: "" });
  const names = [...image.classes, ...run.classes.map((own) => own.name).filter((name) => !image.classes.includes(name))];

  async function send(correction, words) {
    try {
      await correct({ image: image.id, ...correction });
      await reload();
      say(words);
    } catch (error) {
      told(error);
    }
  }

  function show(index) {
    place = index;
    const own = found[place];
    mark.src = address("/superpixel", { id: image.id, index: own.index });
    stage.append(mark);
    const given = own.class ? run.classes.find((each) => each.index === own.class)?.name : "background";
    picked.textContent = `superpixel ${own.index} (${LEVELS[own.level]}, ${own.area_px} px): ${own.class === null ? "" : given}; ${place + 1} of ${found.length} here`;
    say(picked.textContent);
  }

  async function pickAt(x, y) {
    try {
      // A second click on the same place goes on to the next smaller one.
      if (at && found.length && Math.hypot(at[0] - x, at[1] - y) < 4) return show((place + 1) % found.length);
      at = [x, y];
      found = (await get("/api/at", new URLSearchParams({ id: image.id, x, y }))).superpixels.reverse();
      if (found.length) show(0);
      else say("there is no superpixel here");
    } catch (error) {
      told(error);
    }
  }

  async function walk(by) {
    all ??= (await get("/api/at", new URLSearchParams({ id: image.id }))).superpixels.reverse();
    if (!all.length) return say("there is no superpixel");
    if (found !== all) { found = all; place = by > 0 ? -1 : 0; at = null; }
    show((place + by + found.length) % found.length);
  }

  function paint(name) {
    if (place < 0) return say("pick a superpixel first: click on the image, or press s");
    send({ action: "paint", superpixel: found[place].index, class: name }, `painted: ${name ?? "background"}`);
  }

  const other = h("select", { "aria-label": "another class" }, h("option", { value: "" }, "another class …"),
    names.slice(image.classes.length).map((name) => h("option", { value: name }, name)));
  const button = (text, action, attributes = {}) => h("button", { type: "button", ...attributes, on: { click: action } }, text);
  const buttons = h("div", { class: "bar", id: "paint" },
    ...image.classes.map((name) => button(chip(name, run.classes), () => paint(name), { "data-class": name })),
    button("background (b)", () => paint(null), { "data-class": "" }),
    other, button("paint it", () => (other.value ? paint(other.value) : say("choose a class first")), { id: "paint-other" }));
  const labels = h("div", { class: "bar", id: "labels" },
    ...image.classes.map((name) => button([chip(name, run.classes), " ×"], () => send({ action: "strike", class: name }, `label struck: ${name}`), { "aria-label": `strike the label ${name}` })),
    button("add the chosen class as a label", () => (other.value ? send({ action: "add", class: other.value }, `label added: ${other.value}`) : say("choose a class first")), { id: "add" }));
  const verdict = h("div", { class: "bar" },
    button("accept (a)", () => send({ action: "accept" }, "accepted"), { id: "accept" }),
    button("reject (r)", () => send({ action: "reject" }, "rejected"), { id: "reject" }),
    button("undo (u)", () => send({ action: "undo" }, "undone"), { id: "undo", disabled: image.corrections ? null : true }));
  const element = h("div", {}, picked, buttons, h("h3", {}, "Labels"), labels, h("h3", {}, "Verdict"), verdict,
    h("p", { class: "soft" }, image.corrections ? `${image.corrections} corrections wait for \`fmwsss run\`` : ""));
  return {
    element,
    pickAt,
    keys: {
      s: () => walk(1).catch(told), S: () => walk(-1).catch(told), b: () => paint(null), a: () => send({ action: "accept" }, "accepted"),
      r: () => send({ action: "reject" }, "rejected"), u: () => send({ action: "undo" }, "undone"), Escape: () => { mark.remove(); place = -1; at = null; },
    },
  };
}
