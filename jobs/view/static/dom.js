// Elements from data. Text becomes text nodes, never markup: whatever an id, a label or an error holds, it is only shown.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child));
}

export function say(text) {
  document.getElementById("status").textContent = text;
}

export const percent = (share) => (share === null || share === undefined ? "" : `${(100 * share).toFixed(0)} %`);

export function chip(name, classes, more = []) {
  const known = classes.find((own) => own.name === name);
  return h("span", { class: "chip" }, h("span", { class: "dot", style: { "--c": known ? known.colour : "#888" } }), name, ...more);
}
