// Wires the two drawings, the panel, the strip of segments and the keyboard together.
(() => {
  const TONES = 8;
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement, tip = document.getElementById("tip"), search = document.getElementById("search");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let colours = null, segment = -1;

  let tensorrt = 0;
  const toneNames = data.segments.map(({ kind }) => (kind === "native" ? "--native" : `--s${tensorrt++ % TONES}`));
  const toneName = (place) => (place >= 0 ? toneNames[place] : "--folded");
  const toneOf = (place) => `var(${toneName(place)})`;

  function setTheme(name) {
    root.dataset.theme = name;
    const style = getComputedStyle(root), read = (key) => style.getPropertyValue(key).trim();
    colours = { font: read("--font"), tones: {} };
    for (const key of ["ink", "soft", "edge", "box", "accent"]) colours[key] = read(`--${key}`);
    for (const key of ["--native", "--folded", "--io", ...toneNames]) colours.tones[key] = read(key);
    for (const view of Object.values(views)) view.draw();
  }

  function tone(box) {
    if (box.kind === "input" || box.kind === "output") return { colour: colours.tones["--io"], isNative: false };
    const name = toneName(box.segment);
    return { colour: colours.tones[name], isNative: name === "--native" };
  }

  function describe(box) {
    if (box.kind === "input" || box.kind === "output") return `${box.kind} ${box.label}\n${box.detail}`;
    if (box.kind === "segment") return `${box.label}\n${box.detail}`;
    const node = data.nodes[box.node], reason = node.reason >= 0 ? `\n${data.reasons[node.reason]}` : "";
    const home = box.segment >= 0 ? data.segments[box.segment].name : "not in the cleaned network";
    return `${node.op}  ${node.name}\n${box.detail || "shape unknown"}\n${home}${reason}`;
  }

  const views = {};
  for (const name of ["original", "transformed"]) {
    const tools = document.querySelector(`.tools[data-view="${name}"]`), output = document.createElement("output");
    const graph = data[name];
    const view = new View(document.getElementById(name), graph, {
      colours: () => colours,
      tone,
      pick(index) {
        const box = graph.boxes[index];
        if (!box || box.kind === "input" || box.kind === "output") clear();
        else if (box.kind === "segment") pickSegment(box.segment, name);
        else pickNode(box.node, name);
      },
      hover(index, event) {
        tip.hidden = index < 0;
        if (index < 0) return;
        tip.textContent = describe(graph.boxes[index]);
        const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
        const y = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8);
        tip.style.transform = `translate(${Math.max(0, x)}px, ${Math.max(0, y)}px)`;
      },
      painted(scale) {
        output.value = `${(100 * scale).toFixed(scale < 0.1 ? 1 : 0)}%`;
        if (!root.dataset.firstDrawingMs) root.dataset.firstDrawingMs = performance.now().toFixed(0);
      },
    });
    views[name] = view;
    const button = (text, label, click) =>
      Panel.make("button", { type: "button", title: label, "aria-label": `${label}: ${name} network`, click }, text);
    tools.append(
      output, button("−", "Zoom out", () => view.zoom(0.8)), button("+", "Zoom in", () => view.zoom(1.25)),
      button("Fit", "Fit", () => view.fit()),
    );
  }

  const indicesOf = (graph, test) => graph.boxes.flatMap((box, index) => (test(box) ? [index] : []));

  // ``from`` is the view that was clicked: it stays where it is, the other one shows what was chosen.
  function select(place, number, from) {
    segment = place;
    for (const [name, view] of Object.entries(views)) {
      const mine = place < 0 ? [] : indicesOf(view.graph, (box) => box.segment === place);
      const exact = number < 0 ? -1 : view.graph.boxes.findIndex((box) => box.kind === "node" && box.node === number);
      view.lit = place < 0 ? null : new Set(mine);
      view.chosen = exact >= 0 ? exact : mine.length === 1 ? mine[0] : -1;
      if (name !== from && (exact >= 0 || mine.length)) view.show(exact >= 0 ? [exact] : mine);
      view.draw();
    }
    for (const part of document.getElementById("strip").children) {
      part.setAttribute("aria-pressed", String(Number(part.dataset.segment) === place));
    }
  }

  function pickSegment(place, from) {
    select(place, -1, from);
    panel.showSegment(place);
  }

  function pickNode(number, from, row) {
    const { segment: place, into } = data.nodes[number];
    const isDrawn = indicesOf(data.original, (box) => box.node === number).length;
    // What was merged into another node is drawn on the left only, and the other way round.
    const twin = isDrawn ? number : data.nodes.findIndex((node) => node.into === number);
    select(place, from ? number : twin >= 0 ? twin : number, from);
    const home = into < 0 ? -1 : data.transformed.boxes.findIndex((box) => box.node === into);
    if (home >= 0) views.transformed.chosen = home;
    panel.showNode(number, row);
  }

  function clear() {
    select(-1, -1, null);
    panel.showNothing();
  }

  const panel = new Panel(data, { tone: toneOf, pickSegment, pickNode });

  const { leftOut } = data.original;
  if (leftOut) {
    const note = Panel.make("span", { class: "note" }, ` without ${panel.counted(leftOut, "node")} computed beforehand or without effect`);
    document.getElementById("original-title").append(note);
  }

  document.getElementById("strip").append(...data.segments.map(({ name, nodes }, place) => {
    const label = `${name}: ${panel.counted(nodes.length, "node")}`;
    const part = Panel.make("button", {
      type: "button", title: label, "aria-label": label, "aria-pressed": "false", "data-segment": place,
      tone: toneOf(place), click: () => pickSegment(place),
    });
    part.style.flexGrow = String(nodes.length);
    return part;
  }));

  const legend = data.segments.flatMap(({ kind, name }, place) => (kind === "tensorrt" ? [[toneOf(place), name]] : []));
  if (legend.length > TONES) legend.splice(TONES, Infinity, ["transparent", "…"]);
  if (toneNames.includes("--native")) legend.push(["var(--native)", "native (dashed)"]);
  if (data.original.boxes.some((box) => box.node >= 0 && box.segment < 0)) {
    legend.push(["var(--folded)", "merged into others"]);
  }
  legend.push(["var(--io)", "inputs and outputs"]);
  document.getElementById("legend").append(...legend.map(([colour, text]) =>
    Panel.make("li", { tone: colour }, Panel.make("span", { class: "swatch" }), text)));

  search.addEventListener("input", () => {
    if (search.value.trim()) panel.search(search.value.trim());
    else panel.showNothing();
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !search.value.trim()) return;
    const [first] = panel.search(search.value.trim());
    if (first !== undefined) pickNode(first, null, panel.rows[0]);
  });
  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      search.value = "";
      clear();
    } else if (event.target !== search && data.segments.length && (event.key === "n" || event.key === "p")) {
      const count = data.segments.length, step = event.key === "n" ? 1 : -1;
      pickSegment(segment < 0 && step < 0 ? count - 1 : (segment + step + count) % count);
    } else if (event.target !== search && event.key === "t") document.getElementById("theme").click();
    else if (event.target !== search && event.key === "/") {
      event.preventDefault();
      search.focus();
    }
  });
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  setTheme(dark.matches ? "dark" : "light");
})();
