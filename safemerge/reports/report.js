"use strict";
(() => {
  const run = JSON.parse(document.getElementById("payload").textContent);
  const SVG = "http:" + "//www.w3.org/2000/svg"; // a namespace's name; nothing is loaded
  const byId = (id) => document.getElementById(id);

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
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return { ticks, text: (value) => minus(value.toFixed(digits)) };
  }

  const minus = (text) => String(text).replace("-", "\u2212");
  const scale = (metric) => run.metrics[metric].scale; // 100 where a share is told in percent
  const isShare = (metric) => scale(metric) === 100;
  const amount = (value, metric) =>
    value === null ? "not scored" : minus(isShare(metric) ? (100 * value).toFixed(1) : Number(value.toPrecision(4)));

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

  // --- Skill against harm ----------------------------------------------------------------

  const KINDS = {
    front: { shape: "circle", size: 5.5, css: "m-front", text: "front point" },
    parentFront: { shape: "diamond", size: 5.5, css: "m-front", text: "reference point on the front" },
    reference: { shape: "diamond", size: 5.5, css: "m-reference", text: "reference point" },
    dominated: { shape: "circle", size: 4, css: "m-dominated", text: "dominated trial" },
    infeasible: { shape: "triangle", size: 5, css: "m-infeasible", text: "infeasible trial" },
    none: { shape: "cross", size: 4.5, css: "m-none", text: "no value (failed, broken or pruned)" },
  };

  function kindOf(trial) {
    if (trial.front) return trial.role === "reference" ? "parentFront" : "front";
    if (["failed", "broken", "pruned"].includes(trial.outcome)) return "none";
    if (trial.reference) return "reference";
    return trial.outcome === "infeasible" ? "infeasible" : "dominated";
  }

  const direction = (metric) => run.metrics[metric].direction;
  const axisTitle = (metric) =>
    `${metric} (${isShare(metric) ? "%, " : ""}${direction(metric) === "maximize" ? "higher" : "lower"} is better)`;

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

  function drawScatter() {
    const box = byId("scatter");
    if (!box) return;
    const split = document.querySelector("input[name=split]:checked").value;
    const xMetric = byId("axis-x").value;
    const yMetric = byId("axis-y").value;
    const show = (key) => byId(`show-${key}`).checked;
    const placed = [];
    const strip = [];
    let unreported = 0;
    for (const trial of run.trials) {
      const kind = kindOf(trial);
      if (kind === "reference" && !show("references")) continue;
      if (kind === "dominated" && !show("dominated")) continue;
      if ((kind === "infeasible" || kind === "none") && !show("infeasible")) continue;
      const estimates = trial[split];
      const over = trial.front && estimates && !trial.sound[split];
      const x = estimates && estimates[xMetric];
      const y = estimates && estimates[yMetric];
      if (x && y && x[0] !== null && y[0] !== null) placed.push({ trial, kind, x, y, estimates, over });
      else if (split === "report" && !trial.front && !trial.reference) unreported += 1;
      else strip.push({ trial, kind, estimates, over });
    }
    box.textContent = "";
    if (!placed.length && !strip.length) {
      drawLegend([]);
      byId("scatter-note").textContent = "";
      box.append(make("p", run.trials.length ? "No trial to show with these settings." : "No trial has finished yet.", "quiet"));
      return;
    }
    const hasStrip = strip.length > 0;
    const ends = (key) => placed.flatMap((item) =>
      show("intervals") && item[key][1] !== null && (item.kind !== "dominated" && item.kind !== "infeasible")
        ? item[key].slice(0, 3) : [item[key][0]]);
    const range = (values, metric) => {
      if (!values.length) return [0, scale(metric)];
      const low = scale(metric) * Math.min(...values);
      const high = scale(metric) * Math.max(...values);
      const room = Math.max((high - low) * 0.06, isShare(metric) ? 1 : 0.02 * Math.abs(high) || 0.01);
      if (!isShare(metric)) return [low - room, high + room];
      return [Math.max(low - room, low >= 0 ? -1.5 : low - room), Math.min(high + room, high <= 100 ? 101.5 : high + room)];
    };
    const width = box.clientWidth;
    const height = Math.round(Math.min(Math.max(width * 0.58, 340), 540)) + (hasStrip ? 34 : 0);
    const { svg, plot, px, py } = frame(box, {
      height, left: 46, bottom: 44 + (hasStrip ? 34 : 0), x: range(ends("x"), xMetric), y: range(ends("y"), yMetric),
      xTitle: hasStrip ? "" : axisTitle(xMetric), yTitle: axisTitle(yMetric),
      label: `${yMetric} against ${xMetric}, ${split} split: ${placed.length} points`,
    });
    if (hasStrip) {
      svg.append(draw("text", { class: "title", x: plot.x1, y: plot.y0 + 36, "text-anchor": "end" }, axisTitle(xMetric)));
      svg.append(draw("text", { x: plot.x0, y: plot.y0 + 66 }, "no value:"));
    }
    const goodX = direction(xMetric) === "maximize";
    const goodY = direction(yMetric) === "maximize";
    const arrow = goodX ? (goodY ? "better \u2197" : "better \u2198") : (goodY ? "\u2196 better" : "\u2199 better");
    svg.append(draw("text", {
      x: goodX ? plot.x1 - 6 : plot.x0 + 8, y: goodY ? plot.y1 + 16 : plot.y0 - 8,
      "text-anchor": goodX ? "end" : "start",
    }, arrow));

    const [kx, ky] = [scale(xMetric), scale(yMetric)];
    const sound = placed.filter((item) => item.trial.front && !item.over);
    const corners = frontLine(sound, xMetric, yMetric).map(([x, y]) => [px(kx * x), py(ky * y)]);
    if (corners.length > 1) {
      svg.append(draw("path", { class: "front-line", d: `M${corners.map((c) => c.join(",")).join("L")}` }));
    }
    const order = ["dominated", "infeasible", "reference", "parentFront", "front"];
    placed.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
    for (const item of placed) {
      item.px = px(kx * item.x[0]);
      item.py = py(ky * item.y[0]);
      if (show("intervals") && ["front", "parentFront", "reference"].includes(item.kind) && item.x[1] !== null && item.y[1] !== null) {
        const css = `whiskers ${item.kind === "reference" ? "w-reference" : "w-front"}`;
        svg.append(draw("line", { class: css, x1: px(kx * item.x[1]), x2: px(kx * item.x[2]), y1: item.py, y2: item.py }));
        svg.append(draw("line", { class: css, x1: item.px, x2: item.px, y1: py(ky * item.y[1]), y2: py(ky * item.y[2]) }));
      }
    }
    for (const item of placed) {
      const style = KINDS[item.kind];
      const over = item.over ? " over" : "";
      svg.append(mark(style.shape, item.px, item.py, style.size, style.css + over));
      if (item.trial.knee) svg.append(draw("circle", { class: "knee-ring", cx: item.px, cy: item.py, r: 11 }));
    }
    strip.forEach((item, index) => {
      const room = Math.max(9, Math.min(18, (plot.x1 - plot.x0 - 80) / strip.length));
      item.px = plot.x0 + 70 + room * index;
      item.py = plot.y0 + 62;
      const style = KINDS[item.kind];
      svg.append(mark(style.shape, item.px, item.py, style.size, style.css));
    });
    placeLabels(svg, placed, corners, plot);
    const all = [...placed, ...strip];
    for (const item of all) hitTarget(svg, box, item, split, xMetric, yMetric);
    box.append(svg);
    drawLegend(all);
    const notes = [];
    if (split === "report") {
      notes.push("Only front points and reference points were evaluated on the report split.");
      if (unreported) notes.push(`${unreported} other ${unreported === 1 ? "trial is" : "trials are"} on the search split only.`);
    } else notes.push("Search-split values chose the front, so those of front points are flattered.");
    notes.push("The line is the boundary that the front points attain on these axes.");
    byId("scatter-note").textContent = notes.join(" ");
  }

  function placeLabels(svg, placed, corners, plot) {
    const wanted = placed.filter((item) => item.trial.knee || item.trial.role === "reference");
    wanted.sort((a, b) => Number(b.trial.knee) - Number(a.trial.knee));
    const boxes = placed.map((item) => [item.px - 6, item.py - 6, item.px + 6, item.py + 6, 1]);
    for (let k = 1; k < corners.length; k += 1) {
      const [a, b] = [corners[k - 1], corners[k]];
      boxes.push([Math.min(a[0], b[0]) - 1, Math.min(a[1], b[1]) - 1, Math.max(a[0], b[0]) + 1, Math.max(a[1], b[1]) + 1, 0.7]);
    }
    for (const item of wanted) {
      const text = item.trial.knee ? `knee: ${item.trial.name}` : item.trial.name;
      const width = 6.9 * text.length + 4;
      let best = null;
      for (const gap of [9, 18, 30]) {
        for (const [sx, sy] of [[1, -1], [1, 1], [-1, -1], [-1, 1], [0, -1], [0, 1]]) {
          const x = sx === 0 ? item.px - width / 2 : sx > 0 ? item.px + gap : item.px - gap - width;
          const y = sy < 0 ? item.py - gap * 0.6 - 12 : item.py + gap * 0.6;
          const rect = [x, y, x + width, y + 13];
          let cost = gap / 60;
          for (const other of boxes) {
            if (rect[0] < other[2] && rect[2] > other[0] && rect[1] < other[3] && rect[3] > other[1]) cost += other[4];
          }
          if (rect[0] < plot.x0 || rect[2] > plot.x1 || rect[1] < plot.y1 || rect[3] > plot.y0) cost += 8;
          if (!best || cost < best.cost) best = { cost, rect, gap };
        }
      }
      if (best.gap > 18) {
        svg.append(draw("line", { class: "axis", x1: item.px, y1: item.py, x2: (best.rect[0] + best.rect[2]) / 2, y2: (best.rect[1] + best.rect[3]) / 2 }));
      }
      svg.append(draw("text", {
        class: `label ${item.kind === "reference" ? "t-reference" : "t-front"}`,
        x: best.rect[0] + 2, y: best.rect[1] + 11,
      }, text));
      boxes.push([...best.rect, 6]);
    }
  }

  function describe(estimate, metric) {
    if (!estimate) return "not measured";
    const [value, low, high, n, unscored] = estimate;
    const tail = `n ${n}${unscored ? `, ${unscored} unscored` : ""}`;
    return value === null ? `not scored (${tail})` : `${amount(value, metric)}${isShare(metric) ? " %" : ""} ${low === null || high === null ? "" : `[${amount(low, metric)}, ${amount(high, metric)}]`}, ${tail}`;
  }

  function hitTarget(svg, box, item, split, xMetric, yMetric) {
    const { trial } = item;
    const said = item.estimates && item.x ? [xMetric, yMetric].map((m) => `${m} ${describe(item.estimates[m], m)}`).join("; ") : "no value";
    const node = draw("circle", {
      class: "hit", cx: item.px, cy: item.py, r: 11, tabindex: 0, role: "img",
      "aria-label": `${trial.name}, ${KINDS[item.kind].text}: ${said}`,
    });
    const open = () => {
      closeTips();
      node.classList.add("on");
      for (const row of document.querySelectorAll("tr[data-row]")) row.classList.toggle("linked", row.dataset.row === String(trial.number));
      const tip = make("div", undefined, "tip");
      tip.append(make("b", trial.knee ? `${trial.name} (knee)` : trial.name));
      tip.append(make("div", `${KINDS[item.kind].text}, ${split} split`, "quiet"));
      const names = [...new Set([xMetric, yMetric, ...run.objectives, ...Object.keys(run.budgets)])];
      if (item.estimates) for (const name of names) tip.append(make("div", `${name}: ${describe(item.estimates[name], name)}`));
      if (item.over) tip.append(make("div", "breaks a limit on this split"));
      if (trial.reason) tip.append(make("div", trial.reason));
      tip.append(make("div", trial.coefficients.map(([key, value]) => `${key} ${value}`).join(", "), "quiet"));
      box.append(tip);
      const scale = box.clientWidth / svg.viewBox.baseVal.width;
      const left = item.px * scale + 16;
      tip.style.left = `${left + tip.offsetWidth > box.clientWidth ? Math.max(0, left - 32 - tip.offsetWidth) : left}px`;
      tip.style.top = `${Math.max(0, item.py * scale - tip.offsetHeight - 8)}px`;
    };
    for (const event of ["pointerenter", "focus", "click"]) node.addEventListener(event, open);
    for (const event of ["pointerleave", "blur"]) node.addEventListener(event, closeTips);
    svg.append(node);
  }

  function closeTips() {
    for (const tip of document.querySelectorAll(".tip")) tip.remove();
    for (const node of document.querySelectorAll(".hit.on")) node.classList.remove("on");
    for (const row of document.querySelectorAll("tr.linked")) row.classList.remove("linked");
  }

  function drawLegend(items) {
    const list = byId("scatter-legend");
    list.textContent = "";
    for (const [kind, style] of Object.entries(KINDS)) {
      const count = items.filter((item) => item.kind === kind).length;
      if (!count) continue;
      const entry = make("li");
      const svg = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
      svg.append(mark(style.shape, 8, 8, Math.min(style.size, 5), style.css));
      entry.append(svg, `${style.text} (${count})`);
      list.append(entry);
    }
    const over = items.some((item) => item.over);
    if (over) list.append(make("li", "hollow front mark: breaks a limit on this split"));
  }

  // --- Hypervolume, parameters, timings --------------------------------------------------

  function drawHypervolume() {
    const box = byId("hypervolume");
    if (!box || !run.hypervolume.length) return;
    box.textContent = "";
    const steps = run.hypervolume;
    const top = Math.max(...steps.map((step) => step[2]), 1e-9);
    const { svg, plot, px, py } = frame(box, {
      height: 260, left: 46, x: [0, steps.length], y: [0, top * 1.12],
      xTitle: "finished trials, those without a value included", label: `hypervolume over ${steps.length} trials`,
    });
    let path = `M${px(0)},${py(0)}`;
    for (const [finished, , value] of steps) path += `H${px(finished)}V${py(value)}`;
    svg.append(draw("path", { class: "hv-line", d: path }));
    const alone = run.hypervolume_references;
    const last = steps[steps.length - 1][2];
    if (alone !== null) {
      svg.append(draw("line", { class: "hv-reference", x1: plot.x0, x2: plot.x1, y1: py(alone), y2: py(alone) }));
      svg.append(draw("text", { class: "label t-reference", x: plot.x1, y: py(alone) + 16, "text-anchor": "end" }, `reference points alone: ${alone.toFixed(3)}`));
    }
    svg.append(draw("text", { class: "label t-front", x: plot.x1, y: py(last) - 7, "text-anchor": "end" }, last.toFixed(3)));
    let before = 0;
    for (const [finished, number, value] of steps) {
      if (value > before) {
        const dot = draw("circle", { class: "m-front", cx: px(finished), cy: py(value), r: 3.5 });
        dot.append(draw("title", {}, `trial ${number}: ${before.toFixed(4)} to ${value.toFixed(4)}`));
        svg.append(dot);
      }
      before = value;
    }
    box.append(svg);
  }

  function drawParameters() {
    const box = byId("parameters");
    if (!box) return;
    box.textContent = "";
    const trials = run.trials.filter((trial) => trial.role === "sampled" && trial.search);
    const names = [...new Set(trials.flatMap((trial) => Object.keys(trial.params)))].sort();
    for (const metric of run.objectives) {
      box.append(make("h3", axisTitle(metric)));
      const valued = trials.filter((trial) => trial.search[metric] && trial.search[metric][0] !== null);
      if (!valued.length) continue;
      const ys = valued.map((trial) => scale(metric) * trial.search[metric][0]);
      const room = Math.max((Math.max(...ys) - Math.min(...ys)) * 0.08, isShare(metric) ? 0.5 : 0.01 * Math.abs(Math.max(...ys)) || 0.01);
      for (const name of names) {
        const chosen = valued.filter((trial) => name in trial.params);
        const cell = make("div", undefined, "multiple");
        box.append(cell);
        const isNumber = chosen.every((trial) => typeof trial.params[name] === "number");
        const levels = [...new Set(chosen.map((trial) => String(trial.params[name])))].sort();
        const coordinate = (trial) => (isNumber ? trial.params[name] : levels.indexOf(String(trial.params[name])));
        const xs = chosen.map(coordinate);
        const gap = isNumber ? Math.max((Math.max(...xs) - Math.min(...xs)) * 0.06, 1e-6) : 0.5;
        const { svg, px, py } = frame(cell, {
          height: 168, left: 30, right: 8, bottom: 40, x: [Math.min(...xs) - gap, Math.max(...xs) + gap],
          y: [Math.min(...ys) - room, Math.max(...ys) + room], xTitle: name.replace(/^method\./, ""),
          label: `${metric} against ${name}`,
          xTicks: isNumber ? undefined : { ticks: levels.map((_, index) => index), text: (index) => levels[index] },
        });
        for (const isFront of [false, true]) {
          for (const trial of chosen.filter((item) => item.front === isFront)) {
            const kind = KINDS[kindOf(trial)];
            const node = mark(kind.shape, px(coordinate(trial)), py(scale(metric) * trial.search[metric][0]), isFront ? 4 : 3, kind.css);
            node.append(draw("title", {}, `${trial.name}: ${name} ${trial.params[name]}, ${metric} ${describe(trial.search[metric], metric)}`));
            svg.append(node);
          }
        }
        cell.append(svg);
      }
    }
  }

  function drawTimings() {
    const box = byId("timings");
    if (!box) return;
    box.textContent = "";
    const { parts, candidates } = run.timings;
    const totals = candidates.map((row) => row.slice(2).reduce((a, b) => a + b, 0));
    const { svg, plot, px, py } = frame(box, {
      height: 250, left: 46, x: [0, candidates.length], y: [0, Math.max(...totals, 1e-9) * 1.05],
      xTitle: candidates.some(([, split]) => split === "rung")
        ? "evaluations: low rung, then search split, then report split"
        : "evaluations: search split, then report split", yTitle: "seconds",
      label: `seconds by part for ${candidates.length} evaluations`,
    });
    const width = (plot.x1 - plot.x0) / candidates.length;
    candidates.forEach(([number, split, ...seconds], index) => {
      const bar = draw("g");
      let base = 0;
      seconds.forEach((value, part) => {
        bar.append(draw("rect", {
          class: `p-${parts[part]}`, x: px(index) + width * 0.08, width: width * 0.84,
          y: py(base + value), height: Math.max(py(base) - py(base + value), 0),
        }));
        base += value;
      });
      bar.append(draw("title", {}, `trial ${number}, ${split === "rung" ? "low rung" : `${split} split`}: ${parts.map((part, k) => `${part} ${seconds[k].toFixed(1)} s`).join(", ")}`));
      svg.append(bar);
    });
    const legend = make("ul", undefined, "legend");
    legend.append(make("li", "from the bottom up:"));
    for (const part of parts) {
      const entry = make("li");
      const key = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
      key.append(draw("rect", { class: `p-${part}`, x: 2, y: 2, width: 12, height: 12 }));
      entry.append(key, part);
      legend.append(entry);
    }
    box.append(legend, svg);
  }

  // --- Tables ----------------------------------------------------------------------------

  function sortable(table) {
    // A row with details below it has a body of its own, and moves with it.
    const grouped = table.classList.contains("grouped");
    const first = (unit) => (grouped ? unit.rows[0] : unit);
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = make("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => first(row).cells[column].dataset.sort || "";
        const rows = [...(grouped ? table.tBodies : table.tBodies[0].rows)];
        const numeric = rows.every((row) => key(row) === "" || Number.isFinite(Number(key(row))));
        rows.sort((a, b) => {
          const [left, right] = [key(a), key(b)];
          if (left === "" || right === "") return Number(left === "") - Number(right === "");
          const sign = numeric ? Number(left) - Number(right) : left.localeCompare(right);
          return down ? -sign : sign;
        });
        (grouped ? table : table.tBodies[0]).append(...rows);
      });
    });
  }

  function copyText(button) {
    const text = button.dataset.copy;
    const done = () => {
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    };
    const select = () => {
      const span = document.createRange();
      span.selectNodeContents(button.previousElementSibling);
      const selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(span);
      button.textContent = "selected";
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, select);
    else select();
  }

  // --- Start -----------------------------------------------------------------------------

  function drawAll() {
    drawScatter();
    drawHypervolume();
    drawParameters();
    drawTimings();
  }

  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copyText(button));
  const controls = byId("scatter-controls");
  if (controls) controls.addEventListener("change", drawScatter);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") closeTips(); });
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
  let width = 0;
  let waiting = 0;
  new ResizeObserver(() => {
    const now = byId("main").clientWidth;
    if (now === width) return;
    width = now;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(drawAll);
  }).observe(byId("main"));
  drawAll();
})();
