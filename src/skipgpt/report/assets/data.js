/* What the page carries: decisions as packed bits, bit i of the flat [layer, module, token]. */

function unpacked(packed, count) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const bits = new Uint8Array(count);
  for (let i = 0; i < count; i++) bits[i] = (bytes[i >> 3] >> (i & 7)) & 1;
  return bits;
}

class Decisions {
  constructor(data) {
    this.layers = data.layers;
    this.tokens = data.text.shown;
    this.modules = 2 * data.layers;
    this.packed = data.dial.map((stop) => stop.keep);
    this.known = [];
  }

  /* One stop: its bits, and how many modules each token ran. */
  at(stop) {
    if (!this.known[stop]) {
      const bits = unpacked(this.packed[stop], this.modules * this.tokens);
      const ran = new Uint16Array(this.tokens);
      for (let module = 0, i = 0; module < this.modules; module++)
        for (let token = 0; token < this.tokens; token++, i++) ran[token] += bits[i];
      this.known[stop] = { bits, ran };
    }
    return this.known[stop];
  }

  kept(stop, layer, kind, token) {
    return this.at(stop).bits[(2 * layer + kind) * this.tokens + token] === 1;
  }

  /* Layers, counted from 1, in which a token runs attention (0) or the MLP (1). */
  layersOf(stop, kind, token) {
    const found = [];
    for (let layer = 0; layer < this.layers; layer++)
      if (this.kept(stop, layer, kind, token)) found.push(layer + 1);
    return found;
  }
}

/* The numbers of modules that the palest and the strongest shade stand for: all but the outermost
   fiftieth of the tokens lie between them, so that a few do not wash out the rest. */
function range(ran) {
  const ordered = Uint16Array.from(ran).sort();
  const at = (share) => ordered[Math.round(share * (ordered.length - 1))];
  return [at(0.02), at(0.98)];
}

const SHADES = 10;

function shade(ran, [low, high]) {
  if (high === low) return SHADES / 2;
  return Math.round((SHADES * (Math.min(high, Math.max(low, ran)) - low)) / (high - low));
}

/* 1, 2, 3, 7 as "1–3, 7". */
function listed(numbers) {
  const runs = [];
  for (const number of numbers) {
    const last = runs[runs.length - 1];
    if (last && last[1] === number - 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : b === a + 1 ? `${a}, ${b}` : `${a}–${b}`)).join(", ");
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

/* Characters that would not be seen, or would turn the text around them, as pictures. */
function visible(piece) {
  return piece.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (control) =>
    control === "\u007f" ? "␡" : String.fromCharCode(0x2400 + control.charCodeAt(0)),
  ).replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, "�");
}

/* A token by itself: white space is seen as well. */
function shown(piece) {
  if (piece === "") return "(part of a character)";
  return visible(piece).replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "→");
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
