import { about } from "./api.js";
import { h, replace } from "./dom.js";
import { showGallery } from "./gallery.js";
import { showImage } from "./image.js";

async function show() {
  const main = document.getElementById("main");
  try {
    const run = await about();
    document.title = `${run.name} · fmwsss view`;
    await (location.pathname === "/image" ? showImage(run, main) : showGallery(run, main));
  } catch (error) {
    replace(main, h("p", { class: "box error" }, error.message));
  }
}

window.addEventListener("popstate", show);
show();
