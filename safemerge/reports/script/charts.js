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
          for (const trial of chosen.filter((item) => Boolean(item.front) === isFront)) {
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
