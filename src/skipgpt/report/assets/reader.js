/* The text, its maps, its token and its dial, kept in step; one for each checkpoint of the page. */

/* What a share of each budget is a share of. */
const NOUNS = { modules: "modules", flops: "FLOPs", time: "time" };

class Reader {
  constructor(root) {
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    const find = (name) => root.querySelector(`[data-${name}]`);
    this.root = root;
    this.data = data;
    this.stop = data.at;
    this.number = 0;
    this.decisions = new Decisions(data);
    this.token = new TokenView(find("token"), data, this.decisions);
    this.text = new TextView(find("text"), find("scale"), data, this.decisions, (n) => this.select(n));
    this.maps = [0, 1].map((kind) =>
      new MapView(find(`map='${kind ? "mlp" : "attn"}'`), kind, this.decisions, (n, how) =>
        how === "click" ? this.text.focus(n) : this.text.select(n),
      ),
    );
    this.dial = find("dial");
    this.said = find("stop");
    this.grain = find("grain");
    if (this.dial) {
      this.dial.value = this.stop;
      this.dial.addEventListener("input", () => this.turn(Number(this.dial.value)));
    }
    for (const dot of root.querySelectorAll(".dot[data-stop]"))
      dot.addEventListener("click", () => this.turn(Number(dot.dataset.stop)));
    this.turn(this.stop);
  }

  turn(stop) {
    this.stop = stop;
    const { asked, nll_per_token, sparsity } = this.data.dial[stop];
    this.text.draw(stop);
    this.select(this.number);
    for (const now of this.root.querySelectorAll(".now")) {
      const dot = now.parentNode.querySelector(`.dot[data-stop='${stop}']`);
      if (dot) for (const at of ["cx", "cy"]) now.setAttribute(at, dot.getAttribute(at));
    }
    if (!this.dial) return;
    const excess = nll_per_token - this.data.dense.nll_per_token;
    const own = stop === this.data.at ? ", the checkpoint’s own setting" : "";
    this.dial.value = stop;
    const unit = NOUNS[this.data.budget];
    this.dial.setAttribute("aria-valuetext", `${percent(asked)} of ${unit} asked, ${percent(sparsity.module)} of modules skipped, ${nll_per_token.toFixed(3)} nats per token${own}`);
    const value = (key, shown) => element("b", { "data-value": key }, shown);
    this.said.replaceChildren(
      element("span", {}, value("asked", percent(asked)), ` of ${unit} asked`),
      element("span", {}, value("module", percent(sparsity.module)), " of modules skipped"),
      element("span", {}, value("nll_per_token", nll_per_token.toFixed(3)), " nats per token, ",
        value("excess", signed(excess)), " over dense"),
    );
  }

  select(number) {
    this.number = number;
    if (!this.data.text.shown) return;
    this.token.draw(this.stop, number);
    this.drawMaps();
  }

  drawMaps() {
    const grains = this.maps.map((map) => map.draw(this.stop, this.number));
    this.grain.textContent = grains[0] > 1
      ? `A column stands for about ${Math.round(grains[0])} tokens; the fuller its colour, the more of them run the layer.`
      : "";
  }
}

const readers = [...document.querySelectorAll("[data-reader]")].map((root) => new Reader(root));
const redraw = () => readers.forEach((reader) => reader.data.text.shown && reader.drawMaps());
window.addEventListener("resize", redraw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((each) => (each.open = true));
});
