// The side panel: segments, the selection, search results and native nodes. Names are only ever set as text.
class Panel {
  static MOST_FOUND = 500;

  constructor(data, hooks) {
    this.data = data;
    this.hooks = hooks;
    this.tabs = ["segments", "selection", "native"].map((name) => document.getElementById(`tab-${name}`));
    this.tabs.forEach((tab, place) => {
      tab.addEventListener("click", () => this.open(tab.getAttribute("aria-controls")));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = this.tabs[(place + step + this.tabs.length) % this.tabs.length];
        this.open(next.getAttribute("aria-controls"));
        next.focus();
      });
    });
    this.fillSegments();
    this.fillNative();
    this.showNothing();
    this.open("segments");
  }

  static make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "tone") element.style.setProperty("--tone", value);
      else if (name === "click") element.addEventListener("click", value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  open(name) {
    for (const tab of this.tabs) {
      const isOpen = tab.getAttribute("aria-controls") === name;
      tab.setAttribute("aria-selected", String(isOpen));
      tab.tabIndex = isOpen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !isOpen;
    }
  }

  // Rows of a list are one stop of the Tab key; arrows move inside.
  list(rows) {
    this.rows = rows;
    rows.forEach((row, place) => (row.tabIndex = place ? -1 : 0));
    const list = Panel.make("ul", { class: "rows" }, ...rows.map((row) => Panel.make("li", {}, row)));
    list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], place = rows.indexOf(event.target);
      if (!step || place < 0 || !rows[place + step]) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      rows[place + step].tabIndex = 0;
      rows[place + step].focus();
    });
    return list;
  }

  counted(number, word) {
    return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  }

  title(number) {
    const { name, op, outputs } = this.data.nodes[number];
    return name || (outputs.length ? this.data.values[outputs[0]][0] : op);
  }

  row(number) {
    const node = this.data.nodes[number], first = node.outputs.length ? this.data.values[node.outputs[0]][1] : "";
    return Panel.make(
      "button",
      {
        type: "button", class: "row", "data-node": number, tone: this.hooks.tone(node.segment),
        click: (event) => this.hooks.pickNode(number, null, event.currentTarget),
      },
      Panel.make("span", { class: "right" }, first), Panel.make("b", {}, node.op),
      Panel.make("small", {}, this.title(number)),
    );
  }

  fillSegments() {
    const rows = this.data.segments.map((segment, place) => Panel.make(
      "button",
      {
        type: "button", class: "row", "data-segment": place, tone: this.hooks.tone(place),
        click: () => this.hooks.pickSegment(place),
      },
      Panel.make("span", { class: "right" }, this.counted(segment.nodes.length, "node")),
      Panel.make("b", {}, segment.name),
      Panel.make("small", {}, segment.multiplyAdds ? `${this.share(segment.multiplyAdds)} of the multiply-adds` : ""),
    ));
    this.segmentRows = rows;
    document.getElementById("segments").replaceChildren(
      Panel.make("p", { class: "soft" }, "In order of execution."), this.list(rows),
    );
  }

  fillNative() {
    const native = this.data.nodes.map((node, number) => [node, number]).filter(([node]) => node.reason >= 0);
    document.getElementById("tab-native").textContent = `Native nodes (${native.length.toLocaleString("en")})`;
    const lines = native.map(([node, number]) => Panel.make(
      "tr", {},
      Panel.make("td", {},
        Panel.make("button", { type: "button", class: "link", click: () => this.hooks.pickNode(number) },
          this.title(number)),
        Panel.make("div", { class: "soft" }, node.op)),
      Panel.make("td", {}, this.data.reasons[node.reason]),
    ));
    const head = Panel.make("tr", {}, Panel.make("th", {}, "Node"), Panel.make("th", {}, "Why TensorRT does not run it"));
    document.getElementById("native").replaceChildren(
      native.length
        ? Panel.make("table", {}, Panel.make("thead", {}, head), Panel.make("tbody", {}, ...lines))
        : Panel.make("p", {}, "TensorRT runs every node."),
    );
  }

  show(detail, list, isKept = false) {
    document.getElementById("detail").replaceChildren(...detail);
    if (!isKept) document.getElementById("list").replaceChildren(...list);
    document.getElementById("selection").scrollTop = 0;
  }

  showNothing() {
    this.mark(-1);
    this.show([Panel.make("p", { class: "soft" }, "Click a segment on the right, a node on either side, or search.")], []);
  }

  share(multiplyAdds) {
    const whole = this.data.segments.reduce((sum, segment) => sum + segment.multiplyAdds, 0);
    return whole ? `${((100 * multiplyAdds) / whole).toFixed(1)}%` : "";
  }

  mark(segment) {
    this.segmentRows.forEach((row, place) => row.setAttribute("aria-current", String(place === segment)));
  }

  values(places) {
    return places.map((place) => {
      const [name, type] = this.data.values[place];
      return Panel.make("div", {}, name, Panel.make("div", { class: "soft" }, type));
    });
  }

  facts(pairs) {
    return Panel.make("dl", {}, ...pairs.filter(([, content]) => content.length).flatMap(([word, content]) => [
      Panel.make("dt", {}, word), Panel.make("dd", {}, ...content),
    ]));
  }

  showSegment(place) {
    const segment = this.data.segments[place];
    this.mark(place);
    const detail = [
      Panel.make("h3", { tone: this.hooks.tone(place) }, Panel.make("span", { class: "swatch" }), segment.name),
      this.facts([
        ["Nodes", [segment.nodes.length.toLocaleString("en")]],
        ["Multiply-adds", segment.multiplyAdds
          ? [`${segment.multiplyAdds.toLocaleString("en")} (${this.share(segment.multiplyAdds)})`] : []],
        ["Takes", this.values(segment.inputs)],
        ["Gives", this.values(segment.outputs)],
      ]),
    ];
    this.show(detail, [this.list(segment.nodes.map((number) => this.row(number)))]);
    this.open("selection");
  }

  // ``row`` is the list's row that was chosen: the list stays, to choose the next one from.
  showNode(number, row) {
    const node = this.data.nodes[number], { segments, reasons, nodes } = this.data;
    const link = (text, click) => Panel.make("button", { type: "button", class: "link", click }, text);
    const home = node.segment >= 0
      ? link(segments[node.segment].name, () => this.hooks.pickSegment(node.segment))
      : "none: computed beforehand, merged into several others, or without effect";
    this.mark(node.segment);
    for (const other of document.querySelectorAll("#list .row")) other.setAttribute("aria-current", String(other === row));
    const detail = [
      Panel.make("h3", { tone: this.hooks.tone(node.segment) }, Panel.make("span", { class: "swatch" }), node.op),
      this.facts([
        ["Name", node.name ? [node.name] : []],
        ["Segment", [home]],
        ["Merged into", node.into >= 0
          ? [link(`${nodes[node.into].op} ${this.title(node.into)}`, () => this.hooks.pickNode(node.into))] : []],
        ["Native because", node.reason >= 0 ? [reasons[node.reason]] : []],
        ["Reads", this.values(node.inputs)],
        ["Makes", this.values(node.outputs)],
      ]),
    ];
    this.show(detail, [], Boolean(row));
    this.open("selection");
  }

  search(text) {
    const { nodes, values } = this.data, wanted = text.toLowerCase();
    const found = nodes.flatMap((node, number) => {
      const words = [node.name, node.op, ...node.outputs.map((place) => values[place][0])];
      return words.some((word) => word.toLowerCase().includes(wanted)) ? [number] : [];
    });
    const shown = found.slice(0, Panel.MOST_FOUND);
    const more = found.length - shown.length;
    const count = `${this.counted(found.length, "node")} found` + (more ? `, the first ${shown.length} shown` : "");
    this.show([], [
      Panel.make("p", { class: "soft", id: "found" }, count), this.list(shown.map((number) => this.row(number))),
    ]);
    this.open("selection");
    return found;
  }
}
