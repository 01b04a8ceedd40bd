// The selection is the query of the address: what is chosen can be sent to somebody, or kept as a bookmark.

const OWN = ["id", "size", "page"];

export function current() {
  return new URLSearchParams(location.search);
}

// Without what is empty, and without what is of one page or one image alone.
export function shared(query = current()) {
  const kept = new URLSearchParams();
  for (const [key, value] of query) if (value !== "" && !OWN.includes(key)) kept.set(key, value);
  return kept;
}

export function changed(query, values) {
  const next = new URLSearchParams(query);
  for (const [key, value] of Object.entries(values)) {
    if (value === "" || value === null) next.delete(key);
    else next.set(key, value);
  }
  return next;
}

export function link(path, query) {
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}
