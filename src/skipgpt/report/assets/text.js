/* The text: every token shaded by how much of the model it ran, and steps from token to token. */

class TextView {
  constructor(root, scale, data, decisions, onSelect) {
    Object.assign(this, { root, scale, data, decisions, onSelect, selected: 0 });
    this.tokens = [];
    this.build();
    root.addEventListener("keydown", (event) => this.step(event));
    root.addEventListener("focusin", (event) => this.pick(event.target));
    root.addEventListener("mouseover", (event) => this.pick(event.target));
    root.addEventListener("click", (event) => event.target.focus({ preventScroll: true }));
  }

  build() {
    const { pieces, row } = this.data.text;
    const rows = row.length ? row[row.length - 1] + 1 : 0;
    const parts = document.createDocumentFragment();
    let line = null;
    pieces.forEach((piece, number) => {
      if (number === 0 || row[number] !== row[number - 1]) {
        line = element("div", { class: "row", role: "group", "aria-label": `row ${row[number] + 1}` });
        if (rows > 1) line.dataset.row = `row ${row[number] + 1}`;
        parts.append(line);
      }
      const token = document.createElement("span");
      token.setAttribute("role", "option");
      token.setAttribute("aria-selected", "false");
      token.tabIndex = -1;
      token.textContent = visible(piece);
      token.number = number;
      if (piece === "") token.dataset.empty = "";
      if (piece.includes("\n")) token.dataset.line = "";
      line.append(token);
      this.tokens.push(token);
    });
    this.root.replaceChildren(parts);
    if (this.tokens.length) this.tokens[0].tabIndex = 0;
  }

  draw(stop) {
    const { ran } = this.decisions.at(stop);
    const ends = range(ran);
    this.tokens.forEach((token, number) => (token.className = `q${shade(ran[number], ends)}`));
    const steps = Array.from({ length: SHADES + 1 }, (_, n) => element("i", { class: `q${n}` }));
    const [low, high] = ends;
    this.scale.replaceChildren(
      low === high ? `every token ran ${low}` : `ran ${low} or fewer`,
      element("span", { class: "steps", "aria-hidden": "true" }, ...steps),
      low === high ? "" : `${high} or more`,
      ` of ${this.decisions.modules} modules`,
    );
  }

  pick(target) {
    if (target.number !== undefined && target.getAttribute("role") === "option")
      this.select(target.number);
  }

  select(number) {
    if (!this.tokens.length) return;
    const before = this.tokens[this.selected];
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
    this.selected = number;
    const token = this.tokens[number];
    token.tabIndex = 0;
    token.setAttribute("aria-selected", "true");
    this.onSelect(number);
  }

  focus(number) {
    this.select(number);
    this.tokens[number].focus({ preventScroll: true });
    this.tokens[number].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  step(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.tokens.length - 1;
    const to = {
      ArrowLeft: () => this.selected - 1,
      ArrowRight: () => this.selected + 1,
      ArrowUp: () => this.onLine(-1),
      ArrowDown: () => this.onLine(1),
      Home: () => 0,
      End: () => last,
    }[event.key];
    if (!to) return;
    event.preventDefault();
    this.focus(Math.max(0, Math.min(last, to())));
  }

  /* The token of the line above (-1) or below (1) that lies nearest. */
  onLine(way) {
    const box = (number) => this.tokens[number].getBoundingClientRect();
    const here = box(this.selected);
    let best = this.selected;
    let distance = Infinity;
    let line = null;
    for (let n = this.selected + way; n >= 0 && n < this.tokens.length; n += way) {
      const there = box(n);
      if (way * (there.top - here.top) < here.height / 2) continue;
      if (line === null) line = there.top;
      if (Math.abs(there.top - line) > here.height / 2) break;
      const away = Math.abs(there.left - here.left);
      if (away < distance) [best, distance] = [n, away];
    }
    return best;
  }
}
