// Shows the snapshots of polarmap.live.snapshots, which arrive as server-sent events, or are part of a saved page.
// Every update changes only the elements and squares whose contents have changed.
"use strict";

(() => {
  // The states by letter, in the order in which shares of a group are stacked from bottom to top.
  const STATES = {
    a: ["arrived", "The result has arrived and is used."],
    s: ["surplus", "The result arrived, but was not needed."],
    r: ["running", "A worker is running the task."],
    q: ["queued", "The task waits for a worker."],
    h: ["held back", "The task has not been submitted, because it may not be needed."],
    x: ["abandoned", "The task was still running when its result was no longer needed."],
    c: ["cancelled", "The task was cancelled before a worker started it."],
    f: ["failed", "The task raised an exception, or its worker was lost."],
  };
  const LETTERS = Object.keys(STATES);
  const MARKS = {
    late: ["late", "The task takes much longer than the others."],
    decoded: ["decoded", "The result of this block was computed from other results."],
  };
  const BAR_COLORS = {
    a: "arrived", s: "surplus", r: "running", q: "queued-bar", h: "outline", x: "outline", c: "outline", f: "failed",
  };
  const EDGE_COLORS = { r: "running-edge", s: "surplus-edge" };

  const MAX_SINGLE_SQUARES = 2000; // Above this number of tasks, a cell shows a group of tasks.
  const MAX_CELLS = 600; // for groups of tasks
  const GROUP_SIZES = [5, 10, 20, 25, 50, 100, 200, 250, 500];
  const SQUARE_PITCHES = [36, 30, 24, 20, 16, 13, 11, 9, 8, 7]; // pixels from one square to the next
  const GROUP_PITCHES = [20, 18, 16, 14];
  const MAX_GRID_HEIGHT = 280; // pixels; narrow pages may need more
  const MAX_TIMELINE_ROWS = 300; // Above this number of tasks, the timeline shows numbers of tasks.
  const MIN_TIMELINE_HEIGHT = 120;
  const MAX_TIMELINE_HEIGHT = 300;
  const TIMELINE_TOP = 20;
  const AXIS_HEIGHT = 22;
  const MAX_WORKER_ROWS = matchMedia("(max-width: 40rem)").matches ? 8 : 32; // A button shows all workers.
  const MAX_SPARKLINE_POINTS = 200;
  const MAX_ENDED_PROGRAMS = 8;
  const ANNOUNCEMENT_SECONDS = 6; // the shortest time between two announcements to a screen reader
  const STALE_SECONDS = 20; // The page says so if there is no news for this long.

  const $ = id => document.getElementById(id);

  // --- texts ---

  const number = (value, digits = 0) =>
    value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const significant = value =>
    Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 6 });
  const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
  const pad = value => String(value).padStart(2, "0");

  function formatSeconds(seconds) {
    if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
    if (seconds < 99.95) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    const minutes = Math.floor(whole / 60);
    if (minutes < 60) return `${minutes} min ${pad(whole % 60)} s`;
    return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min`;
  }

  function formatBytes(bytes) {
    const [size, unit] = bytes < 1e9 ? [bytes / 1e6, "MB"] : [bytes / 1e9, "GB"];
    return `${size < 10 ? size.toFixed(1) : Math.round(size)} ${unit}`;
  }

  function formatDollars(dollars) {
    return `$${dollars >= 1 ? dollars.toFixed(2) : Number(dollars.toPrecision(2))}`;
  }

  function formatObjective(value) {
    const magnitude = Math.abs(value);
    return magnitude && (magnitude < 1e-4 || magnitude >= 1e7) ? value.toExponential(5) : String(Number(value.toPrecision(7)));
  }

  // The same text as MapSnapshot.status_text.
  function formatStatus(map) {
    const text = `${number(map.needed)} needed, ${number(map.n_arrived)} arrived`;
    if (map.error) return `${text}, failed after ${map.elapsed_seconds.toFixed(2)} s`;
    if (!map.is_running) return `${text}, done in ${map.elapsed_seconds.toFixed(2)} s`;
    if (map.sufficed_at !== null) return `${text}, sufficient after ${map.sufficed_at.toFixed(2)} s`;
    if (map.next_result_seconds !== null) return `${text}, next expected in about ${map.next_result_seconds.toFixed(1)} s`;
    return text;
  }

  const formatMapTitle = map => map.name ? `map ${map.map_id}: ${map.name}` : `map ${map.map_id}`;

  function listFacts(map) {
    const facts = [`${formatSeconds(map.elapsed_seconds)} ${map.is_running ? "elapsed" : "in total"}`];
    if (map.sufficed_at !== null) facts.push(`results sufficed after ${formatSeconds(map.sufficed_at)}`);
    facts.push(`${significant(map.results_per_second)} results/s`);
    if (map.cost_dollars !== null) facts.push(`${formatDollars(map.cost_dollars)}${map.is_running ? " so far" : ""}`);
    facts.push(`${number(map.n)} tasks for ${plural(map.k, "block")}`);
    return facts;
  }

  // The numbers of tasks by state, of late tasks and of decoded blocks, without zeros.
  function countStates(map) {
    const counts = new Map(LETTERS.map(letter => [letter, 0]));
    let late = 0;
    for (const letter of map.states) {
      const lower = letter.toLowerCase();
      counts.set(lower, counts.get(lower) + 1);
      if (letter !== lower) late++;
    }
    counts.set("late", late).set("decoded", map.decoded_blocks.length);
    return new Map([...counts].filter(([, count]) => count));
  }

  const nameOf = key => (STATES[key] || MARKS[key])[0];
  const describeCounts = counts => [...counts].map(([key, count]) => `${number(count)} ${nameOf(key)}`).join(", ");

  function describeTask(map, task, decoded) {
    const letter = map.states[task];
    const state = letter.toLowerCase();
    const [submitted, started, ended] = [map.submitted[task], map.started[task], map.ended[task]];
    const ending = isTime(ended) ? [`${state === "f" ? "failed" : "arrived"} after ${formatSeconds(ended)}`] : [];
    const parts = "af".includes(state) && ending.length ? ending : [nameOf(state), ...ending];
    if (letter !== state) parts.push("late");
    if (isTime(started)) {
      if (isTime(submitted)) parts.push(`queued for ${formatSeconds(Math.max(0, started - submitted))}`);
      const end = isTime(ended) ? ended : map.elapsed_seconds;
      const verb = state === "r" ? "running for" : "ran for";
      parts.push(`${verb} ${formatSeconds(Math.max(0, end - started))}`);
    } else if (state === "q" && isTime(submitted)) {
      parts.push(`waiting for ${formatSeconds(Math.max(0, map.elapsed_seconds - submitted))}`);
    }
    if (decoded.has(task)) parts.push("decoded from other results");
    if (map.hosts[task]) parts.push(`on ${map.hosts[task]}`);
    return `Task ${task}${task >= map.k ? " (parity)" : ""}: ${parts.join(", ")}`;
  }

  function describeGroup(map, first, last, decoded) {
    if (first === last) return describeTask(map, first, decoded);
    const blocks = map.decoded_blocks.filter(block => block >= first && block <= last);
    const counts = countStates({ states: map.states.slice(first, last + 1), decoded_blocks: blocks });
    return `Tasks ${number(first)} to ${number(last)}: ${describeCounts(counts)}`;
  }

  const isTime = value => value !== null && value !== undefined;

  // --- elements ---

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function setAttribute(element, name, value) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }

  function setHidden(element, isHidden) {
    if (element.hidden !== isHidden) element.hidden = isHidden;
  }

  // Make the children of a list those of `keys`, in this order. Elements with a known key are kept.
  function updateChildren(parent, elements, keys, create) {
    const wanted = new Set(keys);
    for (const [key, item] of elements) {
      if (!wanted.has(key)) {
        item.element.remove();
        elements.delete(key);
      }
    }
    keys.forEach((key, index) => {
      if (!elements.has(key)) elements.set(key, create(key));
      const { element } = elements.get(key);
      if (parent.children[index] !== element) moveBefore(parent, element, parent.children[index]);
    });
  }

  // An element that is moved would lose the focus.
  function moveBefore(parent, element, next) {
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    parent.insertBefore(element, next || null);
    if (focused) focused.focus({ preventScroll: true });
  }

  // Show short texts as list items or as the terms of a description list.
  function updateTexts(list, texts) {
    while (list.children.length > texts.length) list.lastChild.remove();
    texts.forEach((text, index) => {
      if (!list.children[index]) list.append(make("li"));
      setText(list.children[index], text);
    });
  }

  // --- colours and squares ---

  let colors = {};

  function readColors() {
    const style = getComputedStyle(document.documentElement);
    colors = {};
    for (const name of ["arrived", "running", "running-edge", "queued", "queued-bar", "outline", "surplus",
      "surplus-edge", "failed", "decoded", "mark", "text", "note", "rule", "card"]) {
      colors[name] = style.getPropertyValue(`--${name}`).trim();
    }
  }

  function prepareCanvas(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1;
    const [pixelWidth, pixelHeight] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== pixelWidth || canvas.height !== pixelHeight) {
      canvas.width = pixelWidth;
      canvas.height = pixelHeight;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  function strokeInside(context, x, y, size, color, width) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(x + width / 2, y + width / 2, size - width, size - width);
  }

  // Draw the square of a task. Shapes differ as well as colours.
  function drawSquare(context, letter, isDecoded, x, y, size) {
    const state = letter.toLowerCase();
    const hasMarks = size >= 8;
    if (state === "h" || state === "c") {
      context.setLineDash(state === "h" ? [2, 2] : []);
      if (state === "c" && hasMarks) {
        context.strokeStyle = colors.outline;
        context.lineWidth = 1.25;
        context.beginPath();
        context.arc(x + size / 2, y + size / 2, size / 2 - 1, 0, 2 * Math.PI);
        context.stroke();
      } else {
        strokeInside(context, x, y, size, colors.outline, 1);
      }
      context.setLineDash([]);
    } else if (state === "x") {
      context.globalAlpha = 0.45;
      context.fillStyle = colors.outline;
      context.fillRect(x, y, size, size);
      context.globalAlpha = 1;
      strokeInside(context, x, y, size, colors.outline, 1);
      if (hasMarks) drawLine(context, colors.outline, 1.5, x + 2, y + size - 2, x + size - 2, y + 2);
    } else {
      context.fillStyle = colors[BAR_COLORS[state].replace("-bar", "")];
      context.fillRect(x, y, size, size);
      if (state === "q") strokeInside(context, x, y, size, colors.outline, 1);
      if (EDGE_COLORS[state]) strokeInside(context, x, y, size, colors[EDGE_COLORS[state]], 1);
      if (state === "s" && hasMarks) drawLine(context, colors["surplus-edge"], 1.5, x + 1, y + size - 1, x + size - 1, y + 1);
      if (state === "f" && hasMarks && !isDecoded) {
        const inset = size * 0.27;
        drawLine(context, colors.mark, 1.75, x + inset, y + inset, x + size - inset, y + size - inset);
        drawLine(context, colors.mark, 1.75, x + inset, y + size - inset, x + size - inset, y + inset);
      }
    }
    if (letter !== state) strokeInside(context, x, y, size, colors.text, hasMarks ? 2 : 1.5);
    if (isDecoded) drawDiamond(context, x + size / 2, y + size / 2, Math.max(2.5, size * 0.36), size >= 12);
  }

  function drawLine(context, color, width, ...points) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(points[0], points[1]);
    context.lineTo(points[2], points[3]);
    context.stroke();
  }

  function drawDiamond(context, x, y, radius, hasEdge = true) {
    context.beginPath();
    context.moveTo(x, y - radius);
    context.lineTo(x + radius, y);
    context.lineTo(x, y + radius);
    context.lineTo(x - radius, y);
    context.closePath();
    context.fillStyle = colors.decoded;
    context.fill();
    if (!hasEdge) return;
    context.strokeStyle = colors.mark;
    context.lineWidth = 1;
    context.stroke();
  }

  // Draw the cell of a group: the share of each state, with at least three pixels for failed tasks.
  function drawGroup(context, letters, hasDecoded, x, y, size) {
    const counts = new Map();
    let isLate = false;
    for (const letter of letters) {
      const state = letter.toLowerCase();
      counts.set(state, (counts.get(state) || 0) + 1);
      isLate ||= letter !== state;
    }
    const failed = counts.get("f") || 0;
    const failedHeight = failed && Math.max(3, Math.round(size * failed / letters.length));
    const rest = letters.length - failed;
    let sum = 0;
    let bottom = y + size;
    for (const state of LETTERS) {
      if (!counts.has(state)) continue;
      sum += counts.get(state);
      // Whole pixels keep the colours of thin bands.
      const upper = state === "f" ? y : y + size - Math.round((size - failedHeight) * sum / rest);
      context.fillStyle = colors[BAR_COLORS[state].replace("-bar", "")];
      context.globalAlpha = "hxc".includes(state) ? 0.35 : 1;
      context.fillRect(x, upper, size, bottom - upper);
      context.globalAlpha = 1;
      bottom = upper;
    }
    strokeInside(context, x, y, size, isLate ? colors.text : colors.outline, isLate ? 2 : 0.75);
    if (hasDecoded) drawDiamond(context, x + size / 2, y + size / 2, size * 0.24);
  }

  function makeSwatch(key) {
    const canvas = make("canvas", { class: "swatch", "aria-hidden": "true" });
    const swatch = { element: canvas, draw() {
      const context = prepareCanvas(canvas, 14, 14);
      context.clearRect(0, 0, 14, 14);
      if (key === "late") strokeInside(context, 0, 0, 14, colors.text, 2);
      else if (key === "decoded") drawDiamond(context, 7, 7, 6);
      else drawSquare(context, key, false, 0, 0, 14);
    } };
    swatch.draw();
    return swatch;
  }

  // --- the squares of a map ---

  class TaskGrid {
    constructor(card) {
      this.card = card;
      this.canvas = make("canvas", { role: "img", class: "task-grid" });
      this.slider = make("input", { type: "range", class: "task-slider", min: "0", value: "0" });
      this.cursor = make("div", { class: "cursor", hidden: "" });
      this.element = make("div", { class: "figure" }, this.canvas, this.cursor, this.slider);
      this.layout = null;
      this.drawn = [];
      this.element.addEventListener("pointermove", event => this.point(event));
      this.element.addEventListener("pointerdown", event => this.point(event));
      this.element.addEventListener("pointerleave", () => this.leave());
      this.slider.addEventListener("keydown", event => this.press(event));
      this.slider.addEventListener("input", () => this.select(Number(this.slider.value)));
      this.slider.addEventListener("focus", () => this.select(Number(this.slider.value)));
      this.slider.addEventListener("blur", () => this.leave());
    }

    computeLayout(n, width) {
      let size = 1;
      if (n > MAX_SINGLE_SQUARES) {
        size = GROUP_SIZES.find(candidate => n <= candidate * MAX_CELLS) || 100 * Math.ceil(n / (100 * MAX_CELLS));
      }
      const cells = Math.ceil(n / size);
      const pitches = size > 1 ? GROUP_PITCHES : SQUARE_PITCHES;
      const columnsOf = pitch => {
        const fitting = Math.max(1, Math.floor(width / pitch));
        return fitting > 20 ? fitting - fitting % 5 : fitting; // Round numbers are easier to count.
      };
      const pitch = pitches.find(one => Math.ceil(cells / columnsOf(one)) * one <= MAX_GRID_HEIGHT) || pitches.at(-1);
      const columns = columnsOf(pitch);
      const gap = pitch >= 30 ? 5 : pitch >= 20 ? 4 : pitch >= 11 ? 3 : 2;
      return { n, width, size, cells, pitch, columns, gap, rows: Math.ceil(cells / columns) };
    }

    update(map, decoded, isRedrawn) {
      [this.map, this.decoded] = [map, decoded];
      const width = Math.floor(this.element.clientWidth);
      if (!width) return; // The card is closed.
      if (!this.layout || this.layout.n !== map.states.length || this.layout.width !== width) {
        this.layout = this.computeLayout(map.states.length, width);
        isRedrawn = true;
      }
      this.draw(isRedrawn);
      const { cells, size, columns } = this.layout;
      setAttribute(this.slider, "max", Math.max(0, cells - 1));
      setAttribute(this.canvas, "data-group-size", size);
      setAttribute(this.canvas, "data-columns", columns);
      setAttribute(this.canvas, "data-pitch", this.layout.pitch);
      setText(this.card.gridTitle, size > 1 ? `Tasks, ${size} in each cell, with the share of each state` : "Tasks");
      if (this.selected !== undefined) this.select(this.selected, true);
    }

    draw(isRedrawn) {
      const { cells, columns, pitch, gap, size, rows } = this.layout;
      const { map, decoded } = this;
      const decodedGroups = size > 1 ? new Set([...decoded].map(block => Math.floor(block / size))) : decoded;
      const context = prepareCanvas(this.canvas, columns * pitch, rows * pitch);
      if (isRedrawn) {
        context.clearRect(0, 0, columns * pitch, rows * pitch);
        this.drawn = [];
      }
      for (let cell = 0; cell < cells; cell++) {
        const letters = size > 1 ? map.states.slice(cell * size, (cell + 1) * size) : map.states[cell];
        const isDecoded = decodedGroups.has(cell);
        const key = isDecoded ? letters + "+" : letters;
        if (this.drawn[cell] === key) continue;
        this.drawn[cell] = key;
        const [x, y] = [(cell % columns) * pitch, Math.floor(cell / columns) * pitch];
        if (!isRedrawn) context.clearRect(x, y, pitch, pitch);
        (size > 1 ? drawGroup : drawSquare)(context, letters, isDecoded, x, y, pitch - gap);
      }
    }

    describe(cell) {
      const { size } = this.layout;
      const last = Math.min(this.map.states.length, (cell + 1) * size) - 1;
      return describeGroup(this.map, cell * size, last, this.decoded);
    }

    point(event) {
      if (!this.layout) return;
      const { columns, pitch, cells } = this.layout;
      const box = this.canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left) / pitch);
      const cell = Math.floor((event.clientY - box.top) / pitch) * columns + column;
      if (column >= 0 && column < columns && cell >= 0 && cell < cells) this.select(cell);
      else this.leave();
    }

    press(event) {
      const step = { ArrowUp: -this.layout.columns, ArrowDown: this.layout.columns }[event.key];
      if (event.key === "Escape") this.leave();
      if (step === undefined) return;
      event.preventDefault();
      const cell = Number(this.slider.value) + step;
      if (cell >= 0 && cell < this.layout.cells) {
        this.slider.value = String(cell);
        this.select(cell);
      }
    }

    // Show the details of a cell. `isUpdate` is true if the user has not moved.
    select(cell, isUpdate = false) {
      if (!this.layout || cell >= this.layout.cells) return;
      const { columns, pitch, gap } = this.layout;
      this.selected = cell;
      const [x, y] = [(cell % columns) * pitch, Math.floor(cell / columns) * pitch];
      this.cursor.style.width = this.cursor.style.height = `${pitch - gap + 6}px`;
      this.cursor.style.transform = `translate(${x - 3}px, ${y - 3}px)`;
      setHidden(this.cursor, false);
      const text = this.describe(cell);
      // A screen reader reads each new value, so times alone do not change it.
      if (!isUpdate || this.valueKey !== this.drawn[cell]) setAttribute(this.slider, "aria-valuetext", text);
      this.valueKey = this.drawn[cell];
      const box = this.canvas.getBoundingClientRect();
      showTooltip(this, text, box.left + x + pitch / 2, box.top + y, pitch);
    }

    leave() {
      if (this.selected === undefined) return;
      this.selected = undefined;
      setHidden(this.cursor, true);
      hideTooltip(this);
    }
  }

  // --- the timeline of a map ---

  class Timeline {
    constructor(card) {
      this.card = card;
      this.canvas = make("canvas", { role: "img", class: "timeline" });
      this.element = make("div", { class: "figure" }, this.canvas);
      this.element.addEventListener("pointermove", event => this.point(event));
      this.element.addEventListener("pointerdown", event => this.point(event));
      this.element.addEventListener("pointerleave", () => hideTooltip(this));
    }

    update(map, decoded, isRedrawn) {
      const width = Math.floor(this.element.clientWidth);
      const key = [width, map.elapsed_seconds, map.states, map.n_arrived].join();
      if (!width || (key === this.key && !isRedrawn)) return;
      [this.key, this.map, this.decoded, this.width] = [key, map, decoded, width];
      this.isGrouped = map.states.length > MAX_TIMELINE_ROWS;
      const n = Math.max(1, map.states.length);
      this.rowHeight = Math.min(18, MAX_TIMELINE_HEIGHT / n);
      if (this.rowHeight > 3) this.rowHeight = Math.floor(this.rowHeight);
      const rowsHeight = this.isGrouped ? 220 : Math.max(MIN_TIMELINE_HEIGHT, Math.ceil(this.rowHeight * n));
      this.bodyHeight = rowsHeight;
      // The last arrival may be later than the end of a map that has returned.
      this.end = map.ended.reduce((end, time) => (time > end ? time : end), map.elapsed_seconds) || 1;
      const height = TIMELINE_TOP + rowsHeight + AXIS_HEIGHT;
      this.context = prepareCanvas(this.canvas, width, height);
      this.context.clearRect(0, 0, width, height);
      this.left = this.isGrouped ? 8 + 7 * number(map.states.length).length : 0;
      this.scale = (width - this.left - 2) / this.end;
      this.drawAxis();
      if (this.isGrouped) this.drawNumbers();
      else this.drawRows();
      this.drawEvents();
      setAttribute(this.canvas, "data-grouped", this.isGrouped);
    }

    toX(seconds) {
      return this.left + this.scale * seconds;
    }

    drawAxis() {
      const { context, width } = this;
      const bottom = TIMELINE_TOP + this.bodyHeight;
      const raw = this.end / Math.max(2, Math.min(6, Math.floor(width / 90)));
      const power = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 5, 10].map(factor => factor * power).find(candidate => candidate >= raw);
      const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "top";
      for (let tick = 0; tick * step <= this.end * 1.0001; tick++) {
        const x = this.toX(tick * step);
        drawLine(context, colors.rule, 1, x, TIMELINE_TOP, x, bottom + 4);
        context.fillStyle = colors.note;
        const text = `${(tick * step).toFixed(digits)} s`;
        const textWidth = context.measureText(text).width;
        context.fillText(text, Math.max(0, Math.min(x - textWidth / 2, width - textWidth)), bottom + 7);
      }
    }

    // One row per task: a thin bar while it is queued, and a thick bar while it runs.
    drawRows() {
      const { context, map, rowHeight } = this;
      const thickness = rowHeight > 4 ? Math.round(rowHeight * 0.7) : Math.max(0.75, rowHeight * 0.85);
      const thin = rowHeight > 4 ? 2 : Math.max(0.5, thickness * 0.4);
      for (let task = 0; task < map.states.length; task++) {
        const letter = map.states[task];
        const state = letter.toLowerCase();
        const times = this.listTimes(task, state);
        if (!times) continue;
        const middle = TIMELINE_TOP + rowHeight * (task + 0.5);
        const [queuedX, startX, endX] = times.map(seconds => this.toX(seconds));
        context.fillStyle = colors["queued-bar"];
        context.fillRect(queuedX, middle - thin / 2, Math.max(0, startX - queuedX), thin);
        if (times[2] > times[1]) {
          context.fillStyle = colors[BAR_COLORS[state]];
          context.globalAlpha = state === "x" ? 0.5 : 1;
          context.fillRect(startX, middle - thickness / 2, Math.max(1.5, endX - startX), thickness);
          context.globalAlpha = 1;
          if (thickness >= 4 && (letter !== state || EDGE_COLORS[state])) {
            context.strokeStyle = letter !== state ? colors.text : colors[EDGE_COLORS[state]];
            context.lineWidth = letter !== state ? 1.5 : 1;
            context.strokeRect(startX + 0.5, middle - thickness / 2 + 0.5, Math.max(1, endX - startX - 1), thickness - 1);
          }
        }
        if (this.decoded.has(task) && rowHeight > 4) drawDiamond(context, this.toX(this.end) - 5, middle, Math.min(5, rowHeight / 2 - 0.5));
      }
      if (map.k < map.states.length) {
        const y = TIMELINE_TOP + rowHeight * map.k - 0.5;
        drawLine(context, colors.outline, 0.75, 0, y, this.width, y);
      }
    }

    // When a task was submitted, was started and ended. The start is that of its bar if it is unknown.
    listTimes(task, state) {
      const { map } = this;
      const submitted = map.submitted[task];
      if (!isTime(submitted)) return null;
      const end = isTime(map.ended[task]) ? map.ended[task] : map.elapsed_seconds;
      const isUnstarted = state === "q" || state === "c" || state === "h";
      const started = isTime(map.started[task]) ? Math.max(submitted, map.started[task]) : isUnstarted ? end : submitted;
      return [submitted, Math.min(started, end), end];
    }

    // The numbers of arrived, failed, running and queued tasks at each moment, stacked.
    drawNumbers() {
      const { context, map } = this;
      const columns = Math.max(20, Math.floor((this.width - this.left) / 3));
      const changes = ["a", "f", "r", "q"].map(() => new Float64Array(columns + 1));
      const [arrived, failed, running, queued] = changes;
      const toColumn = seconds => Math.min(columns, Math.max(0, Math.round(seconds / this.end * columns)));
      for (let task = 0; task < map.states.length; task++) {
        const state = map.states[task].toLowerCase();
        const times = this.listTimes(task, state);
        if (!times) continue;
        const [from, start, end] = times.map(toColumn);
        queued[from]++;
        queued[start]--;
        running[start]++;
        if (isTime(map.ended[task])) {
          running[end]--;
          (state === "f" ? failed : arrived)[end]++;
        }
      }
      const heightOfTask = this.bodyHeight / Math.max(1, map.states.length);
      const bottom = TIMELINE_TOP + this.bodyHeight;
      // Whole pixels leave no seams between the columns.
      const edges = Array.from({ length: columns + 1 }, (_, column) =>
        Math.round(this.left + column * (this.width - this.left - 2) / columns));
      const names = ["arrived", "failed", "running", "queued"];
      const totals = [0, 0, 0, 0];
      for (let column = 0; column < columns; column++) {
        let y = bottom;
        for (let band = 0; band < 4; band++) {
          totals[band] += changes[band][column];
          const height = totals[band] * heightOfTask;
          context.fillStyle = colors[names[band]];
          context.fillRect(edges[column], y - height, edges[column + 1] - edges[column], height);
          y -= height;
        }
      }
      context.textBaseline = "middle";
      context.textAlign = "right";
      context.fillStyle = colors.note;
      for (const share of [0, 0.5, 1]) {
        const y = bottom - share * this.bodyHeight;
        context.fillText(number(Math.round(share * map.states.length)), this.left - 5, y);
      }
      context.textAlign = "left";
      if (map.needed && map.needed < map.states.length) {
        const y = bottom - map.needed * heightOfTask;
        context.setLineDash([2, 3]);
        drawLine(context, colors.text, 1, this.left, y, this.width - 2, y);
        context.setLineDash([]);
      }
    }

    drawEvents() {
      const { context, map } = this;
      if (map.sufficed_at === null) return;
      const x = this.toX(map.sufficed_at);
      context.setLineDash([4, 3]);
      drawLine(context, colors.text, 1.25, x, TIMELINE_TOP - 4, x, TIMELINE_TOP + this.bodyHeight + 4);
      context.setLineDash([]);
      const text = `sufficed, ${formatSeconds(map.sufficed_at)}`;
      const textWidth = context.measureText(text).width;
      context.fillStyle = colors.text;
      context.textBaseline = "top";
      context.fillText(text, Math.max(0, Math.min(x - textWidth / 2, this.width - textWidth)), 0);
    }

    point(event) {
      if (!this.map || this.isGrouped) return;
      const box = this.canvas.getBoundingClientRect();
      const task = Math.floor((event.clientY - box.top - TIMELINE_TOP) / this.rowHeight);
      if (task < 0 || task >= this.map.states.length) {
        hideTooltip(this);
        return;
      }
      const y = box.top + TIMELINE_TOP + task * this.rowHeight;
      showTooltip(this, describeTask(this.map, task, this.decoded), event.clientX, y, this.rowHeight);
    }
  }

  // --- the tooltip ---

  let tooltipOwner = null;

  function showTooltip(owner, text, x, top, height) {
    const tooltip = $("tooltip");
    tooltipOwner = owner;
    setText(tooltip, text);
    setHidden(tooltip, false);
    const [width, ownHeight] = [tooltip.offsetWidth, tooltip.offsetHeight];
    const left = Math.max(8, Math.min(x - width / 2, document.documentElement.clientWidth - width - 8));
    const above = top - ownHeight - 8;
    const y = above > 4 ? above : top + height + 8;
    tooltip.style.transform = `translate(${Math.round(left + scrollX)}px, ${Math.round(y + scrollY)}px)`;
  }

  function hideTooltip(owner) {
    if (tooltipOwner !== owner) return;
    tooltipOwner = null;
    setHidden($("tooltip"), true);
  }

  // --- a map ---

  class MapCard {
    constructor(key) {
      this.key = key;
      this.title = make("h3");
      this.summaryStatus = make("span", { class: "summary-status" });
      this.system = make("span", { class: "system" });
      const summary = make("summary", {}, this.title, this.summaryStatus, this.system);
      this.status = make("p", { class: "status" });
      this.fill = make("div", { class: "progress-fill" });
      this.mark = make("div", { class: "progress-mark" });
      this.progress = make("div", { class: "progress", role: "progressbar", "aria-valuemin": "0" }, this.fill, this.mark);
      this.facts = make("ul", { class: "facts" });
      this.error = make("p", { class: "error", hidden: "" });
      this.gridTitle = make("p", { class: "figure-title" });
      this.timelineTitle = make("p", { class: "figure-title" });
      this.grid = new TaskGrid(this);
      this.timeline = new Timeline(this);
      this.counts = make("ul", { class: "counts", "aria-label": "Tasks by state" });
      this.countItems = new Map();
      this.failures = make("ul");
      this.failuresTitle = make("h4");
      this.failuresBox = make("div", { class: "failures", hidden: "" }, this.failuresTitle, this.failures);
      const figures = make("div", { class: "figures" },
        make("div", {}, this.gridTitle, this.grid.element, this.counts, this.failuresBox),
        make("div", {}, this.timelineTitle, this.timeline.element));
      const body = make("div", { class: "card-body" }, this.status, this.progress, this.facts, this.error, figures);
      this.element = make("details", { class: "card", "data-map": key }, summary, body);
      summary.addEventListener("click", () => { this.isChosen = true; });
      this.element.addEventListener("toggle", () => this.draw(false));
      // Redraw when the page gets wider or narrower.
      this.observer = new ResizeObserver(() => requestAnimationFrame(() => this.draw(false)));
      this.observer.observe(this.grid.element);
    }

    update(map, isOpen) {
      this.map = map;
      // The user may have opened or closed the card.
      if (!this.isChosen && this.element.open !== isOpen) this.element.open = isOpen;
      setText(this.title, formatMapTitle(map));
      setText(this.summaryStatus, formatStatus(map));
      setText(this.system, [map.code, map.executor].filter(Boolean).join(" · "));
      setAttribute(this.element, "data-running", map.is_running);
      if (this.element.open) this.draw(false);
    }

    draw(isRedrawn) {
      const { map } = this;
      if (!map || !this.element.open) return;
      if (this.drawnMap === map && !isRedrawn && this.drawnWidth === this.grid.element.clientWidth) return;
      [this.drawnMap, this.drawnWidth] = [map, this.grid.element.clientWidth];
      const [counts, decoded] = [countStates(map), new Set(map.decoded_blocks)];
      this.updateTexts(map);
      this.updateProgress(map);
      this.updateCounts(counts, isRedrawn);
      this.updateFailures(map);
      const title = formatMapTitle(map);
      setAttribute(this.grid.canvas, "aria-label", `Tasks of ${title}: ${describeCounts(counts)}`);
      setAttribute(this.grid.slider, "aria-label", `Tasks of ${title}, one by one`);
      setAttribute(this.timeline.canvas, "aria-label", `Timeline of ${title}: ${listFacts(map).join(", ")}`);
      this.grid.update(map, decoded, isRedrawn);
      this.timeline.update(map, decoded, isRedrawn);
    }

    updateTexts(map) {
      setText(this.status, formatStatus(map));
      updateTexts(this.facts, listFacts(map));
      setText(this.error, map.error && `The map has failed: ${map.error}`);
      setHidden(this.error, !map.error);
      setText(this.timelineTitle, map.n > MAX_TIMELINE_ROWS
        ? "Number of tasks over time: arrived, failed, running, queued"
        : "Timeline: thin while queued, thick while running");
    }

    updateProgress(map) {
      const share = count => `${100 * Math.min(1, count / Math.max(1, map.n))}%`;
      this.fill.style.width = share(map.n_arrived);
      this.mark.style.left = share(map.needed);
      setAttribute(this.progress, "aria-valuemax", map.needed);
      setAttribute(this.progress, "aria-valuenow", Math.min(map.needed, map.n_arrived));
      setAttribute(this.progress, "aria-label", `Results of ${formatMapTitle(map)}`);
      setAttribute(this.progress, "aria-valuetext", `${map.n_arrived} of ${map.needed} needed results, ${map.n} tasks`);
    }

    updateCounts(counts, isRedrawn) {
      updateChildren(this.counts, this.countItems, [...counts.keys()], key => {
        const [swatch, text] = [makeSwatch(key), make("span")];
        return { element: make("li", {}, swatch.element, text), swatch, text };
      });
      for (const [key, item] of this.countItems) {
        setText(item.text, `${number(counts.get(key))} ${nameOf(key)}`);
        if (isRedrawn) item.swatch.draw();
      }
    }

    updateFailures(map) {
      setHidden(this.failuresBox, !map.failures.length);
      const hidden = map.n_failed_tasks - map.failures.length;
      setText(this.failuresTitle, hidden > 0 ? `Latest failures of ${plural(map.n_failed_tasks, "task")}` : "Failures");
      updateTexts(this.failures, [...map.failures].reverse().map(failure =>
        `task ${failure.task}${failure.host ? ` on ${failure.host}` : ""}: ${failure.message}`));
    }
  }

  // --- tables ---

  // A table whose rows are kept. A column has a title, a class and a function that updates its cells.
  class Table {
    constructor(name, columns) {
      this.columns = columns;
      const titles = columns.map(column =>
        make("th", { scope: "col", role: "columnheader", class: column.style || "" }, column.title));
      this.body = make("tbody", { role: "rowgroup" });
      this.rows = new Map();
      // Narrow pages show rows as blocks. The roles keep the table a table for screen readers.
      this.element = make("table", { class: "table", role: "table", "aria-label": name },
        make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...titles)), this.body);
    }

    update(items, keyOf) {
      const itemsByKey = new Map(items.map((item, index) => [keyOf(item, index), item]));
      updateChildren(this.body, this.rows, [...itemsByKey.keys()], () => {
        const cells = this.columns.map(column =>
          make("td", { role: "cell", class: column.style || "", "data-label": column.title }));
        return { element: make("tr", { role: "row" }, ...cells), cells };
      });
      for (const [key, item] of itemsByKey) {
        const { cells } = this.rows.get(key);
        this.columns.forEach((column, index) => column.update(cells[index], item));
      }
    }
  }

  const textColumn = (title, format, style = "") =>
    ({ title, style, update: (cell, item) => setText(cell, format(item)) });

  let maxAge = 1; // the longest time for which a worker has been in its state

  function updateAge(cell, worker) {
    if (!cell.firstChild) {
      cell.append(make("div", { class: "age" },
        make("div", { class: "age-track", "aria-hidden": "true" }, make("div", { class: "age-fill" })),
        make("span", { class: "age-text" })));
    }
    const fill = cell.querySelector(".age-fill");
    fill.style.width = `${100 * Math.min(1, worker.state_seconds / maxAge)}%`;
    setAttribute(fill, "data-state", worker.state);
    setText(cell.querySelector(".age-text"), formatSeconds(worker.state_seconds));
  }

  const workersTable = new Table("Workers", [
    textColumn("Worker", worker => `${worker.pool} ${worker.worker_id}`.trim()),
    textColumn("Process", worker => isTime(worker.pid) ? String(worker.pid) : "–"),
    textColumn("Machine", worker => worker.host || "this machine"),
    textColumn("Task", worker =>
      worker.state === "idle" ? "idle"
        : `${worker.task ?? ""}${worker.job && ` of ${worker.job}`}${worker.state === "abandoned" ? " (abandoned)" : ""}`),
    { title: "For", style: "wide ages", update: updateAge },
    textColumn("Memory", worker => isTime(worker.memory_bytes) ? formatBytes(worker.memory_bytes) : "–", "number"),
    textColumn("Processor time", worker => isTime(worker.cpu_seconds) ? formatSeconds(worker.cpu_seconds) : "–", "number"),
  ]);

  let showsAllWorkers = false;

  function renderWorkers(program) {
    const { workers } = program;
    setHidden($("workers-section"), !workers.length);
    const counts = new Map();
    for (const worker of workers) counts.set(worker.state, (counts.get(worker.state) || 0) + 1);
    const states = ["working", "idle", "abandoned"].filter(state => counts.has(state));
    setText($("workers-summary"), `${plural(workers.length, "worker")}: ${states.map(state => `${number(counts.get(state))} ${state}`).join(", ")}`);
    setHidden($("all-workers"), workers.length <= MAX_WORKER_ROWS);
    setText($("all-workers"), showsAllWorkers ? `Show only ${MAX_WORKER_ROWS} workers` : `Show all ${number(workers.length)} workers`);
    const busy = workers.filter(worker => worker.state !== "idle");
    maxAge = Math.max(0.1, ...busy.map(worker => worker.state_seconds));
    const shown = showsAllWorkers ? workers : workers.slice(0, MAX_WORKER_ROWS);
    workersTable.update(shown, worker => `${program.pid} ${worker.pool} ${worker.worker_id}`);
  }

  function updateSparkline(cell, { history }) {
    if (!cell.firstChild) {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
      svg.setAttribute("class", "sparkline");
      svg.setAttribute("role", "img");
      svg.setAttribute("viewBox", "0 0 120 24");
      cell.append(svg);
    }
    const svg = cell.firstChild;
    cell.classList.toggle("empty", history.length < 2);
    if (history.length < 2) return;
    const values = history.map(point => point[1]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const isLog = low > 0 && high / low > 100;
    const scale = value => isLog ? Math.log(value) : value;
    const range = scale(high) - scale(low) || 1;
    const [first, last] = [history[0][0], history.at(-1)[0]];
    const points = history.map(([step, value]) =>
      `${(118 * (step - first) / (last - first) + 1).toFixed(1)},${(22 - 20 * (scale(value) - scale(low)) / range).toFixed(1)}`);
    setAttribute(svg.firstChild, "points", points.join(" "));
    setAttribute(svg, "aria-label", `Objective from ${formatObjective(values[0])} to ${formatObjective(values.at(-1))}${isLog ? ", logarithmic" : ""}`);
  }

  const iterationsTable = new Table("Fits and iterations", [
    textColumn("Name", ({ iteration }) => iteration.name),
    textColumn("Step", ({ iteration }) => number(iteration.n_steps), "number"),
    textColumn("Objective", ({ iteration }) => isTime(iteration.objective) ? formatObjective(iteration.objective) : "–", "number"),
    { title: "Trend", style: "wide trend", update: updateSparkline },
    textColumn("Optimality", ({ iteration }) => isTime(iteration.gradient_norm) ? iteration.gradient_norm.toExponential(1) : "–", "number"),
    textColumn("ms per step", ({ iteration }) => isTime(iteration.seconds_per_step) ? significant(1000 * iteration.seconds_per_step) : "–", "number"),
    textColumn("Products", ({ iteration }) => number(iteration.n_products), "number"),
    textColumn("Time", ({ iteration }) => `${formatSeconds(iteration.elapsed_seconds)}${iteration.is_running ? "" : ", done"}`, "number"),
  ]);

  let nextIterationKey = 1;

  // Find the records of a program's iterations, and add the latest objectives. Snapshots have no numbers for
  // iterations, so a record continues with an iteration of the same name that is not behind it.
  function recordIterations(program, records) {
    const free = [...records];
    return program.iterations.map(iteration => {
      const index = free.findIndex(({ iteration: old }) => old.name === iteration.name &&
        old.n_steps <= iteration.n_steps && old.elapsed_seconds <= iteration.elapsed_seconds &&
        (old.is_running || (!iteration.is_running && old.elapsed_seconds === iteration.elapsed_seconds)));
      const record = index < 0 ? { key: nextIterationKey++, history: [] } : free.splice(index, 1)[0];
      record.iteration = iteration;
      addObjective(record.history, iteration);
      return record;
    });
  }

  function addObjective(history, iteration) {
    if (!isTime(iteration.objective) || history.at(-1)?.[0] === iteration.n_steps) return;
    history.push([iteration.n_steps, iteration.objective]);
    if (history.length > MAX_SPARKLINE_POINTS) history.splice(0, history.length, ...history.filter((_, index) => index % 2 === 0));
  }

  const executorsTable = new Table("Submitted calls", [
    textColumn("Executor", executor => executor.name),
    textColumn("Runs on", executor => executor.executor),
    textColumn("Calls done", executor => `${number(executor.n_done)} of ${number(executor.n_calls)}`, "number"),
    textColumn("Running", executor => number(executor.n_running), "number"),
    textColumn("Failed", executor => number(executor.n_failed), "number"),
  ]);

  function renderExecutors(program) {
    setHidden($("executors-section"), !program.executors.length);
    executorsTable.update([...program.executors].reverse(), executor => `${program.pid} ${executor.name}`);
  }

  function renderIterations(records) {
    setHidden($("iterations-section"), !records.length);
    iterationsTable.update([...records].reverse(), record => record.key);
  }

  // --- a program ---

  const cards = new Map();

  function renderMaps(program) {
    // A card in use stays until the user has left it, even if its map is no longer part of the snapshots.
    const focused = document.activeElement?.closest?.(".card")?.dataset.map;
    const keyOf = map => `${program.pid}-${map.map_id}`;
    const maps = [...program.maps].sort((one, other) => other.is_running - one.is_running || other.map_id - one.map_id);
    const keys = maps.map(keyOf);
    if (focused && !keys.includes(focused) && focused.startsWith(`${program.pid}-`)) keys.push(focused);
    setHidden($("maps-section"), !keys.length);
    updateChildren($("maps"), cards, keys, key => new MapCard(key));
    const hasRunning = maps.some(map => map.is_running);
    maps.forEach((map, index) => cards.get(keyOf(map)).update(map, map.is_running || (!hasRunning && index === 0)));
  }

  function renderTotals(program) {
    const running = program.maps.filter(map => map.is_running).length;
    const totals = [
      ["maps running", number(running)],
      ["maps finished", number(program.n_finished_maps)],
      ["results per second", significant(program.results_per_second)],
    ];
    const list = $("totals");
    setHidden(list, !program.pid); // A file with a single map says all this elsewhere.
    totals.forEach(([term, value], index) => {
      if (!list.children[index]) list.append(make("div", {}, make("dt"), make("dd")));
      setText(list.children[index].firstChild, term);
      setText(list.children[index].lastChild, value);
    });
  }

  function renderHeader(program) {
    setText($("program-name"), program.name || "polarmap");
    const details = [program.pid ? `process ${program.pid}` : "", program.host ? `on ${program.host}` : ""];
    setText($("program-details"), details.filter(Boolean).join(" "));
    const map = program.maps.findLast(one => one.is_running);
    const progress = map ? `${map.n_arrived} of ${map.needed} · ` : "";
    const title = `${progress}${program.name || "map"} · polarmap`;
    if (document.title !== title) document.title = title;
  }

  // --- all programs ---

  // A record for each program, by process id: its latest snapshot, its iterations, and whether it has ended.
  const programs = new Map();
  let shownPid = null;
  let isPaused = false;
  let isSaved = false;
  let isScheduled = false;
  let lastNewsAt = performance.now();

  function receive(snapshots) {
    lastNewsAt = performance.now();
    const pids = new Set(snapshots.map(program => program.pid));
    for (const program of snapshots) {
      const record = programs.get(program.pid) || { iterations: [] };
      record.iterations = recordIterations(program, record.iterations);
      programs.delete(program.pid); // The latest ones come last.
      programs.set(program.pid, { ...record, program, hasEnded: false });
    }
    for (const [pid, record] of programs) record.hasEnded = !pids.has(pid);
    const ended = [...programs].filter(([pid, record]) => record.hasEnded && pid !== shownPid);
    for (const [pid] of ended.slice(0, Math.max(0, ended.length - MAX_ENDED_PROGRAMS))) programs.delete(pid);
    if (shownPid === null && snapshots.length) shownPid = snapshots.at(-1).pid;
    scheduleRendering();
  }

  function scheduleRendering() {
    if (isScheduled || isPaused) return;
    isScheduled = true;
    requestAnimationFrame(() => {
      isScheduled = false;
      render();
    });
  }

  function render() {
    const record = programs.get(shownPid);
    renderChoice();
    setHidden($("empty"), Boolean(record));
    if (!record) return;
    const { program } = record;
    renderHeader(program);
    renderTotals(program);
    renderIterations(record.iterations);
    renderExecutors(program);
    renderMaps(program);
    renderWorkers(program);
    renderConnection();
    announce(program);
  }

  function renderChoice() {
    setHidden($("program-choice"), programs.size < 2);
    const select = $("program-select");
    const entries = [...programs].sort(([one], [other]) => one - other);
    while (select.options.length > entries.length) select.lastChild.remove();
    entries.forEach(([pid, { program, hasEnded }], index) => {
      if (!select.options[index]) select.append(make("option"));
      const option = select.options[index];
      setAttribute(option, "value", pid);
      setText(option, `${program.name} (process ${pid}${hasEnded ? ", ended" : ""})`);
    });
    if (shownPid !== null && select.value !== String(shownPid)) select.value = String(shownPid);
  }

  // --- the connection ---

  let connectionState = "connecting";

  function setConnection(state) {
    connectionState = state;
    renderConnection();
  }

  function renderConnection() {
    const record = programs.get(shownPid);
    const silence = (performance.now() - lastNewsAt) / 1000;
    const texts = {
      connecting: "Connecting …",
      live: "Live",
      lost: "Connection lost, trying again",
      refused: "Connection refused: open the complete URL that the program has printed",
      ended: "The program has closed this page; it shows the last state",
      saved: record ? `Saved ${new Date(record.program.time * 1000).toLocaleString()}` : "Saved",
    };
    let [state, text] = [connectionState, texts[connectionState]];
    if (state === "live" && isPaused) [state, text] = ["paused", "Paused"];
    else if (state === "live" && record?.hasEnded) [state, text] = ["ended", "The program has ended; this is its last state"];
    else if (state === "live" && silence > STALE_SECONDS) [state, text] = ["lost", `No news for ${Math.round(silence)} s`];
    setAttribute($("connection"), "data-state", state === "refused" ? "lost" : state);
    setText($("connection"), text);
  }

  function connect() {
    const source = new EventSource("events");
    source.addEventListener("open", () => setConnection("live"));
    source.addEventListener("message", event => {
      if (connectionState !== "live") setConnection("live");
      receive(JSON.parse(event.data));
    });
    source.addEventListener("end", event => {
      source.close();
      const snapshots = JSON.parse(event.data);
      if (snapshots.length) receive(snapshots);
      setConnection("ended");
    });
    source.addEventListener("error", () => {
      setConnection(source.readyState === EventSource.CLOSED ? "refused" : "lost");
    });
  }

  // --- announcements to screen readers ---

  let announcedAt = -Infinity;
  let announcedText = "";

  function announce(program) {
    const now = performance.now();
    if (isSaved || now < announcedAt + 1000 * ANNOUNCEMENT_SECONDS) return;
    const map = program.maps.findLast(one => one.is_running) || program.maps.at(-1);
    // The estimate until the next result changes with each update, so it is not announced.
    const text = map ? `${formatMapTitle(map)}: ${formatStatus({ ...map, next_result_seconds: null })}` : "";
    if (text === announcedText) return;
    [announcedAt, announcedText] = [now, text];
    setText($("announcements"), text);
  }

  // --- start ---

  let legendSwatches = [];

  function fillLegend() {
    const entries = [...Object.entries(STATES), ...Object.entries(MARKS)];
    legendSwatches = entries.map(([key]) => makeSwatch(key));
    entries.forEach(([, [name, explanation]], index) => {
      const cells = [legendSwatches[index].element, make("dt", {}, name), make("dd", {}, explanation)];
      $("legend-entries").append(make("div", {}, ...cells));
    });
  }

  function changeTheme() {
    readColors();
    legendSwatches.forEach(swatch => swatch.draw());
    for (const card of cards.values()) card.draw(true);
  }

  function start() {
    readColors();
    fillLegend();
    $("workers").append(workersTable.element);
    $("iterations").append(iterationsTable.element);
    $("executors").append(executorsTable.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changeTheme);
    $("program-select").addEventListener("change", event => {
      shownPid = Number(event.target.value);
      render();
    });
    $("all-workers").addEventListener("click", () => {
      showsAllWorkers = !showsAllWorkers;
      render();
    });
    $("pause").addEventListener("click", () => {
      isPaused = !isPaused;
      setAttribute($("pause"), "aria-pressed", isPaused);
      renderConnection();
      scheduleRendering();
    });
    const saved = $("saved-snapshots");
    if (saved) {
      isSaved = true;
      setHidden($("pause"), true);
      receive(JSON.parse(saved.textContent));
      render();
      setConnection("saved");
      return;
    }
    connect();
    setInterval(renderConnection, 1000);
  }

  start();
})();
