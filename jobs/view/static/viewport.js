// Zoom and pan of a stage of pictures that lie over each other; a click is told in pixels of the image.

const STEP = 1.25, MOST = 32, SLACK_PX = 5;

export class Viewport {
  constructor(frame, stage, onClick) {
    Object.assign(this, { frame, stage, onClick, scale: 1, x: 0, y: 0, width: 1, height: 1, pointers: new Map(), moved: 0 });
    frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? STEP : 1 / STEP, event.clientX, event.clientY);
    }, { passive: false });
    frame.addEventListener("pointerdown", (event) => {
      frame.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
      this.moved = this.pointers.size > 1 ? SLACK_PX : 0;
    });
    frame.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, (event) => this.release(event, name));
    new ResizeObserver(() => this.fit()).observe(frame);
  }

  setSize(width, height) {
    Object.assign(this, { width, height });
    this.fit();
  }

  fit() {
    const { clientWidth, clientHeight } = this.frame;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height);
    this.x = (clientWidth - this.width * this.scale) / 2;
    this.y = (clientHeight - this.height * this.scale) / 2;
    this.draw();
  }

  zoom(factor, clientX, clientY) {
    const box = this.frame.getBoundingClientRect();
    const [left, top] = [(clientX ?? box.left + box.width / 2) - box.left, (clientY ?? box.top + box.height / 2) - box.top];
    const scale = Math.min(MOST, Math.max(0.05, this.scale * factor));
    this.x = left - ((left - this.x) * scale) / this.scale;
    this.y = top - ((top - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this.draw();
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const [x, y] = [event.clientX - before[0], event.clientY - before[1]];
    const other = [...this.pointers].find(([id]) => id !== event.pointerId);
    if (other) {
      const far = (from) => Math.hypot(from[0] - other[1][0], from[1] - other[1][1]);
      this.zoom(far([event.clientX, event.clientY]) / Math.max(1, far(before)), other[1][0], other[1][1]);
    } else if (this.moved >= SLACK_PX || Math.hypot(x, y) >= SLACK_PX) {
      this.moved = SLACK_PX;
      this.pan(x, y);
    } else return;
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
  }

  release(event, name) {
    const wasDown = this.pointers.delete(event.pointerId);
    if (!wasDown || name === "pointercancel" || this.moved >= SLACK_PX) return;
    const box = this.frame.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - this.x) / this.scale);
    const y = Math.floor((event.clientY - box.top - this.y) / this.scale);
    if (x >= 0 && y >= 0 && x < this.width && y < this.height) this.onClick(x, y);
  }

  draw() {
    this.stage.style.setProperty("width", `${this.width}px`);
    this.stage.style.setProperty("height", `${this.height}px`);
    this.stage.style.setProperty("transform", `translate(${this.x}px, ${this.y}px) scale(${this.scale})`);
  }
}
