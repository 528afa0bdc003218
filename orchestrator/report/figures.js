// Draws the page's figures with uPlot, to be pointed at, zoomed and read by keyboard.
//
// In: each figure of the class "curves" with its data as JSON (report/plots.py: figure_data) and a list
// that is its legend. Out: a plot a panel, one range of steps for all, and buttons. Colours are
// the page's CSS variables, read whenever something is drawn, so that plots follow the scheme.
"use strict";
(() => {
  const HEIGHT_PX = 260;
  const TIP_LINES = 10;
  const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });
  const steps = new Intl.NumberFormat("en");

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const faded = (name, share) => `color-mix(in srgb, ${colour(name)} ${share}%, transparent)`;
  const shown = (value) => (value == null ? "no value" : digits.format(value));

  function element(tag, attributes = {}, text = "") {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return node;
  }

  // uPlot wants all lines of a plot over one list of steps: a mean and what is behind it are two.
  function aligned(panel) {
    const rows = panel.lines.flatMap((line) => [
      ...(line.raw[0].length ? [{ ...line, points: line.raw, isRaw: true }] : []),
      { ...line, isRaw: false },
    ]);
    return { rows, data: uPlot.join(rows.map((row) => row.points)) };
  }

  function series(row, curve, isMarked) {
    return {
      label: curve.label,
      stroke: () => (row.isRaw ? faded(curve.colour, 25) : colour(curve.colour)),
      alpha: curve.isBest || row.isRaw ? 1 : 0.7,
      width: row.isRaw ? 1 : curve.isBest ? 2.2 : 1.4,
      dash: row.isRaw ? [] : curve.dash,
      points: { show: !row.isRaw && (isMarked || row.points[0].length === 1), size: 6, fill: () => colour(curve.colour) },
    };
  }

  function axis(overrides) {
    return {
      stroke: () => colour("muted"),
      grid: { stroke: () => colour("line"), width: 1 },
      ticks: { stroke: () => colour("line"), width: 1 },
      font: "11px system-ui, sans-serif",
      labelFont: "11px system-ui, sans-serif",
      ...overrides,
    };
  }

  class Panel {
    constructor(figure, panel) {
      this.figure = figure;
      this.spec = panel;
      ({ rows: this.rows, data: this.data } = aligned(panel));
      const title = `${panel.title}${panel.unit ? `, ${panel.unit}` : ""}`;
      this.node = element("div", { class: "panel" });
      this.node.append(element("h4", {}, title));
      // A slider is what screen readers and keyboards know of something that moves along a range.
      this.slider = element("div", {
        class: "plot", tabindex: "0", role: "slider", "aria-label": `${title}: value at a ${figure.data.x}`,
        "aria-valuemin": this.data[0][0], "aria-valuemax": this.data[0].at(-1),
        "aria-valuenow": this.data[0].at(-1), "aria-valuetext": "arrow keys read values",
      });
      this.tip = element("div", { class: "tip", hidden: "" });
      this.node.append(this.slider);
      this.slider.append(this.tip);
      this.slider.addEventListener("keydown", (event) => this.onKey(event));
      this.slider.addEventListener("blur", () => (this.tip.hidden = true));
    }

    draw() {
      this.plot = new uPlot(this.options(), this.data, this.slider);
      new ResizeObserver(() => {
        const width = this.slider.clientWidth;
        if (width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT_PX });
      }).observe(this.slider);
    }

    options() {
      const { curves, x } = this.figure.data;
      return {
        width: this.slider.clientWidth || 320,
        height: HEIGHT_PX,
        legend: { show: false },
        cursor: { y: false, drag: { x: true, y: false, setScale: true }, points: { size: 7 } },
        scales: { x: { time: false }, y: { range: (plot, low, high) => this.figure.yRange(low, high) } },
        axes: [
          axis({ label: x, size: 34, labelSize: 18, values: (_, at) => at.map((v) => steps.format(v)) }),
          axis({ size: 58, values: (_, at) => at.map((v) => digits.format(v)) }),
        ],
        series: [{ label: x }, ...this.rows.map((row) => series(row, curves[row.curve], this.spec.isMarked))],
        hooks: {
          setCursor: [(plot) => this.point(plot.cursor.idx)],
          setScale: [(plot, key) => key === "x" && this.figure.share(this, plot.scales.x)],
        },
      };
    }

    // The lines that can be seen, without what lies behind means.
    visible() {
      return this.rows
        .map((row, n) => ({ row, values: this.data[n + 1], curve: this.figure.data.curves[row.curve] }))
        .filter(({ row }) => !row.isRaw && this.figure.isShown(row.curve));
    }

    // A line that has no value at this very step has the one of the step before.
    valueAt(values, at) {
      while (at > 0 && values[at] === undefined) at -= 1;
      return values[at];
    }

    readout(at) {
      return this.visible()
        .map(({ curve, values }) => ({ curve, value: this.valueAt(values, at) }))
        .filter(({ value }) => value !== undefined)
        .sort((a, b) => (b.value ?? -Infinity) - (a.value ?? -Infinity));
    }

    point(at) {
      this.tip.hidden = at == null;
      if (at == null) return;
      const rows = this.readout(at);
      this.tip.replaceChildren(element("b", {}, `${this.figure.data.x} ${steps.format(this.data[0][at])}`));
      for (const { curve, value } of rows.slice(0, TIP_LINES)) {
        const line = element("div");
        const mark = element("i");
        mark.style.borderTopColor = colour(curve.colour);
        mark.style.borderTopStyle = curve.dash.length ? "dashed" : "solid";
        line.append(mark, `${curve.label} `, element("b", {}, shown(value)));
        this.tip.append(line);
      }
      if (rows.length > TIP_LINES) this.tip.append(element("div", {}, `and ${rows.length - TIP_LINES} more`));
      this.place(this.plot.valToPos(this.data[0][at], "x"));
    }

    // Beside the cursor, on the side that has more room.
    place(left) {
      const { offsetLeft, offsetWidth } = this.plot.over;
      const isRight = left > offsetWidth / 2;
      this.tip.style.top = "8px";
      this.tip.style.left = isRight ? "auto" : `${offsetLeft + left + 12}px`;
      this.tip.style.right = isRight ? `${this.slider.clientWidth - offsetLeft - left + 12}px` : "auto";
    }

    onKey(event) {
      const last = this.data[0].length - 1;
      const now = this.at ?? last;
      const far = Math.max(1, Math.round(last / 10));
      const to = {
        ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1,
        PageDown: now - far, PageUp: now + far, Home: 0, End: last,
      }[event.key];
      const zoom = { "+": 0.5, "=": 0.5, "-": 2, "0": Infinity }[event.key];
      if (event.ctrlKey || event.metaKey || event.altKey || (to === undefined && zoom === undefined)) return;
      event.preventDefault();
      if (zoom !== undefined) return this.figure.zoom(zoom, this.at == null ? null : this.data[0][this.at]);
      this.moveTo(Math.min(Math.max(to, 0), last));
    }

    moveTo(at) {
      this.at = at;
      const step = this.data[0][at];
      this.figure.reveal(step);
      const values = this.readout(at).map(({ curve, value }) => `${curve.label} ${shown(value)}`);
      this.slider.setAttribute("aria-valuenow", step);
      this.slider.setAttribute("aria-valuetext", `${this.figure.data.x} ${steps.format(step)}: ${values.join("; ") || "all curves hidden"}`);
      this.plot.setCursor({ left: this.plot.valToPos(step, "x"), top: 0 });
      this.point(at); // where the cursor was there already nothing is announced
    }
  }

  class Figure {
    constructor(node) {
      this.node = node;
      this.data = JSON.parse(node.querySelector("script[type='application/json']").textContent);
      this.hidden = new Set();
      this.panels = this.data.panels.map((panel) => new Panel(this, panel));
      const all = this.panels.flatMap(({ data }) => data[0]);
      this.whole = { min: Math.min(...all), max: Math.max(...all) };
      if (this.whole.min === this.whole.max) this.whole.max += 1;
      this.range = this.whole;
    }

    show() {
      const live = this.node.querySelector(".live");
      const panels = element("div", { class: "panels" });
      panels.append(...this.panels.map((panel) => panel.node));
      live.append(panels, this.tools());
      this.node.classList.add("is-live");
      this.panels.forEach((panel) => panel.draw());
      this.setRange(this.whole);
      this.node.querySelectorAll(".legend li").forEach((item, n) => this.toggle(item, n));
    }

    tools() {
      const tools = element("div", { class: "tools", role: "group", "aria-label": `Zoom: ${this.node.dataset.title}` });
      for (const [text, factor] of [["Zoom in", 0.5], ["Zoom out", 2], ["Whole", Infinity]]) {
        const button = element("button", { type: "button" }, text);
        button.addEventListener("click", () => this.zoom(factor, null));
        tools.append(button);
      }
      tools.append(element("span", { class: "muted" }, "Point at a curve for values; drag over it to zoom; arrow keys, + and - do both."));
      return tools;
    }

    toggle(item, curve) {
      const button = element("button", { type: "button", "aria-pressed": "true" });
      button.append(...item.childNodes);
      item.append(button);
      button.addEventListener("click", () => {
        const hides = !this.hidden.delete(curve);
        if (hides) this.hidden.add(curve);
        button.setAttribute("aria-pressed", String(!hides));
        for (const panel of this.panels) {
          panel.rows.forEach((row, n) => row.curve === curve && panel.plot.setSeries(n + 1, { show: !hides }));
        }
        if (this.data.sharesScale) this.setRange(this.range);
      });
    }

    isShown(curve) {
      return !this.hidden.has(curve);
    }

    // One upright range for panels that share their scale: of what can be seen at these steps.
    yRange(low, high) {
      if (this.data.sharesScale) [low, high] = this.extent() ?? [low, high];
      if (low == null) return [0, 1];
      const margin = (high - low || Math.abs(high) || 1) * 0.06;
      return [low - margin, high + margin];
    }

    extent() {
      const values = [];
      for (const panel of this.panels) {
        const at = panel.data[0];
        panel.rows.forEach((row, n) => {
          if (!this.isShown(row.curve)) return;
          panel.data[n + 1].forEach((y, i) => y != null && at[i] >= this.range.min && at[i] <= this.range.max && values.push(y));
        });
      }
      if (!values.length) return null;
      return values.reduce(([low, high], y) => [Math.min(low, y), Math.max(high, y)], [Infinity, -Infinity]);
    }

    // All panels show the same steps, whichever was zoomed.
    share(from, { min, max }) {
      if (this.isSharing || min == null || (min === this.range.min && max === this.range.max)) return;
      queueMicrotask(() => this.setRange({ min, max })); // the plot that tells of it is not done yet
    }

    setRange({ min, max }) {
      this.isSharing = true;
      this.range = { min: Math.max(min, this.whole.min), max: Math.min(max, this.whole.max) };
      for (const { plot, slider } of this.panels) {
        plot.batch(() => plot.setScale("x", this.range));
        Object.assign(slider.dataset, { from: this.range.min, to: this.range.max });
      }
      this.isSharing = false;
    }

    zoom(factor, about) {
      if (factor === Infinity) return this.setRange(this.whole);
      const { min, max } = this.range;
      const centre = about ?? (min + max) / 2;
      const half = Math.max(((max - min) * factor) / 2, 1);
      const wholeHalf = (this.whole.max - this.whole.min) / 2;
      if (half >= wholeHalf) return this.setRange(this.whole);
      const low = Math.min(Math.max(centre - half, this.whole.min), this.whole.max - 2 * half);
      this.setRange({ min: low, max: low + 2 * half });
    }

    reveal(step) {
      const { min, max } = this.range;
      if (step >= min && step <= max) return;
      const half = (max - min) / 2;
      this.setRange({ min: step - half, max: step + half });
    }

    redraw() {
      this.panels.forEach(({ plot }) => plot.redraw(false));
    }
  }

  const figures = [...document.querySelectorAll("figure.curves")].map((node) => new Figure(node));
  figures.forEach((figure) => figure.show());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => figures.forEach((figure) => figure.redraw()));
  // What fits is nothing to scroll, and no stop for who goes by keyboard.
  const scrolls = () => document.querySelectorAll(".wide, .static, pre").forEach((node) => {
    if (node.scrollWidth > node.clientWidth) node.setAttribute("tabindex", "0");
    else node.removeAttribute("tabindex");
  });
  scrolls();
  addEventListener("resize", scrolls);
  document.addEventListener("toggle", scrolls, true);
})();
