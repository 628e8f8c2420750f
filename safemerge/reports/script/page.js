  const run = JSON.parse(document.getElementById("payload").textContent);
  const SVG = "http:" + "//www.w3.org/2000/svg"; // a namespace's name; nothing is loaded
  const byId = (id) => document.getElementById(id);
  for (const trial of run.trials) {
    // Estimates come in the order of the metrics; what is left out is false or empty.
    for (const split of ["search", "report"]) {
      if (!trial[split]) continue;
      trial[split] = Object.fromEntries(Object.keys(run.metrics).map((name, k) => [name, trial[split][k]]));
    }
    trial.sound = trial.sound || [];
    trial.params = trial.params || {};
  }
  const byNumber = new Map(run.trials.map((trial) => [trial.number, trial]));

  // --- Drawing ---------------------------------------------------------------------------

  function draw(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    for (const child of children) {
      node.append(typeof child === "string" ? document.createTextNode(child) : child);
    }
    return node;
  }

  function make(tag, text, css) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (css) node.className = css;
    return node;
  }

  function niceTicks(low, high, count) {
    const span = high - low || 1;
    const raw = span / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) ticks.push(k * step);
    if (ticks.length < 3 && count < 9) return niceTicks(low, high, count + 1);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return { ticks, text: (value) => minus(value.toFixed(digits)) };
  }

  const minus = (text) => String(text).replace("-", "\u2212");
  const scale = (metric) => run.metrics[metric].scale; // 100 where a share is shown in percent
  const isShare = (metric) => scale(metric) === 100;
  // One decimal, an exact tie to the even digit, as the tables that Python writes have it.
  const tenths = (value) => {
    const below = Math.floor(10 * value);
    return 10 * value - below === 0.5 ? ((below + Math.abs(below % 2)) / 10).toFixed(1) : value.toFixed(1);
  };
  const amount = (value, metric) =>
    value === null ? "not scored" : minus(isShare(metric) ? tenths(100 * value) : Number(value.toPrecision(4)));

  function frame(box, { height, left, right = 14, top = 10, bottom = 44, x, y, xTitle, yTitle, label, xTicks, yTicks }) {
    const width = Math.max(box.clientWidth, 180);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
    const plot = { x0: left, x1: width - right, y0: height - bottom, y1: top };
    const px = (value) => plot.x0 + ((value - x[0]) / (x[1] - x[0] || 1)) * (plot.x1 - plot.x0);
    const py = (value) => plot.y0 - ((value - y[0]) / (y[1] - y[0] || 1)) * (plot.y0 - plot.y1);
    const across = xTicks || niceTicks(x[0], x[1], Math.max(3, Math.floor((plot.x1 - plot.x0) / 70)));
    const up = yTicks || niceTicks(y[0], y[1], Math.max(4, Math.floor((plot.y0 - plot.y1) / 45)));
    for (const tick of up.ticks) {
      svg.append(draw("line", { class: "grid", x1: plot.x0, x2: plot.x1, y1: py(tick), y2: py(tick) }));
      svg.append(draw("text", { x: plot.x0 - 7, y: py(tick) + 4, "text-anchor": "end" }, up.text(tick)));
    }
    for (const tick of across.ticks) {
      svg.append(draw("line", { class: "grid", x1: px(tick), x2: px(tick), y1: plot.y0, y2: plot.y1 }));
      svg.append(draw("text", { x: px(tick), y: plot.y0 + 17, "text-anchor": "middle" }, across.text(tick)));
    }
    svg.append(draw("line", { class: "axis", x1: plot.x0, x2: plot.x1, y1: plot.y0, y2: plot.y0 }));
    svg.append(draw("line", { class: "axis", x1: plot.x0, x2: plot.x0, y1: plot.y0, y2: plot.y1 }));
    if (xTitle) svg.append(draw("text", { class: "title", x: plot.x1, y: plot.y0 + 36, "text-anchor": "end" }, xTitle));
    if (yTitle) {
      svg.append(draw("text", {
        class: "title", x: -plot.y1, y: 13, "text-anchor": "end", transform: "rotate(-90)",
      }, yTitle));
    }
    return { svg, plot, px, py };
  }

  function mark(kind, x, y, size, css) {
    const d = {
      circle: `M${x - size},${y}a${size},${size} 0 1,0 ${2 * size},0a${size},${size} 0 1,0 ${-2 * size},0Z`,
      diamond: `M${x},${y - size * 1.35}L${x + size * 1.35},${y}L${x},${y + size * 1.35}L${x - size * 1.35},${y}Z`,
      cross: `M${x - size},${y - size}L${x + size},${y + size}M${x - size},${y + size}L${x + size},${y - size}`,
      triangle: `M${x},${y - size * 1.2}L${x + size * 1.15},${y + size * 0.9}L${x - size * 1.15},${y + size * 0.9}Z`,
    }[kind];
    return draw("path", { d, class: css });
  }

  const direction = (metric) => run.metrics[metric].direction;
  const axisTitle = (metric) =>
    `${metric} (${isShare(metric) ? "%, " : ""}${direction(metric) === "maximize" ? "higher" : "lower"} is better)`;

  // Corners of the boundary that points attain: between two, only the worse of both values.
  function frontLine(items, xMetric, yMetric) {
    const sx = direction(xMetric) === "maximize" ? -1 : 1;
    const sy = direction(yMetric) === "maximize" ? -1 : 1;
    const better = (a, b) =>
      sx * a.x[0] <= sx * b.x[0] && sy * a.y[0] <= sy * b.y[0] &&
      (sx * a.x[0] < sx * b.x[0] || sy * a.y[0] < sy * b.y[0]);
    const kept = items.filter((item) => !items.some((other) => better(other, item)));
    kept.sort((a, b) => a.x[0] - b.x[0] || a.y[0] - b.y[0]);
    const corners = kept.length ? [[kept[0].x[0], kept[0].y[0]]] : [];
    for (let k = 1; k < kept.length; k += 1) {
      const [before, after] = [kept[k - 1], kept[k]];
      corners.push(sx < 0 ? [before.x[0], after.y[0]] : [after.x[0], before.y[0]]);
      corners.push([after.x[0], after.y[0]]);
    }
    return corners;
  }

  function describe(estimate, metric) {
    if (!estimate) return "not measured";
    const [value, low, high, n, unscored] = estimate;
    const tail = `n ${n}${unscored ? `, ${unscored} unscored` : ""}`;
    return value === null ? `not scored (${tail})` : `${amount(value, metric)}${isShare(metric) ? " %" : ""} ${low === null || high === null ? "" : `[${amount(low, metric)}, ${amount(high, metric)}]`}, ${tail}`;
  }

  function copyText(button) {
    const { copy, before } = button.dataset;
    if (!before) button.dataset.before = button.textContent;
    const say = (word) => {
      button.textContent = word;
      setTimeout(() => { button.textContent = button.dataset.before; }, 1500);
    };
    const select = () => {
      const span = document.createRange();
      span.selectNodeContents(button.previousElementSibling);
      const selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(span);
      say("selected");
    };
    if (navigator.clipboard) navigator.clipboard.writeText(copy).then(() => say("copied"), select);
    else select();
  }

  function download(name, type, text) {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name.replace(/[^\w.-]+/g, "_");
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const isNumber = (value) => typeof value === "number";
  const recipeText = (trial) => {
    const [[, name], ...rest] = trial.coefficients;
    const parts = rest.map(([key, value]) => `${key.replace(/^weights\./, "")} ${value}`);
    return parts.length ? `${name}: ${parts.join(", ")}` : name;
  };
