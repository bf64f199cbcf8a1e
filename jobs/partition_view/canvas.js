"use strict";

// One zoomable drawing of a laid out graph. World coordinates are the layout's; screen = world * scale + offset.
class View {
  static LABELS_FROM = 0.42;
  static DETAILS_FROM = 0.8;
  static OUTLINES_FROM = 0.3;

  constructor(canvas, graph, hooks) {
    this.canvas = canvas;
    this.graph = graph;
    this.hooks = hooks;
    this.context = canvas.getContext("2d");
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.untouched = true;
    this.lit = null; // Indices of the boxes in the selection; null when nothing is selected.
    this.chosen = -1;
    this.hovered = -1;
    this.pending = false;
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.untouched) this.fit();
    this.draw();
  }

  fit() {
    this.frame({ x: 0, y: 0, w: this.graph.width, h: this.graph.height }, 1.25);
    this.untouched = true;
  }

  frame(area, most) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const top = 40, rim = 18;
    const scale = Math.min((width - 2 * rim) / (area.w || 1), (height - top - rim) / (area.h || 1), most);
    this.scale = Math.max(scale, 0.004);
    this.x = width / 2 - (area.x + area.w / 2) * this.scale;
    this.y = top + (height - top - rim) / 2 - (area.y + area.h / 2) * this.scale;
    this.untouched = false;
    this.draw();
  }

  show(indices, most = 1) {
    if (!indices.length) return;
    const boxes = indices.map((index) => this.graph.boxes[index]);
    const x = Math.min(...boxes.map((box) => box.x)), y = Math.min(...boxes.map((box) => box.y));
    const right = Math.max(...boxes.map((box) => box.x + box.w));
    const bottom = Math.max(...boxes.map((box) => box.y + box.h));
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const isInside = x * this.scale + this.x >= 0 && right * this.scale + this.x <= width
      && y * this.scale + this.y >= 0 && bottom * this.scale + this.y <= height;
    const gain = Math.min(width / (right - x), height / (bottom - y), most) / this.scale;
    // What can be seen well enough stays where it is.
    if (isInside && (gain < 1.6 || this.scale >= View.LABELS_FROM)) return;
    this.frame({ x: x - 40, y: y - 40, w: right - x + 80, h: bottom - y + 80 }, most);
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(4, Math.max(0.004, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.untouched = false;
    this.draw();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.untouched = false;
    this.draw();
  }

  at(event) {
    const bounds = this.canvas.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  }

  boxAt(px, py) {
    // Small boxes are hard to hit: a few pixels beside one count too.
    const x = (px - this.x) / this.scale, y = (py - this.y) / this.scale, slack = 3 / this.scale;
    return this.graph.boxes.findIndex(
      (box) => x > box.x - slack && x < box.x + box.w + slack && y > box.y - slack && y < box.y + box.h + slack,
    );
  }

  listen() {
    const { canvas } = this;
    let from = null, dragged = false;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      from = this.at(event);
      dragged = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = this.at(event);
      if (from) {
        if (!dragged && Math.hypot(x - from[0], y - from[1]) < 4) return;
        dragged = true;
        this.move(x - from[0], y - from[1]);
        from = [x, y];
        this.hover(-1, event);
      } else this.hover(this.boxAt(x, y), event);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from && !dragged) this.hooks.pick(this.boxAt(...this.at(event)));
      from = null;
    });
    canvas.addEventListener("pointercancel", () => (from = null));
    canvas.addEventListener("pointerleave", (event) => this.hover(-1, event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
      this.zoom(Math.exp(-Math.max(-240, Math.min(240, pixels)) * 0.002), ...this.at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
      if (steps[event.key]) this.move(...steps[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(1.25);
      else if (event.key === "-") this.zoom(0.8);
      else if (event.key === "0") this.fit();
      else if (event.key === "Enter") {
        this.hooks.pick(this.boxAt(canvas.clientWidth / 2, canvas.clientHeight / 2));
      } else return;
      event.preventDefault();
    });
  }

  hover(index, event) {
    if (index !== this.hovered) {
      this.hovered = index;
      this.draw();
    }
    this.hooks.hover(index, event);
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.paint();
    });
  }

  paint() {
    const { context, canvas, graph, scale } = this;
    const colours = this.hooks.colours(), ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * this.x, ratio * this.y);
    const left = -this.x / scale, top = -this.y / scale;
    this.sight = [left, top, left + canvas.clientWidth / scale, top + canvas.clientHeight / scale];
    const marked = this.hovered >= 0 ? this.hovered : this.chosen;
    const kinds = { loose: [], plain: [], marked: [] };
    for (const edge of graph.edges) {
      if (edge[0] === marked || edge[1] === marked) kinds.marked.push(edge);
      else kinds[edge[2] ? "loose" : "plain"].push(edge);
    }
    const dimmed = this.lit ? 0.35 : 1;
    this.paintEdges(kinds.loose, colours.edge, 1 / scale, 0.3 * dimmed);
    this.paintEdges(kinds.plain, colours.edge, Math.max(1.2, 0.8 / scale), (scale < 0.2 ? 0.6 : 1) * dimmed);
    this.paintEdges(kinds.marked, colours.accent, Math.max(2, 1.6 / scale), 1);
    graph.boxes.forEach((box, index) => this.paintBox(box, index, colours));
    canvas.dataset.scale = String(scale);
    canvas.dataset.x = String(this.x);
    canvas.dataset.y = String(this.y);
    this.hooks.painted(scale);
  }

  paintEdges(edges, colour, width, alpha) {
    const { context } = this, [left, top, right, bottom] = this.sight;
    context.beginPath();
    for (const [, , loose, points] of edges) {
      let low = Infinity, high = -Infinity, near = Infinity, far = -Infinity;
      for (let i = 0; i < points.length; i += 2) {
        if (points[i] < near) near = points[i];
        if (points[i] > far) far = points[i];
        if (points[i + 1] < low) low = points[i + 1];
        if (points[i + 1] > high) high = points[i + 1];
      }
      const slack = loose ? 120 : 0;
      if (far < left || near > right || high < top - slack || low > bottom + slack) continue;
      context.moveTo(points[0], points[1]);
      for (let i = 2; i < points.length; i += 2) {
        const [x0, y0, x1, y1] = points.slice(i - 2, i + 2);
        if (loose) {
          const bow = Math.min(120, Math.abs(y1 - y0) / 2 + 20);
          context.bezierCurveTo(x0, y0 + bow, x1, y1 - bow, x1, y1);
        } else if (y1 > y0 && x0 !== x1) {
          const middle = (y0 + y1) / 2;
          context.bezierCurveTo(x0, middle, x1, middle, x1, y1);
        } else context.lineTo(x1, y1);
      }
      if (this.scale >= View.LABELS_FROM) {
        const x = points[points.length - 2], y = points[points.length - 1];
        context.moveTo(x - 3.5, y - 6);
        context.lineTo(x, y - 0.5);
        context.lineTo(x + 3.5, y - 6);
      }
    }
    context.globalAlpha = alpha;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
    context.globalAlpha = 1;
  }

  paintBox(box, index, colours) {
    const { context, scale } = this, [left, top, right, bottom] = this.sight;
    if (box.x > right || box.x + box.w < left || box.y > bottom || box.y + box.h < top) return;
    const tone = this.hooks.tone(box), isChosen = index === this.chosen || index === this.hovered;
    const isLit = !this.lit || this.lit.has(index) || isChosen;
    context.globalAlpha = isLit ? 1 : 0.3;
    if (scale < View.OUTLINES_FROM) {
      const w = Math.max(box.w, 2 / scale), h = Math.max(box.h, 2 / scale);
      context.fillStyle = tone.colour;
      context.fillRect(box.x, box.y, w, h);
      if (isChosen) {
        context.strokeStyle = colours.ink;
        context.lineWidth = 2 / scale;
        context.strokeRect(box.x - 3 / scale, box.y - 3 / scale, w + 6 / scale, h + 6 / scale);
      }
      context.globalAlpha = 1;
      return;
    }
    const isRound = box.kind === "input" || box.kind === "output", isFolded = box.kind === "segment";
    context.beginPath();
    context.roundRect(box.x, box.y, box.w, box.h, isRound ? box.h / 2 : 7);
    context.fillStyle = colours.box;
    context.fill();
    const shine = context.globalAlpha;
    context.globalAlpha = shine * (isFolded ? 0.3 : 0.14);
    context.fillStyle = tone.colour;
    context.fill();
    context.globalAlpha = shine;
    context.setLineDash(tone.isNative ? [5, 3] : []);
    context.strokeStyle = isChosen ? colours.ink : tone.colour;
    context.lineWidth = isChosen ? 3 : isFolded ? 2.5 : 1.5;
    context.stroke();
    context.setLineDash([]);
    if (scale >= View.LABELS_FROM || isFolded) this.paintText(box, colours, isFolded);
    context.globalAlpha = 1;
  }

  paintText(box, colours, isFolded) {
    const { context, scale } = this, middle = box.x + box.w / 2, room = box.w - 12;
    const hasDetail = box.detail && (scale >= View.DETAILS_FROM || isFolded);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = colours.ink;
    context.font = `600 ${isFolded ? 15 : 12.5}px ${colours.font}`;
    context.fillText(box.label, middle, box.y + box.h * (hasDetail ? 0.34 : 0.52), room);
    if (hasDetail) {
      context.fillStyle = colours.soft;
      context.font = `${isFolded ? 12 : 10.5}px ${colours.font}`;
      context.fillText(box.detail, middle, box.y + box.h * (isFolded ? 0.7 : 0.74), room);
    }
  }
}
