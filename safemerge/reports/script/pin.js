  // --- Pinned points ---------------------------------------------------------------------

  let pins = []; // trial numbers: at most two, to be compared
  const comparisons = new Map();
  for (const row of run.comparisons.rows) {
    const found = Object.fromEntries(run.comparisons.columns.map((name, k) => [name, row[k]]));
    const [left, right] = [found.left, found.right].map((number) => byNumber.get(number).candidate);
    comparisons.set(`${left} ${right} ${found.metric}`, found);
  }

  // Left minus right, as the report's family has it; undefined where the two were not compared.
  function compared(left, right, metric) {
    const found = comparisons.get(`${left.candidate} ${right.candidate} ${metric}`);
    if (found) return found;
    const other = comparisons.get(`${right.candidate} ${left.candidate} ${metric}`);
    if (!other || other.value === null) return other;
    const verdict = { better: "worse", worse: "better" }[other.verdict] || other.verdict;
    return { ...other, value: -other.value, low: -other.high, high: -other.low, verdict };
  }

  const signed = (value, metric) => {
    const text = isShare(metric) ? tenths(100 * value) : String(Number(value.toPrecision(4)));
    return Number(text) > 0 ? `+${text}` : minus(Number(text) === 0 ? text.replace("-", "") : text);
  };

  function differenceCell(found, metric) {
    const cell = make("td");
    if (!found || found.value === null) {
      cell.append(make("span", found ? "no sample in common" : "not compared", "quiet"));
      return cell;
    }
    const sign = { better: "\u25b2", worse: "\u25bc" }[found.verdict] || "\u2248";
    const p = found.p_adjusted;
    cell.append(
      make("span", `${sign} ${found.verdict}`, `verdict ${found.verdict.split(" ")[0]}`), " ",
      make("b", signed(found.value, metric)),
      make("span", `[${signed(found.low, metric)}, ${signed(found.high, metric)}]${p === null ? "" : `, p ${p < 0.001 ? "< 0.001" : `= ${Number(p.toPrecision(2))}`}`}`, "ci"),
    );
    return cell;
  }

  function valueCell(estimate, metric) {
    const cell = make("td", undefined, "num");
    if (!estimate || estimate[0] === null) cell.append(make("span", "none", "quiet"));
    else {
      cell.append(make("b", amount(estimate[0], metric)));
      if (estimate[1] !== null) cell.append(make("span", `[${amount(estimate[1], metric)}, ${amount(estimate[2], metric)}]`, "ci"));
    }
    return cell;
  }

  function plainTable(caption, heads, rows) {
    const table = make("table");
    const head = make("tr");
    for (const text of heads) {
      const cell = make("th", text);
      cell.scope = "col";
      head.append(cell);
    }
    const top = make("thead");
    top.append(head);
    const body = make("tbody");
    for (const [name, ...cells] of rows) {
      const row = make("tr");
      const first = make("th");
      first.scope = "row";
      // Long names may break after a point or an underscore.
      for (const part of name.split(/(?<=[._])/)) first.append(part, make("wbr"));
      row.append(first, ...cells);
      body.append(row);
    }
    const title = make("caption");
    title.append(make("span", caption));
    table.append(title, top, body);
    const box = make("div", undefined, "scroll");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", caption);
    box.append(table);
    return box;
  }

  function button(text, act, css) {
    const made = make("button", text, css);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  function textFile(title, name, text) {
    const part = make("details");
    const copy = button("copy", () => copyText(copy), "copy");
    copy.dataset.copy = text;
    part.append(make("summary", title), make("pre", text), copy, button("download", () => download(name, "text/yaml", text), "copy"));
    return part;
  }

  // What it takes to have a point: its recipe, its files, the command.
  function takeParts(trial) {
    const taken = run.points[trial.number];
    const parts = [make("p", recipeText(trial), "recipe")];
    if (!taken) return [...parts, make("p", "Not on the front: it cannot be exported, and was not compared.", "note")];
    if (taken.export) {
      const line = make("span", undefined, "command");
      const copy = button("copy", () => copyText(copy), "copy");
      copy.dataset.copy = taken.export;
      line.append(make("code", taken.export), copy);
      parts.push(line);
    }
    parts.push(textFile("recipe as YAML", `${run.study}-${trial.number}.yaml`, taken.yaml));
    if (taken.mergekit) parts.push(textFile("recipe for mergekit", `${run.study}-${trial.number}-mergekit.yaml`, taken.mergekit));
    else parts.push(make("p", `mergekit: ${taken.no_mergekit}`, "note"));
    return parts;
  }

  function againstReferences(trial) {
    const rows = [];
    for (const other of run.trials.filter((item) => item.reference && item.candidate !== trial.candidate)) {
      for (const metric of mainMetrics) {
        const found = compared(trial, other, metric);
        if (found) rows.push([`${other.name}, ${metric}`, differenceCell(found, metric)]);
      }
    }
    if (!rows.length) return [];
    const part = make("details");
    part.append(make("summary", "against the reference points"), plainTable(`${trial.name} minus each reference point, paired; p corrected for all comparisons`, ["minus", "difference"], rows));
    return [part];
  }

  const mainMetrics = [...new Set([...run.objectives, ...Object.keys(run.budgets)])];

  function drawPins() {
    const box = byId("pinned");
    if (!box) return;
    const found = pins.map((number) => byNumber.get(number));
    const recommended = byId("recommended");
    if (recommended) recommended.hidden = found.length > 0;
    box.textContent = "";
    for (const [number, item] of shown) item.node.setAttribute("aria-pressed", pins.includes(number));
    for (const old of document.querySelectorAll(".pin-mark")) old.remove();
    found.forEach((trial, k) => {
      const item = shown.get(trial.number);
      if (!item) return;
      item.node.before(draw("circle", { class: "pin-mark", cx: item.px, cy: item.py, r: 15 }));
      item.node.before(draw("text", { class: "pin-mark label", x: item.px + 13, y: item.py - 10 }, "AB"[k]));
    });
    if (!found.length) return;
    const [a, b] = found;
    const title = make("h3", b ? `A: ${a.name}, B: ${b.name}` : `A: ${a.name}${a.knee ? ", the knee" : ""}`);
    title.tabIndex = -1;
    box.append(title, button(recommended ? "back to the recommended point" : "unpin", () => pin([]), "copy"));
    const split = found.every((trial) => trial.report) ? "report" : "search";
    const rows = (names) => names.map((metric) => [
      metric, ...found.map((trial) => valueCell(trial[split] && trial[split][metric], metric)),
      ...(b ? [differenceCell(compared(a, b, metric), metric)] : []),
    ]);
    const heads = ["metric", "A", ...(b ? ["B", "A minus B"] : [])];
    box.append(plainTable(`${split} split, with 95 % intervals${b ? "; p corrected for all comparisons" : ""}`, heads, rows(mainMetrics)));
    for (const trial of found) {
      if (b) box.append(make("h4", trial.name));
      if (trial.reason) box.append(make("p", trial.reason, "note"));
      box.append(...takeParts(trial), ...againstReferences(trial));
    }
    for (const trial of found.filter((item) => item.belief)) {
      const told = Object.entries(trial.belief.values).map(([name, { mean, low, high }]) => `${name} ${amount(mean, name)} [${amount(low, name)}, ${amount(high, name)}]`);
      box.append(make("p", `${trial.name}, posterior: ${told.join("; ")}; chance of the front ${(100 * trial.belief.chance).toFixed(0)} %`, "note"));
    }
    const others = Object.keys(run.metrics).filter((name) => !mainMetrics.includes(name));
    if (others.length && found.some((trial) => trial[split])) {
      const part = make("details");
      part.append(make("summary", "all other metrics"), plainTable(`${split} split`, heads, rows(others)));
      box.append(part);
    }
  }

  function pin(numbers) {
    pins = numbers;
    drawPins();
  }

  // A third point takes the place of the second: the first is what others are compared with.
  function togglePin(number) {
    pin(pins.includes(number) ? pins.filter((other) => other !== number) : [...pins.slice(0, 1), number]);
  }
