/* Layers by tokens on a canvas. A column holds as many tokens as do not fit by themselves. */

const LEFT = 24; // layer numbers
const ABOVE = 3; // half of the first of them
const RIGHT = 60; // share of tokens of each layer

class MapView {
  constructor(canvas, kind, decisions, onSelect) {
    Object.assign(this, { canvas, kind, decisions, onSelect });
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / this.plot;
      if (share >= 0 && share < 1) onSelect(Math.floor(share * decisions.tokens), event.type);
    };
    canvas.addEventListener("mousemove", at);
    canvas.addEventListener("click", at);
  }

  draw(stop, selected) {
    const { layers, tokens } = this.decisions;
    const density = window.devicePixelRatio || 1;
    this.width = this.canvas.parentElement.clientWidth;
    this.plot = this.width - LEFT - RIGHT;
    const high = layers > 40 ? 4 : layers > 20 ? 7 : 12;
    const below = 8 + ABOVE;
    this.canvas.width = Math.round(this.width * density);
    this.canvas.height = Math.round((layers * high + below) * density);
    this.canvas.style.height = `${layers * high + below}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(density, density);
    pen.translate(LEFT, ABOVE);
    const style = getComputedStyle(this.canvas);
    const [ink, none, colour] = ["--ink", "--none", this.kind ? "--mlp" : "--attn"].map((name) =>
      style.getPropertyValue(name),
    );
    const { bits } = this.decisions.at(stop);
    const columns = Math.min(tokens, Math.floor(this.plot));
    const wide = this.plot / columns;
    const gap = high > 4 ? 1 : 0;
    const every = high > 9 ? 1 : high > 4 ? 2 : 4;
    pen.font = `10px ${style.fontFamily}`;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const shares = [];
    for (let layer = 0; layer < layers; layer++) {
      const start = (2 * layer + this.kind) * tokens;
      let all = 0;
      pen.fillStyle = none;
      pen.fillRect(0, layer * high, this.plot, high - gap);
      pen.fillStyle = colour;
      for (let column = 0; column < columns; column++) {
        const from = Math.floor((column * tokens) / columns);
        const to = Math.max(from + 1, Math.floor(((column + 1) * tokens) / columns));
        let kept = 0;
        for (let token = from; token < to; token++) kept += bits[start + token];
        all += kept;
        if (!kept) continue;
        pen.globalAlpha = kept / (to - from);
        pen.fillRect(column * wide, layer * high, wide + (wide < 3 ? 0.5 : -0.5), high - gap);
      }
      shares.push(Math.round((100 * all) / tokens));
      pen.globalAlpha = 1;
      if (layer % every === 0) {
        pen.fillStyle = ink;
        pen.fillText(layer + 1, -6, layer * high + (high - gap) / 2);
        pen.fillStyle = colour;
      }
      pen.strokeStyle = none;
      pen.strokeRect(this.plot + 8.5, layer * high + 0.5, 47, high - gap - 1);
      pen.fillRect(this.plot + 8, layer * high, (48 * all) / tokens, high - gap);
    }
    pen.fillStyle = ink;
    const x = ((selected + 0.5) / tokens) * this.plot;
    pen.beginPath(); // an arrow below, and a hair line through
    pen.moveTo(x, layers * high);
    pen.lineTo(x - 4, layers * high + 8);
    pen.lineTo(x + 4, layers * high + 8);
    pen.fill();
    pen.globalAlpha = 0.6;
    pen.fillRect(x - 0.5, 0, 1, layers * high);
    pen.globalAlpha = 1;
    const said = `Share of tokens that run ${this.kind ? "the MLP" : "attention"}, in per cent, by layer`;
    this.canvas.setAttribute("aria-label", `${said}: ${shares.join(", ")}`);
    return tokens / columns;
  }
}
