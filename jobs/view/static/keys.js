// One place for keys; none is taken from somebody who types.

let bound = {};

export function bind(keys) {
  bound = keys;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  const types = at instanceof HTMLTextAreaElement || (at instanceof HTMLInputElement && !["checkbox", "range"].includes(at.type));
  if (types || at instanceof HTMLSelectElement) {
    if (event.key === "Escape") at.blur();
    return;
  }
  if (at instanceof HTMLInputElement && event.key.startsWith("Arrow")) return;
  const action = bound[event.key];
  if (!action) return;
  event.preventDefault();
  action(event);
});
