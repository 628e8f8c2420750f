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

  // What the chart shows now: every placed point, by trial number.
  let shown = new Map();

  function chosen(split, xMetric, yMetric) {
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
      const over = trial.front && estimates && !trial.sound.includes(split);
      const x = estimates && estimates[xMetric];
      const y = estimates && estimates[yMetric];
      const item = { trial, kind, x, y, estimates, over };
      if (x && y && x[0] !== null && y[0] !== null) placed.push(item);
      else if (split === "report" && !trial.front && !trial.reference) unreported += 1;
      else strip.push(item);
    }
    const order = ["dominated", "infeasible", "reference", "parentFront", "front"];
    placed.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
    return { placed, strip, unreported };
  }

  function rangeOf(placed, key, metric) {
    const values = placed.flatMap((item) =>
      byId("show-intervals").checked && item[key][1] !== null && !["dominated", "infeasible"].includes(item.kind)
        ? item[key].slice(0, 3) : [item[key][0]]);
    if (!values.length) return [0, scale(metric)];
    const low = scale(metric) * Math.min(...values);
    const high = scale(metric) * Math.max(...values);
    const room = Math.max((high - low) * 0.06, isShare(metric) ? 1 : 0.02 * Math.abs(high) || 0.01);
    if (!isShare(metric)) return [low - room, high + room];
    return [Math.max(low - room, low >= 0 ? -1.5 : low - room), Math.min(high + room, high <= 100 ? 101.5 : high + room)];
  }

  // Beyond a limit on one of the axes, and the limit itself.
  function drawLimits(svg, plot, px, py, axes) {
    axes.forEach((metric, place) => {
      const limit = run.budgets[metric];
      if (!limit) return;
      const at = (place === 0 ? px : py)(scale(metric) * limit.budget);
      const [low, high] = place === 0 ? [plot.x0, plot.x1] : [plot.y1, plot.y0];
      if (at <= low || at >= high) return;
      const isBeyond = (limit.direction === "minimize") === (place === 0); // on the side of larger pixels
      const [from, to] = isBeyond ? [at, high] : [low, at];
      const box = place === 0
        ? { x: from, width: to - from, y: plot.y1, height: plot.y0 - plot.y1 }
        : { x: plot.x0, width: plot.x1 - plot.x0, y: from, height: to - from };
      svg.append(draw("rect", { class: "beyond", ...box }));
      const ends = place === 0
        ? { x1: at, x2: at, y1: plot.y1, y2: plot.y0 } : { x1: plot.x0, x2: plot.x1, y1: at, y2: at };
      svg.append(draw("line", { class: "limit", ...ends }));
      svg.append(draw("text", place === 0
        ? { x: at + 4, y: plot.y1 + 12 } : { x: plot.x1 - 4, y: at - 4, "text-anchor": "end" },
      `limit ${amount(limit.budget, metric)}`));
    });
  }

  function sizes(placed, metric) {
    const values = placed.map((item) => (metric && item.estimates[metric] ? item.estimates[metric][0] : null));
    const known = values.filter((value) => value !== null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    placed.forEach((item, k) => {
      const share = values[k] === null || high === low ? 0.35 : (values[k] - low) / (high - low);
      item.size = KINDS[item.kind].size * (metric ? 0.7 + 0.9 * share : 1);
    });
  }

  function drawScatter() {
    const box = byId("scatter");
    if (!box) return;
    const hadFocus = box.contains(document.activeElement);
    const split = document.querySelector("input[name=split]:checked").value;
    const [xMetric, yMetric, sizeMetric] = ["x", "y", "size"].map((axis) => byId(`axis-${axis}`).value);
    const { placed, strip, unreported } = chosen(split, xMetric, yMetric);
    shown = new Map();
    box.textContent = "";
    if (!placed.length && !strip.length) {
      drawLegend([]);
      byId("scatter-note").textContent = "";
      box.append(make("p", run.trials.length ? "No trial to show with these settings." : "No trial has finished yet.", "quiet"));
      return;
    }
    sizes(placed, sizeMetric);
    const extra = strip.length > 0 ? 34 : 0;
    const width = box.clientWidth;
    const height = Math.round(Math.min(Math.max(width * 0.56, 290), 400)) + extra;
    const { svg, plot, px, py } = frame(box, {
      height, left: 46, bottom: 44 + extra, x: rangeOf(placed, "x", xMetric), y: rangeOf(placed, "y", yMetric),
      xTitle: axisTitle(xMetric), yTitle: axisTitle(yMetric),
      label: `${yMetric} against ${xMetric}, ${split} split: ${placed.length} points`,
    });
    if (extra) svg.append(draw("text", { x: plot.x0, y: plot.y0 + 66 }, "no value:"));
    drawLimits(svg, plot, px, py, [xMetric, yMetric]);
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
    for (const item of placed) {
      item.px = px(kx * item.x[0]);
      item.py = py(ky * item.y[0]);
      if (byId("show-ties").checked && item.trial.tied) svg.append(draw("circle", { class: "tie", cx: item.px, cy: item.py, r: 14 }));
    }
    for (const item of placed) {
      if (!byId("show-intervals").checked || !["front", "parentFront", "reference"].includes(item.kind) || item.x[1] === null || item.y[1] === null) continue;
      const css = `whiskers ${item.kind === "reference" ? "w-reference" : "w-front"}`;
      svg.append(draw("line", { class: css, x1: px(kx * item.x[1]), x2: px(kx * item.x[2]), y1: item.py, y2: item.py }));
      svg.append(draw("line", { class: css, x1: item.px, x2: item.px, y1: py(ky * item.y[1]), y2: py(ky * item.y[2]) }));
    }
    strip.forEach((item, index) => {
      item.px = plot.x0 + 70 + Math.max(2, Math.min(18, (plot.x1 - plot.x0 - 80) / strip.length)) * index;
      item.py = plot.y0 + 62;
      item.size = KINDS[item.kind].size;
    });
    const all = [...placed, ...strip];
    for (const item of all) {
      svg.append(mark(KINDS[item.kind].shape, item.px, item.py, item.size, KINDS[item.kind].css + (item.over ? " over" : "")));
      if (item.trial.knee) svg.append(draw("circle", { class: "knee-ring", cx: item.px, cy: item.py, r: 11 }));
    }
    placeLabels(svg, placed, corners, plot);
    for (const item of all) addTarget(svg, item, xMetric, yMetric);
    follow(svg, box, all, split, [xMetric, yMetric]);
    box.append(svg);
    drawLegend(all);
    drawPins();
    const first = pins.length ? shown.get(pins[0]) : shown.get((run.trials.find((trial) => trial.knee) || {}).number);
    (first || all[0]).node.setAttribute("tabindex", 0);
    if (hadFocus) (first || all[0]).node.focus();
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
      const whole = item.trial.knee ? `knee: ${item.trial.name}` : item.trial.name;
      const most = Math.max(8, Math.floor((plot.x1 - plot.x0) / 2 / 6.9));
      const text = whole.length > most ? `${whole.slice(0, most - 1)}\u2026` : whole;
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

  function addTarget(svg, item, xMetric, yMetric) {
    const { trial } = item;
    const said = item.estimates && item.x ? [xMetric, yMetric].map((m) => `${m} ${describe(item.estimates[m], m)}`).join("; ") : "no value";
    item.node = draw("circle", {
      class: "hit", cx: item.px, cy: item.py, r: 12, tabindex: -1, role: "button",
      "aria-pressed": pins.includes(trial.number), "aria-label": `${trial.name}, ${KINDS[item.kind].text}: ${said}`,
    });
    item.node.dataset.trial = trial.number;
    shown.set(trial.number, item);
    svg.append(item.node);
  }

  // The pointer picks the nearest point, so that points in a crowd can be told apart.
  function follow(svg, box, all, split, axes) {
    const nearest = (event) => {
      const area = svg.getBoundingClientRect();
      const unit = svg.viewBox.baseVal.width / area.width;
      const [x, y] = [(event.clientX - area.left) * unit, (event.clientY - area.top) * unit];
      let best = null;
      for (const item of all) {
        const distance = Math.hypot(item.px - x, item.py - y);
        if (distance <= 20 && (!best || distance < best.distance)) best = { item, distance };
      }
      return best && best.item;
    };
    svg.addEventListener("pointermove", (event) => {
      const item = nearest(event);
      svg.style.cursor = item ? "pointer" : "";
      if (item) openTip(item, svg, box, split, axes);
      else closeTips();
    });
    svg.addEventListener("pointerleave", closeTips);
    svg.addEventListener("click", (event) => {
      const item = nearest(event);
      if (item) togglePin(item.trial.number);
    });
    svg.addEventListener("focusin", (event) => {
      const item = shown.get(Number(event.target.dataset.trial));
      if (item) openTip(item, svg, box, split, axes);
    });
    svg.addEventListener("focusout", closeTips);
    const order = [...all].sort((a, b) => a.px - b.px || a.py - b.py);
    svg.addEventListener("keydown", (event) => {
      const place = order.findIndex((item) => item.node === event.target);
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (place < 0) return;
      if (step) {
        const next = order[(place + step + order.length) % order.length].node;
        event.target.setAttribute("tabindex", -1);
        next.setAttribute("tabindex", 0);
        next.focus();
      } else if (event.key === "Enter" || event.key === " ") togglePin(order[place].trial.number);
      else return;
      event.preventDefault();
    });
  }

  function openTip(item, svg, box, split, [xMetric, yMetric]) {
    if (item.node.classList.contains("on") && box.querySelector(".tip")) return;
    closeTips();
    const { trial } = item;
    highlight(trial.number);
    const tip = make("div", undefined, "tip");
    tip.append(make("b", trial.knee ? `${trial.name} (knee)` : trial.name));
    tip.append(make("div", `${KINDS[item.kind].text}, ${split} split`, "quiet"));
    const names = [...new Set([xMetric, yMetric, ...run.objectives, ...Object.keys(run.budgets)])];
    if (item.estimates) for (const name of names) tip.append(make("div", `${name}: ${describe(item.estimates[name], name)}`));
    if (item.over) tip.append(make("div", "breaks a limit on this split"));
    if (trial.tied) tip.append(make("div", "statistically tied with the knee"));
    if (trial.reason) tip.append(make("div", trial.reason));
    tip.append(make("div", trial.coefficients.map(([key, value]) => `${key} ${value}`).join(", "), "quiet"));
    box.append(tip);
    const ratio = box.clientWidth / svg.viewBox.baseVal.width;
    const left = item.px * ratio + 16;
    tip.style.left = `${left + tip.offsetWidth > box.clientWidth ? Math.max(0, left - 32 - tip.offsetWidth) : left}px`;
    tip.style.top = `${Math.max(0, item.py * ratio - tip.offsetHeight - 8)}px`;
  }

  function closeTips() {
    for (const tip of document.querySelectorAll(".tip")) tip.remove();
    highlight(null);
  }

  // A point and its rows are marked together, whichever of them is pointed at.
  function highlight(number) {
    for (const node of document.querySelectorAll(".hit.on")) node.classList.remove("on");
    for (const row of document.querySelectorAll("tr.linked")) row.classList.remove("linked");
    if (number === null) return;
    if (shown.has(number)) shown.get(number).node.classList.add("on");
    for (const row of document.querySelectorAll(`tr[data-row="${number}"]`)) row.classList.add("linked");
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
    if (byId("show-ties").checked && items.some((item) => item.trial.tied)) {
      const entry = make("li");
      const svg = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
      svg.append(draw("circle", { class: "tie", cx: 8, cy: 8, r: 7.5 }));
      entry.append(svg, "tied with the knee");
      list.append(entry);
    }
    const sized = byId("axis-size").value;
    if (sized) list.append(make("li", `size: ${sized}`));
    const over = items.some((item) => item.over);
    if (over) list.append(make("li", "hollow front mark: breaks a limit on this split"));
  }
