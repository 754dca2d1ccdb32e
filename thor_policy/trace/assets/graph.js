// The page of `thorpolicy graph export --format html`: draws the graph, filters it, shows what was clicked.
// Every text from the journal reaches the page as the text of an element or of a label, never as markup.
"use strict";
(function () {
  const LAYERED_MOST = 1500; // dagre takes minutes for more
  const UNSHOWN = ["seq", "recorded", "stated", "stated_status"];
  const COLOURS = {
    goal: "#2b6cb0", option: "#6b46c1", decision: "#b7791f", action: "#2f855a", observation: "#4a5568",
    outcome: "#285e61", revisit: "#97266d", actor: "#702459", policy_version: "#744210", entity: "#2c5282",
    event: "#9b2c2c", source_data: "#276749",
  };
  const SHAPES = { goal: "round-rectangle", decision: "diamond", option: "rhomboid", outcome: "ellipse", actor: "hexagon" };
  const graph = JSON.parse(document.getElementById("graph").textContent);
  const byId = (id) => document.getElementById(id);

  function element(name, text) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function clipped(text, most) {
    return text.length <= most ? text : text.slice(0, most - 1) + "\u2026";
  }

  // ---------------------------------------------------------------- drawing
  const incoming = new Map();
  for (const edge of graph.edges) incoming.set(edge.target, (incoming.get(edge.target) || 0) + 1);
  const size = (id) => 24 + 10 * Math.sqrt(incoming.get(id) || 0);
  const elements = [];
  graph.items.forEach((item, number) => {
    elements.push({
      data: {
        id: "n" + number, number: number, type: item.type, status: item.status, size: Math.min(120, size(item.id)),
        label: clipped(item.title === null ? "(erased)" : item.title, 40), colour: COLOURS[item.type] || "#4a5568",
        shape: SHAPES[item.type] || "rectangle",
      },
      classes: item.status === "active" || item.status === "pending" ? "" : "ended",
    });
  });
  const numbers = new Map(graph.items.map((item, number) => [item.id, "n" + number]));
  graph.edges.forEach((edge, number) => {
    elements.push({
      data: {
        id: "e" + number, edge: number, source: numbers.get(edge.source), target: numbers.get(edge.target),
        label: edge.type,
      },
    });
  });
  const cy = cytoscape({
    container: byId("drawing"),
    elements: elements,
    minZoom: 0.02, maxZoom: 4, wheelSensitivity: 1,
    style: [
      { selector: "node", style: {
        "background-color": "data(colour)", shape: "data(shape)", width: "data(size)", height: "data(size)",
        label: "data(label)", "font-size": 11, "text-wrap": "wrap", "text-max-width": 110, "text-valign": "bottom",
        "text-margin-y": 4, color: "#1a202c", "text-background-color": "#fff", "text-background-opacity": 0.85,
        "text-background-padding": 2, "min-zoomed-font-size": 6,
      } },
      { selector: "node.ended", style: { opacity: 0.55, "border-width": 2, "border-style": "dashed", "border-color": "#1a202c" } },
      { selector: "edge", style: {
        width: 1.4, "line-color": "#a0aec0", "target-arrow-color": "#a0aec0", "target-arrow-shape": "triangle",
        "curve-style": "bezier", label: "data(label)", "font-size": 9, color: "#4a5568", "text-rotation": "autorotate",
        "text-background-color": "#fff", "text-background-opacity": 0.8, "min-zoomed-font-size": 8,
      } },
      { selector: ":selected", style: { "border-width": 4, "border-color": "#e53e3e", "line-color": "#e53e3e", "target-arrow-color": "#e53e3e" } },
      { selector: ".hidden", style: { display: "none" } },
    ],
    layout: { name: "null" },
  });

  function arrange() {
    const shown = cy.elements().not(".hidden");
    const name = shown.nodes().length <= LAYERED_MOST ? "dagre" : "grid";
    shown.layout({ name: name, rankDir: "TB", nodeSep: 60, rankSep: 70, animate: false, fit: true, padding: 30 }).run();
  }

  // ---------------------------------------------------------------- filters
  const hidden = { type: new Set(), status: new Set() };
  const search = byId("search");

  function filter() {
    const words = search.value.toLowerCase();
    let count = 0;
    cy.batch(() => {
      cy.nodes().forEach((node) => {
        const item = graph.items[node.data("number")];
        const text = ((item.title || "") + " " + item.id).toLowerCase();
        const off = hidden.type.has(item.type) || hidden.status.has(item.status) || !text.includes(words);
        node.toggleClass("hidden", off);
        count += off ? 0 : 1;
      });
    });
    byId("count").textContent = count + " of " + graph.items.length + " nodes";
  }

  function boxes(name) {
    const counts = new Map();
    for (const item of graph.items) counts.set(item[name], (counts.get(item[name]) || 0) + 1);
    for (const [value, count] of [...counts].sort()) {
      const label = element("label");
      const box = element("input");
      box.type = "checkbox";
      box.checked = true;
      box.dataset.value = value;
      box.addEventListener("change", () => {
        if (box.checked) hidden[name].delete(value);
        else hidden[name].add(value);
        filter();
      });
      label.append(box);
      if (name === "type") {
        const swatch = element("span");
        swatch.className = "swatch";
        swatch.style.background = COLOURS[value] || "#4a5568";
        label.append(swatch);
      }
      label.append(element("span", value + " (" + count + ")"));
      byId(name).append(label);
    }
  }

  // ---------------------------------------------------------------- properties
  function show(record, links) {
    const box = byId("properties");
    box.replaceChildren();
    const list = element("dl");
    for (const [name, value] of Object.entries(record)) {
      if (value === null || value === undefined || UNSHOWN.includes(name)) continue;
      list.append(element("dt", name));
      list.append(element("dd", typeof value === "object" ? JSON.stringify(value, null, 1) : String(value)));
    }
    box.append(list);
    if (links.length) box.append(element("h3", "links"));
    const items = element("ul");
    for (const line of links.slice(0, 100)) items.append(element("li", line));
    box.append(items);
  }

  function title(id) {
    const number = numbers.get(id);
    const item = number === undefined ? null : graph.items[Number(number.slice(1))];
    return item === null ? id : item.type + ": " + (item.title === null ? "(erased)" : item.title);
  }

  cy.on("tap", "node", (event) => {
    const item = graph.items[event.target.data("number")];
    const links = graph.edges
      .filter((edge) => edge.source === item.id || edge.target === item.id)
      .map((edge) => (edge.source === item.id ? edge.type + " \u2192 " + title(edge.target) : edge.type + " \u2190 " + title(edge.source)));
    show(item, links);
  });
  cy.on("tap", "edge", (event) => {
    const edge = graph.edges[event.target.data("edge")];
    show(edge, [title(edge.source), title(edge.target)]);
  });
  cy.on("tap", (event) => {
    if (event.target === cy) byId("properties").replaceChildren(element("p", "Click a node or a link."));
  });

  // ---------------------------------------------------------------- begin
  boxes("type");
  boxes("status");
  search.addEventListener("input", filter);
  byId("arrange").addEventListener("click", arrange);
  byId("fit").addEventListener("click", () => cy.fit(cy.elements().not(".hidden"), 30));
  if (graph.cut) byId("cut").hidden = false;
  filter();
  arrange();
  globalThis.graphView = cy; // for the console of the browser
})();
