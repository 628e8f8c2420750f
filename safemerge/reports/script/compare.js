  // --- Runs side by side -----------------------------------------------------------------

  const SHAPES = ["circle", "diamond", "triangle", "cross"];
  const ownMark = (place, x, y, size, css) => mark(SHAPES[place % SHAPES.length], x, y, size, `${css} own-${place}${SHAPES[place % SHAPES.length] === "cross" ? " cross" : ""}`);

  function drawCompared() {
    const box = byId("compare");
    if (!box) return;
    const [xMetric, yMetric] = run.axes;
    const [kx, ky] = [scale(xMetric), scale(yMetric)];
    const placed = run.runs.flatMap((one, place) => one.points
      .map((point) => ({ place, point, one, x: point.estimates[xMetric], y: point.estimates[yMetric] }))
      .filter((item) => item.x && item.y && item.x[0] !== null && item.y[0] !== null));
    box.textContent = "";
    if (!placed.length) {
      box.append(make("p", "No run has a point with both values yet.", "quiet"));
      return;
    }
    const range = (key, metric) => {
      const values = placed.flatMap((item) => (item.point.front ? item[key].slice(0, 3) : [item[key][0]])).filter((value) => value !== null);
      const [low, high] = [scale(metric) * Math.min(...values), scale(metric) * Math.max(...values)];
      const room = Math.max((high - low) * 0.06, isShare(metric) ? 1 : 0.02 * Math.abs(high) || 0.01);
      return [low - room, high + room];
    };
    const height = Math.round(Math.min(Math.max(box.clientWidth * 0.5, 290), 440));
    const { svg, px, py } = frame(box, {
      height, left: 46, x: range("x", xMetric), y: range("y", yMetric),
      xTitle: axisTitle(xMetric), yTitle: axisTitle(yMetric),
      label: `${yMetric} against ${xMetric}, ${run.split} split: fronts of ${run.runs.length} runs`,
    });
    for (const item of placed) [item.px, item.py] = [px(kx * item.x[0]), py(ky * item.y[0])];
    run.runs.forEach((one, place) => {
      const front = placed.filter((item) => item.place === place && item.point.front);
      const corners = frontLine(front, xMetric, yMetric).map(([x, y]) => `${px(kx * x)},${py(ky * y)}`);
      if (corners.length > 1) svg.append(draw("path", { class: `own-line own-${place}`, d: `M${corners.join("L")}` }));
    });
    for (const item of placed.filter(({ point, x, y }) => point.front && x[1] !== null && y[1] !== null)) {
      const css = `whiskers own-line own-${item.place}`;
      svg.append(draw("line", { class: css, x1: px(kx * item.x[1]), x2: px(kx * item.x[2]), y1: item.py, y2: item.py }));
      svg.append(draw("line", { class: css, x1: item.px, x2: item.px, y1: py(ky * item.y[1]), y2: py(ky * item.y[2]) }));
    }
    for (const item of placed) {
      // Of points in one place the earlier run's is larger, and looks out.
      const size = (item.point.front ? 4.5 : 3) + Math.min(2 * (run.runs.length - 1 - item.place), 6);
      svg.append(ownMark(item.place, item.px, item.py, size, item.point.front ? "own" : "own hollow"));
      if (item.point.knee) svg.append(draw("circle", { class: `own-line own-${item.place}`, cx: item.px, cy: item.py, r: 11 }));
    }
    const closeTips = () => { for (const tip of box.querySelectorAll(".tip")) tip.remove(); };
    const order = [...placed].sort((a, b) => a.px - b.px || a.py - b.py);
    order.forEach((item, at) => {
      const { point, one } = item;
      const said = [xMetric, yMetric].map((metric) => `${metric} ${describe([...point.estimates[metric], 0], metric)}`).join("; ");
      item.node = draw("circle", { class: "hit", cx: item.px, cy: item.py, r: 12, tabindex: at ? -1 : 0, role: "img", "aria-label": `${one.name}, ${point.label}${point.knee ? ", knee" : ""}: ${said}` });
      const open = () => {
        closeTips();
        const tip = make("div", undefined, "tip");
        tip.append(make("b", `${one.name}: ${point.label}${point.knee ? " (knee)" : ""}`));
        tip.append(make("div", point.front ? "front point" : "reference point", "quiet"));
        for (const [name, found] of Object.entries(point.estimates)) tip.append(make("div", `${name}: ${describe([...found, 0], name)}`));
        tip.append(make("div", point.recipe, "quiet"));
        box.append(tip);
        const ratio = box.clientWidth / svg.viewBox.baseVal.width;
        const left = item.px * ratio + 16;
        tip.style.left = `${left + tip.offsetWidth > box.clientWidth ? Math.max(0, left - 32 - tip.offsetWidth) : left}px`;
        tip.style.top = `${Math.max(0, item.py * ratio - tip.offsetHeight - 8)}px`;
      };
      item.node.addEventListener("pointerenter", open);
      item.node.addEventListener("focus", open);
      item.node.addEventListener("pointerleave", closeTips);
      item.node.addEventListener("blur", closeTips);
      item.node.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key === "Escape") closeTips();
        if (!step) return;
        const next = order[(at + step + order.length) % order.length].node;
        item.node.setAttribute("tabindex", -1);
        next.setAttribute("tabindex", 0);
        next.focus();
        event.preventDefault();
      });
      svg.append(item.node);
    });
    box.append(svg);
    const legend = byId("compare-legend");
    legend.textContent = "";
    run.runs.forEach((one, place) => {
      const entry = make("li");
      const key = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
      key.append(ownMark(place, 8, 8, 5, "own"));
      entry.append(key, `${one.name} (${one.points.filter((point) => point.front).length} front points)`);
      legend.append(entry);
    });
    legend.append(make("li", "ring: knee; small and hollow: reference points"));
  }

  let width = 0;
  new ResizeObserver(() => {
    if (byId("main").clientWidth === width) return;
    width = byId("main").clientWidth;
    requestAnimationFrame(drawCompared);
  }).observe(byId("main"));
