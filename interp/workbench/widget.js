// The page of a workbench. It draws what Python sends and sends what is clicked; while nothing is
// clicked it asks for one piece of work after the other. All state is in Python.

const ORANGE = [213, 94, 0]; // of Okabe and Ito, told apart by colour-blind readers, too
const BLUE = [0, 114, 178];
const MAP_HEIGHT = 430; // pixels that the map may fill before it scrolls
const LABEL_WIDTH = 46;
const BAND_GAP = 2;
const LEAST_BAND = 12; // pixels: the height of a block's button
const LARGEST_CELL = 16;
const DEBOUNCE = 80; // milliseconds

// ---------------------------------------------------------------------------------------------
// Small helpers

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function options(select, choices, chosen) {
  const same =
    select.options.length === Object.keys(choices).length &&
    [...select.options].every((option) => choices[option.value] === option.textContent);
  if (!same) {
    select.replaceChildren(
      ...Object.entries(choices).map(([value, text]) => make("option", { value, text })),
    );
  }
  select.value = chosen;
}

function labelled(text, control) {
  return make("label", {}, make("span", { text }), control);
}

function rgba([red, green, blue], strength) {
  return `rgba(${red}, ${green}, ${blue}, ${strength.toFixed(3)})`;
}

function short(number) {
  if (number === 0) return "0";
  const size = Math.abs(number);
  return size >= 1e4 || size < 1e-2 ? number.toExponential(1) : number.toPrecision(3);
}

function fixed(number) {
  return (Math.abs(number) < 0.005 ? 0 : number).toFixed(2); // no -0.00
}

// Spaces that would be lost on a page, as marks.
function visible(text) {
  return text.replace(/\n/g, "↵").replace(/\t/g, "→");
}

function debounced(action) {
  let timer = null;
  let waiting = null;
  const act = () => {
    clearTimeout(timer);
    const given = waiting;
    waiting = null;
    if (given) action(...given);
  };
  const later = (...given) => {
    waiting = given;
    clearTimeout(timer);
    timer = setTimeout(act, DEBOUNCE);
  };
  later.flush = act;
  return later;
}

// Whether the notebook is dark: its text is light then, however it marks its theme.
function isDark(node) {
  const found = getComputedStyle(node).color.match(/[\d.]+/g);
  if (!found) return false; // not on the page yet: it is drawn again once it is
  const [red, green, blue] = found.map(Number);
  return 0.3 * red + 0.6 * green + 0.1 * blue > 128;
}

// ---------------------------------------------------------------------------------------------
// The map of units: every unit is a cell, every block a band of them.

