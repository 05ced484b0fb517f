/* One token: its column of modules, and how unexpected it was. */

class TokenView {
  constructor(root, data, decisions) {
    Object.assign(this, { root, data, decisions });
  }

  draw(stop, number) {
    const { pieces, row, surprisal } = this.data.text;
    const { modules } = this.decisions;
    const ran = this.decisions.at(stop).ran[number];
    const place = number - row.indexOf(row[number]) + 1;
    const rows = row[row.length - 1] + 1;
    const told = surprisal[number];
    this.root.replaceChildren(
      element("p", { class: "piece" }, element("code", {}, shown(pieces[number]))),
      element("p", { class: "place" }, rows > 1 ? `row ${row[number] + 1}, token ${place}` : `token ${place}`),
      element("dl", {},
        ...this.fact("ran", `${ran} of ${modules} modules`, "ran"),
        ...this.fact("surprisal", told === null ? "none: first of its row" : `${told.toFixed(3)} nats`, "surprisal"),
      ),
      this.column(stop, number),
      ...this.sentences(stop, number),
    );
  }

  fact(name, value, key) {
    return [element("dt", {}, name), element("dd", { "data-value": key }, value)];
  }

  /* A cell a layer, attention above the MLP; filled where it ran. */
  column(stop, number) {
    const cells = element("div", { class: "column", "aria-hidden": "true" });
    cells.style.setProperty("--layers", this.decisions.layers);
    ["attn", "mlp"].forEach((kind, m) => {
      for (let layer = 0; layer < this.decisions.layers; layer++) {
        const kept = this.decisions.kept(stop, layer, m, number);
        cells.append(element("i", { class: `${kind} ${kept ? "kept" : "skipped"}` }));
      }
    });
    return cells;
  }

  sentences(stop, number) {
    return ["attention", "MLP"].map((name, kind) => {
      const layers = this.decisions.layersOf(stop, kind, number);
      const said = layers.length ? `in layers ${listed(layers)}` : "in no layer";
      return element("p", { class: kind ? "mlp" : "attn" }, `${name} ${said}`);
    });
  }
}