class UnitMap {
  constructor(send, say) {
    this.send = send;
    this.say = say;
    this.canvas = make("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label":
        "Map of units. Arrow keys move, page keys go to another block, space switches a unit, " +
        "b its block.",
    });
    this.buttons = make("div", { class: "blocks" });
    this.frame = make("div", { class: "map" }, this.buttons, this.canvas);
    this.sites = [];
    this.scores = new Float32Array();
    this.selection = new Uint8Array();
    this.only = ""; // name of the one site that is shown; all by default
    this.drag = null;
    this.cursor = null;
    this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => this.end());
    canvas.addEventListener("pointercancel", () => this.end());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.draw());
    canvas.addEventListener("focus", () => this.draw());
  }

  // What Python sent. Selections that are being dragged stay as they are drawn.
  set(sites, scores, selection) {
    const changed = sites.map((site) => site.name).join() !== this.sites.map((s) => s.name).join();
    this.sites = sites;
    this.scores = scores;
    if (!this.drag) this.selection = selection;
    if (changed) {
      this.only = "";
      this.cursor = null;
      this.say("");
    }
    this.limit = this.largest();
    this.layOut();
    this.draw();
  }

  // The score of full colour: nearly the largest, so that one unit does not pale all others.
  largest() {
    if (!this.scores.length) return 1;
    const sizes = Float32Array.from(this.scores, Math.abs).sort();
    const high = sizes[Math.floor(0.999 * (sizes.length - 1))];
    return high || sizes[sizes.length - 1] || 1;
  }

  layOut() {
    const width = Math.max(200, (this.frame.clientWidth || 900) - LABEL_WIDTH - 4);
    const shown = [];
    let offset = 0;
    for (const site of this.sites) {
      if (!this.only || this.only === site.name) shown.push({ ...site, offset });
      offset += site.width;
    }
    const height = (cell) => {
      const columns = Math.floor(width / cell);
      return shown.reduce(
        (sum, site) =>
          sum + Math.max(LEAST_BAND, Math.ceil(site.width / columns) * cell) + BAND_GAP,
        0,
      );
    };
    let cell = LARGEST_CELL;
    while (cell > 2 && height(cell) > MAP_HEIGHT) cell -= 1;
    const columns = Math.floor(width / cell);
    let top = 0;
    this.bands = shown.map((site) => {
      const rows = Math.ceil(site.width / columns);
      const band = { ...site, top, rows, height: Math.max(LEAST_BAND, rows * cell) };
      top += band.height + BAND_GAP;
      return band;
    });
    this.cell = cell;
    this.columns = columns;
    this.canvas.width = width;
    this.canvas.height = Math.max(1, top);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${Math.max(1, top)}px`;
    this.layOutButtons(top);
  }

  layOutButtons(height) {
    this.buttons.style.height = `${height}px`;
    const names = this.bands.map((band) => band.name).join();
    if (this.buttons.dataset.names !== names) {
      this.buttons.dataset.names = names;
      this.buttons.replaceChildren(
        ...this.bands.map((band) => {
          const button = make("button", {
            type: "button",
            text: band.label,
            "aria-label": `block ${band.label}`,
            title: `switch all units of ${band.name}`,
          });
          button.addEventListener("click", () => this.toggleBand(button.dataset.name));
          button.dataset.name = band.name;
          return button;
        }),
      );
    }
    this.bands.forEach((band, number) => {
      const button = this.buttons.children[number];
      button.style.top = `${band.top}px`;
      button.style.height = `${band.height}px`;
    });
  }

  toggleBand(name) {
    const band = this.bands.find((each) => each.name === name);
    this.send({ do: "toggle", ranges: [[band.offset, band.offset + band.width]] });
  }

  draw() {
    if (!this.bands) return;
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const dark = this.frame.closest(".interp-workbench")?.dataset.theme === "dark";
    const empty = dark ? [58, 58, 58] : [228, 228, 228];
    const ink = dark ? 0xffffffff : 0xff000000;
    const side = this.cell > 3 ? this.cell - 1 : this.cell; // a gap where there is room for one
    for (const band of this.bands) {
      for (let unit = 0; unit < band.width; unit += 1) {
        const number = band.offset + unit;
        let colour = ink;
        if (!this.selection[number]) {
          const score = this.scores.length ? this.scores[number] / this.limit : 0;
          const strength = Math.sqrt(Math.min(1, Math.abs(score)));
          const full = score > 0 ? ORANGE : BLUE;
          const part = empty.map((value, axis) =>
            Math.round(value + strength * (full[axis] - value)),
          );
          colour = (255 << 24) | (part[2] << 16) | (part[1] << 8) | part[0];
        }
        const left = (unit % this.columns) * this.cell;
        const top = band.top + Math.floor(unit / this.columns) * this.cell;
        for (let y = top; y < top + side; y += 1) {
          pixels.fill(colour, y * width + left, y * width + left + side);
        }
      }
    }
    context.putImageData(image, 0, 0);
    this.drawMarks(context, dark);
    this.bands.forEach((band, number) => {
      let chosen = 0;
      for (let unit = 0; unit < band.width; unit += 1) chosen += this.selection[band.offset + unit];
      const pressed = chosen === band.width ? "true" : chosen ? "mixed" : "false";
      this.buttons.children[number].setAttribute("aria-pressed", pressed);
    });
  }

  drawMarks(context, dark) {
    context.strokeStyle = dark ? "#f0e442" : "#cc0066";
    context.lineWidth = 2;
    if (this.drag?.rectangle) {
      const { x, y, toX, toY } = this.drag;
      context.strokeRect(Math.min(x, toX), Math.min(y, toY), Math.abs(toX - x), Math.abs(toY - y));
    }
    if (this.cursor !== null && this.canvas.matches(":focus")) {
      const at = this.placeOf(this.cursor);
      if (at) context.strokeRect(at.left - 1, at.top - 1, this.cell + 1, this.cell + 1);
    }
  }

  placeOf(number) {
    for (const band of this.bands) {
      const unit = number - band.offset;
      if (unit < 0 || unit >= band.width) continue;
      return {
        band,
        unit,
        left: (unit % this.columns) * this.cell,
        top: band.top + Math.floor(unit / this.columns) * this.cell,
      };
    }
    return null;
  }

  // The number of the unit at a point of the canvas; -1 where there is none.
  at(x, y) {
    for (const band of this.bands) {
      if (y < band.top || y >= band.top + band.rows * this.cell) continue;
      const column = Math.floor(x / this.cell);
      const unit = Math.floor((y - band.top) / this.cell) * this.columns + column;
      return column >= 0 && column < this.columns && unit < band.width ? band.offset + unit : -1;
    }
    return -1;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    // A notebook may show its cells scaled.
    const scale = box.width / this.canvas.width || 1;
    return [(event.clientX - box.left) / scale, (event.clientY - box.top) / scale];
  }

  begin(event) {
    const [x, y] = this.point(event);
    const number = this.at(x, y);
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = number < 0 ? this.cursor : number;
    const rectangle = event.shiftKey || this.dragsRectangles;
    const on = number < 0 ? true : !this.selection[number];
    this.drag = { x, y, toX: x, toY: y, rectangle, on, painted: new Set(), moved: false };
    if (!rectangle) this.paintAt(number);
    this.draw();
  }

  move(event) {
    const [x, y] = this.point(event);
    this.describe(this.at(x, y));
    const { drag } = this;
    if (!drag) return;
    drag.moved = drag.moved || Math.hypot(x - drag.x, y - drag.y) > 2;
    if (!drag.rectangle) {
      // Between two events the pointer may cross several cells.
      const steps = Math.ceil(Math.hypot(x - drag.toX, y - drag.toY) / this.cell) || 1;
      for (let step = 1; step <= steps; step += 1) {
        const part = step / steps;
        this.paintAt(
          this.at(drag.toX + part * (x - drag.toX), drag.toY + part * (y - drag.toY)),
        );
      }
    }
    drag.toX = x;
    drag.toY = y;
    this.draw();
  }

  paintAt(number) {
    if (number < 0) return;
    this.drag.painted.add(number);
    this.selection[number] = this.drag.on ? 1 : 0;
  }

  end() {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    if (drag.rectangle && drag.moved) for (const unit of this.inside(drag)) drag.painted.add(unit);
    if (drag.rectangle && !drag.moved) {
      const number = this.at(drag.x, drag.y);
      if (number >= 0) drag.painted.add(number);
    }
    for (const number of drag.painted) this.selection[number] = drag.on ? 1 : 0;
    this.draw();
    if (drag.painted.size) {
      this.send({ do: "paint", ranges: asRanges([...drag.painted]), on: drag.on });
    }
  }

  inside({ x, y, toX, toY }) {
    const [left, right] = [Math.min(x, toX), Math.max(x, toX)];
    const [top, bottom] = [Math.min(y, toY), Math.max(y, toY)];
    const found = [];
    for (const band of this.bands) {
      for (let unit = 0; unit < band.width; unit += 1) {
        const cellLeft = (unit % this.columns) * this.cell;
        const cellTop = band.top + Math.floor(unit / this.columns) * this.cell;
        const overlaps =
          cellLeft < right &&
          cellLeft + this.cell > left &&
          cellTop < bottom &&
          cellTop + this.cell > top;
        if (overlaps) found.push(band.offset + unit);
      }
    }
    return found;
  }

  key(event) {
    if (!this.bands?.length || event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.cursor === null || !this.placeOf(this.cursor)) this.cursor = this.bands[0].offset;
    const { band, unit } = this.placeOf(this.cursor);
    const index = this.bands.indexOf(band);
    const within = (value) => band.offset + Math.min(band.width - 1, Math.max(0, value));
    const other = (step) => {
      const next = this.bands[Math.min(this.bands.length - 1, Math.max(0, index + step))];
      return next.offset + Math.min(unit, next.width - 1);
    };
    const moves = {
      ArrowLeft: () => within(unit - 1),
      ArrowRight: () => within(unit + 1),
      ArrowUp: () => (unit < this.columns ? other(-1) : within(unit - this.columns)),
      ArrowDown: () => (unit + this.columns >= band.width ? other(1) : within(unit + this.columns)),
      PageUp: () => other(-1),
      PageDown: () => other(1),
      Home: () => within(0),
      End: () => within(band.width - 1),
    };
    if (event.key in moves) this.cursor = moves[event.key]();
    else if (event.key === " " || event.key === "Enter") {
      this.send({ do: "toggle", ranges: [[this.cursor, this.cursor + 1]] });
    } else if (event.key === "b") this.toggleBand(band.name);
    else return;
    // Notebooks have shortcuts of one letter.
    event.preventDefault();
    event.stopPropagation();
    this.describe(this.cursor);
    this.draw();
  }

  describe(number) {
    const at = number < 0 ? null : this.placeOf(number);
    if (!at) return;
    const score = this.scores.length ? `, score ${short(this.scores[number])}` : "";
    const state = this.selection[number] ? ", selected" : "";
    this.say(`${at.band.name} ${at.unit}${score}${state}`);
  }
}

function asRanges(numbers) {
  numbers.sort((a, b) => a - b);
  const ranges = [];
  for (const number of numbers) {
    const last = ranges[ranges.length - 1];
    if (last && last[1] === number) last[1] = number + 1;
    else ranges.push([number, number + 1]);
  }
  return ranges;
}

// ---------------------------------------------------------------------------------------------
// The tokens of the passage

const COLOURS = {
  now: "probability now",
  before: "probability before",
  change: "change of log p",
  member: "membership score",
};

function tokenColour(token, by, limit) {
  if (by === "now" || by === "before") {
    const value = token[by];
    return value === undefined ? "" : rgba(ORANGE, 0.7 * Math.exp(value));
  }
  const value = by === "member" ? token.member : token.now - token.before;
  if (value === undefined || Number.isNaN(value)) return "";
  return rgba(value > 0 ? ORANGE : BLUE, 0.7 * Math.min(1, Math.abs(value) / limit));
}

function tokenLimit(tokens, by) {
  const values = tokens
    .map((token) => (by === "member" ? token.member : token.now - token.before))
    .filter((value) => Number.isFinite(value))
    .map(Math.abs);
  return Math.max(0.1, ...values);
}

function tokenKey(by, limit) {
  if (by === "now" || by === "before") {
    return "orange: the model gives the token this probability; full colour is 1";
  }
  const full = `full colour: ${limit.toFixed(1)} nats`;
  if (by === "member") {
    return `orange: predicted better than by the reference model, blue: worse; ${full}`;
  }
  return `blue: log p has fallen under the ablation, orange: risen; ${full}`;
}

// ---------------------------------------------------------------------------------------------
// The page

function render({ model, el }) {
  const root = make("div", { class: "interp-workbench" });
  el.append(root);
  const page = Math.random().toString(36).slice(2); // several pages may show one workbench
  let closed = false;
  let sent = 0;
  let done = 0; // number of the last message that was answered

  const status = make("span", { class: "status", role: "status", "aria-live": "polite" });
  const bar = make("progress", { max: "1", value: "0", "aria-label": "measuring" });
  const problem = make("div", { class: "error", role: "alert", hidden: true });
  const notice = make("div", { class: "notice", role: "status", hidden: true });
  const hint = make("div", { class: "hint", "aria-live": "polite" });

  function post(message) {
    sent += 1;
    model.send({ ...message, page, number: sent });
  }

  function send(message) {
    // What was asked for before it is not to come after it.
    if (message.do !== "top") sendTop.flush();
    post(message);
    status.textContent = "computing";
  }

  const button = (text, message, title = "") => {
    const node = make("button", { type: "button", text, title: title || false });
    node.addEventListener("click", () => send(typeof message === "function" ? message() : message));
    return node;
  };

  // The head
  const title = make("strong");
  const undo = button("Undo", { do: "undo" });
  const redo = button("Redo", { do: "redo" });
  const clear = button("Clear", { do: "clear" }, "select nothing");
  const measure = button("Measure", { do: "next" }, "go on measuring");
  const copy = make("button", { type: "button", text: "Copy as code" });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(model.get("code_text"));
      status.textContent = "copied";
      setTimeout(() => {
        if (status.textContent === "copied") status.textContent = "up to date";
      }, 2000);
    } catch {
      code.open = true; // pages that are not served safely may not write to the clipboard
      getSelection().selectAllChildren(codeText);
      status.textContent = "press Ctrl+C to copy";
    }
  });
  const head = make("div", { class: "bar head" }, title, undo, redo, clear, measure, copy, bar, status);

  // The passages and the tokens of one of them
  const passages = make("div", { class: "passages", role: "group", "aria-label": "passages" });
  const colourBy = make("select", { "aria-label": "colour of tokens" });
  colourBy.addEventListener("change", drawTokens);
  const tokens = make("div", { class: "tokens", "aria-label": "tokens of the passage" });
  const tokensKey = make("div", { class: "key" });
  const continuations = make("div", { class: "continuations" });
  const pictures = make("div", { class: "pictures" });
  const passage = make(
    "div",
    { class: "passage" },
    make("div", { class: "bar" }, labelled("Colour", colourBy)),
    tokens,
    tokensKey,
    continuations,
    pictures,
  );

  // Which units
  const point = make("select", { "aria-label": "units" });
  const method = make("select", { "aria-label": "method" });
  const askScores = () => send({ do: "method", method: method.value, point: point.value });
  point.addEventListener("change", askScores);
  method.addEventListener("change", askScores);
  const slider = make("input", {
    type: "range",
    min: "0",
    max: "1000",
    value: "0",
    "aria-label": "number of top units, as a slider",
  });
  const count = make("input", { type: "number", min: "0", "aria-label": "number of top units" });
  const sendTop = debounced((k) => send({ do: "top", k }));
  let total = 1;
  // Steps of the slider multiply the number: a tenth of a percent matters as much as a tenth.
  slider.addEventListener("input", () => {
    const position = Number(slider.value) / 1000;
    const k = position === 0 ? 0 : Math.round(total ** position);
    count.value = k;
    slider.setAttribute("aria-valuetext", `${k} units`);
    sendTop(k);
  });
  count.addEventListener("change", () => {
    const k = Math.min(total, Math.max(0, Math.round(Number(count.value) || 0)));
    sendTop(k);
  });
  const seed = make("input", { type: "number", value: "0", min: "0", "aria-label": "seed" });
  const controls = [
    ["random", "Random", "as many other units at each site, drawn at random"],
    ["lowest", "Lowest", "the units with the lowest scores"],
    ["as active", "As active", "other units that are about as active"],
  ].map(([name, text, help]) =>
    button(text, () => ({ do: "control", name, seed: Number(seed.value) || 0 }), help),
  );
  const only = make("select", { "aria-label": "blocks shown" });
  only.addEventListener("change", () => {
    map.only = only.value;
    map.layOut();
    map.draw();
  });
  const dragging = make("select", { "aria-label": "dragging" });
  options(dragging, { paint: "paints units", rectangle: "a rectangle" }, "paint");
  dragging.addEventListener("change", () => {
    map.dragsRectangles = dragging.value === "rectangle";
  });
  const choose = make(
    "div",
    { class: "bar" },
    labelled("Units", point),
    labelled("Scored by", method),
    labelled("Top", slider),
    count,
    make("span", { class: "label", text: "Same number:" }),
    ...controls,
    labelled("Seed", seed),
  );
  const look = make(
    "div",
    { class: "bar" },
    labelled("Show", only),
    labelled("Dragging selects", dragging),
    hint,
  );
  const map = new UnitMap(send, (text) => {
    hint.textContent = text;
  });
  const mapKey = make("div", { class: "key" });
  const chosen = make("div", { class: "chosen" });

  // What is done to them
  const kind = make("select", { "aria-label": "intervention" });
  const factor = make("input", { type: "number", step: "0.1", "aria-label": "factor" });
  const where = make("select", { "aria-label": "positions" });
  const when = make("select", { "aria-label": "when" });
  const treat = (changes) => send({ do: "treat", changes });
  kind.addEventListener("change", () => treat({ kind: kind.value }));
  factor.addEventListener("change", () => treat({ factor: Number(factor.value) }));
  where.addEventListener("change", () => treat({ where: where.value }));
  when.addEventListener("change", () => treat({ when: when.value }));
  const factorLabel = labelled("Factor", factor);
  const treatment = make(
    "div",
    { class: "bar" },
    labelled("Intervention", kind),
    factorLabel,
    labelled("Positions", where),
    labelled("When", when),
  );

  // What it does
  const results = make("table", { class: "results" });
  const note = make("div", { class: "key" });
  const triesTitle = make("h4", { text: "Tries, the newest first (loss in nats per token)" });
  const tries = make("table", { class: "tries" });
  const codeText = make("pre");
  const code = make("details", {}, make("summary", { text: "Code of the plan" }), codeText);

  root.append(
    head,
    problem,
    notice,
    make("div", { class: "columns" }, passages, passage),
    make("h4", { text: "Which units" }),
    choose,
    look,
    map.frame,
    mapKey,
    make("h4", { text: "What is done to them" }),
    treatment,
    chosen,
    make("h4", { text: "What that changes" }),
    make("div", { class: "scroll" }, results),
    note,
    triesTitle,
    make("div", { class: "scroll" }, tries),
    code,
  );

  // Shortcuts of notebooks must not run while somebody types here.
  root.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select");
    if (typing) event.stopPropagation();
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !typing) {
      event.preventDefault();
      event.stopPropagation();
      send({ do: event.shiftKey ? "redo" : "undo" });
    }
  });

  function drawTokens() {
    const view = model.get("view");
    const by = colourBy.value || "now";
    const limit = tokenLimit(view.tokens, by);
    const choosing = view.treatment.where === "chosen";
    const picked = new Set(view.treatment.tokens);
    tokens.replaceChildren(
      ...view.tokens.map((token, number) => {
        const facts = [`token ${number}`];
        if (token.before !== undefined) facts.push(`log p before ${fixed(token.before)}`);
        if (token.now !== undefined) facts.push(`now ${fixed(token.now)}`);
        if (token.member !== undefined) facts.push(`membership ${token.member.toFixed(2)}`);
        if (token.most !== undefined) facts.push(`most likely now ${JSON.stringify(token.most)}`);
        const node = make("span", {
          class: number < view.prompt ? "token prefix" : "token",
          text: token.piece.replace(/\n/g, "↵\n").replace(/\t/g, "→"),
          title: facts.join("; "),
        });
        node.style.background = tokenColour(token, by, limit);
        if (choosing) {
          node.setAttribute("role", "button");
          node.setAttribute("tabindex", "0");
          node.setAttribute("aria-pressed", picked.has(number));
          const toggle = () => {
            if (picked.has(number)) picked.delete(number);
            else picked.add(number);
            treat({ tokens: [...picked] });
          };
          node.addEventListener("click", toggle);
          node.addEventListener("keydown", (event) => {
            if (event.key !== " " && event.key !== "Enter") return;
            event.preventDefault();
            event.stopPropagation();
            toggle();
          });
        }
        return node;
      }),
    );
    const known = view.tokens.some((token) => token[by === "change" ? "now" : by] !== undefined);
    tokensKey.textContent = known ? `${tokenKey(by, limit)}; dotted: given to the model` : "";
    if (choosing) tokensKey.textContent += "; click the tokens at whose prediction to intervene";
  }

  function drawPassages(view) {
    const focused = passages.contains(root.getRootNode().activeElement);
    passages.replaceChildren(
      make("div", { class: "key", text: "share of the suffix predicted, before → now" }),
      ...view.passages.map((row) => {
        const before = row.before === undefined ? "" : row.before.toFixed(2);
        const now = row.now === undefined || !view.selected ? "" : ` → ${row.now.toFixed(2)}`;
        const node = make(
          "button",
          {
            type: "button",
            class: "row",
            "aria-pressed": row.number === view.passage ? "true" : "false",
            title: "share of the suffix that the model predicts, before and now",
          },
          make("span", { class: "text", text: row.text }),
          make("span", { class: "numbers", text: before + now }),
        );
        node.addEventListener("click", () => send({ do: "show", passage: row.number }));
        return node;
      }),
    );
    if (focused) passages.querySelector("[aria-pressed=true]")?.focus();
  }

  function drawContinuations(view) {
    continuations.replaceChildren();
    for (const [name, label] of [
      ["before", "Continues before"],
      ["now", "Continues now"],
    ]) {
      const runs = view.continuations[name];
      if (runs === null) continue;
      continuations.append(
        make(
          "div",
          { class: "continuation" },
          make("span", { class: "label", text: label }),
          make(
            "span",
            { class: "text" },
            ...runs.map((run) =>
              make(run.same ? "span" : "ins", {
                class: run.same ? "same" : "other",
                text: visible(run.text),
              }),
            ),
          ),
        ),
      );
    }
    if (continuations.children.length) {
      continuations.append(
        make("div", {
          class: "key",
          text: "orange: as in the passage; blue, underlined: something else",
        }),
      );
    }
  }

  function drawPictures(view) {
    pictures.replaceChildren(
      ...view.pictures.map((row) =>
        make(
          "figure",
          {},
          make(
            "div",
            {},
            ...row.images.map((data) =>
              make("img", { src: `data:image/png;base64,${data}`, alt: row.caption }),
            ),
          ),
          make("figcaption", { text: row.caption }),
        ),
      ),
    );
  }

  function drawTable(table, columns, rows) {
    table.replaceChildren(
      make(
        "thead",
        {},
        make("tr", {}, ...columns.map((text) => make("th", { scope: "col", text }))),
      ),
      make(
        "tbody",
        {},
        ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", { text })))),
      ),
    );
  }

  function drawMapKey(view) {
    const selected = root.dataset.theme === "dark" ? "white" : "black";
    if (!view.scored) {
      mapKey.textContent = `${selected}: selected; scores are not computed yet`;
      return;
    }
    const scale = make("span", { class: "scale" });
    // Methods that try the most promising units one by one give the others no score.
    const zeros = map.scores.reduce((sum, score) => sum + (score === 0), 0);
    const unscored = `; ${zeros.toLocaleString("en")} units have the score 0: not tried, or no effect`;
    mapKey.replaceChildren(
      make("span", { text: `score by ${view.methods[view.method]}: ${short(-map.limit)}` }),
      scale,
      make("span", {
        text:
          `${short(map.limit)} (square-root scale; higher: more responsible); ` +
          `${selected}: selected${zeros > map.scores.length / 2 ? unscored : ""}`,
      }),
    );
  }

  function draw() {
    if (closed) return;
    const view = model.get("view");
    root.dataset.theme = isDark(el) ? "dark" : "light";
    title.textContent = view.model;
    undo.disabled = !view.canUndo;
    redo.disabled = !view.canRedo;
    clear.disabled = !view.selected;
    for (const node of controls) node.disabled = !view.selected;
    notice.textContent = view.notice;
    notice.hidden = !view.notice;
    const colours = { ...COLOURS };
    if (!view.tokens.some((token) => token.member !== undefined)) delete colours.member;
    options(colourBy, colours, colourBy.value in colours ? colourBy.value : "now");
    drawPassages(view);
    drawTokens();
    drawContinuations(view);
    drawPictures(view);

    options(point, view.points, view.point);
    options(method, view.methods, view.method);
    total = view.sites.reduce((sum, site) => sum + site.width, 0);
    count.max = total;
    if (root.getRootNode().activeElement !== count) count.value = view.selected;
    if (root.getRootNode().activeElement !== slider) {
      const position = view.selected ? Math.log(view.selected) / Math.log(Math.max(2, total)) : 0;
      slider.value = Math.round(1000 * position);
    }
    slider.disabled = !view.scored;
    count.disabled = !view.scored;
    const blocks = Object.fromEntries(view.sites.map((site) => [site.name, `block ${site.label}`]));
    options(only, { "": "all blocks", ...blocks }, only.value in blocks ? only.value : "");
    map.only = only.value;
    map.set(
      view.sites,
      asFloats(model.get("scores")),
      new Uint8Array(bytes(model.get("selection")).slice()),
    );
    drawMapKey(view);

    options(
      kind,
      { zero: "zero", mean: "mean of control", scale: "scale", add: "add difference" },
      view.treatment.kind,
    );
    factorLabel.hidden = !["scale", "add"].includes(view.treatment.kind);
    if (root.getRootNode().activeElement !== factor) factor.value = view.treatment.factor;
    options(
      where,
      { all: "all", suffix: "from the prefix on", chosen: "chosen tokens" },
      view.treatment.where,
    );
    options(
      when,
      { all: "always", prompt: "in the prompt", decode: "after the prompt" },
      view.treatment.when,
    );
    chosen.textContent =
      `${view.selected.toLocaleString("en")} of ${total.toLocaleString("en")} units ` +
      `(${view.origin}); ${view.treatment.words}`;

    drawTable(
      results,
      ["measure", "before", "now", "change [95% interval over texts]", "texts"],
      view.changes.map((row) => [row.name, row.before, row.now, row.change, row.texts]),
    );
    const sizes = Object.entries(view.windows).map(([name, n]) => `${n} ${name.replace("_", "-")}`);
    note.textContent =
      `means over ${sizes.join(", ")} windows, the first of each set (windows= takes more). ` +
      (view.scoredApart
        ? "Units are scored on other windows than these."
        : "Units are scored on these windows, too: how much they matter may be overstated.") +
      (view.changes.some((row) => row.texts < 10)
        ? " With fewer than ten texts the intervals are too short."
        : "");
    drawTable(tries, view.tries.columns, view.tries.rows);
    triesTitle.hidden = !view.tries.rows.length;
    codeText.textContent = model.get("code_text");

    const { next, done, total: pieces } = view.progress;
    bar.max = Math.max(1, pieces);
    bar.value = done;
    bar.hidden = !next;
    problem.textContent = model.get("error");
    problem.hidden = !model.get("error");
    measure.hidden = !(next && model.get("error"));
  }

  function answered() {
    if (closed) return;
    draw();
    const [from, number] = model.get("answered");
    if (from === page) done = number;
    if (done < sent) return; // a later message is on its way, and its answer will come here
    const { next } = model.get("view").progress;
    if (next && !model.get("error")) {
      status.textContent = next.startsWith("scoring")
        ? `${next}; interrupt the kernel to stop`
        : `measuring: ${next}`;
      post({ do: "next" });
    } else {
      status.textContent = model.get("error") ? "stopped" : "up to date";
    }
  }

  const resized = new ResizeObserver(() => {
    if (!closed) draw();
  });
  // What Python sends together may be set, and announced, one after the other: all of it is there
  // once this has returned.
  const onAnswer = () => setTimeout(answered);
  model.on("change:answered", onAnswer);
  draw();
  resized.observe(root);
  // A page that is opened again goes on where another one was closed.
  post({ do: "next" });

  return () => {
    closed = true;
    resized.disconnect();
    model.off("change:answered", onAnswer);
  };
}

function bytes(view) {
  if (!view) return new Uint8Array();
  if (view instanceof DataView) {
    return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  }
  return new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength);
}

function asFloats(view) {
  // A copy, because floats must begin at a multiple of four bytes.
  return new Float32Array(bytes(view).slice().buffer);
}

export default { render };
