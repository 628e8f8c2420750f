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

  const PAGE = 25;
  const MARKS = { feasible: "\u25cf", infeasible: "\u25cb", broken: "\u2298", pruned: "\u2702", failed: "\u2715" };
  const view = { page: 0, column: 0, down: false, outcome: "", words: "" };
  const tableMetrics = run.objectives;
  const columns = [
    { head: "trial", key: (trial) => trial.number },
    { head: "state and reason", key: (trial) => trial.outcome },
    ...tableMetrics.map((metric) => ({
      head: `${metric}${isShare(metric) ? " %" : ""}`,
      key: (trial) => (trial.search && trial.search[metric] ? trial.search[metric][0] : null),
      cell: (trial) => valueCell(trial.search && trial.search[metric], metric),
    })),
    { head: "over its limit by (shares: points)", key: (trial) => (trial.over ? trial.over[1] : null), cell: overCell },
    { head: "recipe", key: recipeText },
    { head: "took (s)", key: (trial) => (isNumber(trial.took) ? trial.took : null) },
  ];

  function overCell(trial) {
    const cell = make("td", undefined, "num");
    if (!trial.over) cell.append(make("span", "none", "quiet"));
    else {
      const [metric, value] = trial.over;
      cell.append(make(value > 0 ? "b" : "span", signed(value, metric)));
      if (value > 0) cell.append(make("span", metric, "ci"));
    }
    return cell;
  }

  function found() {
    const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (trial) => [trial.name, trial.outcome, trial.reason || "", recipeText(trial), ...(trial.notes || [])].join(" ").toLowerCase();
    const kept = run.trials.filter((trial) =>
      (!view.outcome || (view.outcome === "front" ? trial.front : trial.outcome === view.outcome)) &&
      words.every((word) => text(trial).includes(word)));
    const { key } = columns[view.column];
    return kept.sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      if (left === null || right === null) return Number(left === null) - Number(right === null);
      const sign = isNumber(left) ? left - right : String(left).localeCompare(String(right));
      return view.down ? -sign : sign;
    });
  }

  function trialRow(trial) {
    const row = make("tr");
    row.dataset.row = trial.number;
    const first = make("th");
    first.scope = "row";
    first.append(pinButton(trial, trial.name), ...(trial.notes || []).map((note) => make("span", ` ${note}`, "quiet")));
    if (trial.front) first.append(" ", make("span", trial.knee ? "knee" : "front", "flag"));
    const state = make("td");
    state.append(make("span", `${MARKS[trial.outcome]} ${trial.state === "COMPLETE" ? `COMPLETE, ${trial.outcome}` : trial.state}`, `outcome ${trial.outcome}`));
    if (trial.reason) state.append(make("span", trial.reason, "reason"));
    const cells = columns.slice(2).map(({ cell, key }) => {
      if (cell) return cell(trial);
      const value = key(trial);
      return make("td", value === null ? "unknown" : isNumber(value) ? value.toFixed(1) : value, isNumber(value) ? "num" : "recipe");
    });
    row.append(first, state, ...cells);
    return row;
  }

  function pinButton(trial, text) {
    const made = button(text, () => {
      togglePin(trial.number);
      if (!pins.includes(trial.number)) return;
      byId("found").scrollIntoView();
      byId("pinned").querySelector("h3").focus({ preventScroll: true });
    }, "pin");
    made.title = "show it beside the chart";
    if (text !== trial.name) made.setAttribute("aria-label", `${text} ${trial.name}`);
    return made;
  }

  function drawTrials() {
    const box = byId("trials-table");
    if (!box) return;
    const rows = found();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    view.page = Math.min(view.page, pages - 1);
    const at = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.column : undefined;
    const table = plainTable("All trials on the search split, as the search saw them. Below 0, a trial keeps every limit, with so much to spare.", columns.map((column) => column.head), []);
    table.firstChild.className = "trials";
    table.querySelectorAll("thead th").forEach((head, k) => {
      if (view.column === k) head.setAttribute("aria-sort", view.down ? "descending" : "ascending");
      const made = button("", () => {
        Object.assign(view, { down: view.column === k && !view.down, column: k, page: 0 });
        drawTrials();
      });
      made.dataset.column = k;
      made.append(...head.childNodes);
      head.append(made);
    });
    const begin = view.page * PAGE;
    table.querySelector("tbody").append(...rows.slice(begin, begin + PAGE).map(trialRow));
    box.replaceChildren(table);
    if (at !== undefined) box.querySelector(`[data-column="${at}"]`).focus();
    const turn = (by) => () => { view.page += by; drawTrials(); };
    const back = button("\u2039 before", turn(-1), "copy");
    const on = button("next \u203a", turn(1), "copy");
    back.disabled = view.page === 0;
    on.disabled = view.page === pages - 1;
    const shown = rows.length ? `${begin + 1} to ${Math.min(begin + PAGE, rows.length)} of ${rows.length}` : "no trial matches";
    const count = make("span", shown);
    count.setAttribute("role", "status");
    byId("trials-pages").replaceChildren(back, " ", count, " ", on);
  }

  function csvText() {
    const params = [...new Set(run.trials.flatMap((trial) => Object.keys(trial.params)))].sort();
    const fields = ["value", "low", "high", "n", "unscored"];
    const metrics = Object.keys(run.metrics);
    const splits = run.published ? ["search", "report"] : ["search"];
    const heads = ["number", "name", "role", "state", "outcome", "front", "knee", "reason", "candidate", "took_s"];
    for (const split of splits) for (const name of metrics) for (const field of fields) heads.push(`${split}.${name}.${field}`);
    const quote = (value) => {
      if (value === undefined || value === null) return "";
      // A spreadsheet would compute a text that begins like a formula.
      const text = typeof value === "string" ? value.replace(/^(?=[=+\-@])/, "'") : String(value);
      return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    };
    const lines = found().map((trial) => [
      trial.number, trial.name, trial.role, trial.state, trial.outcome, Boolean(trial.front), Boolean(trial.knee), trial.reason, trial.candidate, trial.took,
      ...splits.flatMap((split) => metrics.flatMap((name) => fields.map((_, k) => trial[split] && trial[split][name] ? trial[split][name][k] : null))),
      ...params.map((name) => trial.params[name]),
    ]);
    return `${[[...heads, ...params], ...lines].map((line) => line.map(quote).join(",")).join("\r\n")}\r\n`;
  }

  function startTrials() {
    if (!byId("trials-table")) return;
    const outcomes = ["front", ...Object.keys(MARKS).filter((how) => run.trials.some((trial) => trial.outcome === how))];
    for (const how of outcomes) {
      const choice = make("option", how === "front" ? "on the front" : how);
      choice.value = how;
      byId("trials-outcome").append(choice);
    }
    byId("trials-outcome").addEventListener("change", (event) => {
      Object.assign(view, { outcome: event.target.value, page: 0 });
      drawTrials();
    });
    byId("trials-search").addEventListener("input", (event) => {
      Object.assign(view, { words: event.target.value, page: 0 });
      drawTrials();
    });
    byId("download-csv").addEventListener("click", () => download(`${run.study}-trials.csv`, "text/csv", csvText()));
    byId("download-json").addEventListener("click", () => download(`${run.study}-report.json`, "application/json", JSON.stringify(run, null, 1)));
    drawTrials();
  }

  // --- Start -----------------------------------------------------------------------------

  // What lies below is drawn when it comes near the window, or is printed.
  const later = { hypervolume: drawHypervolume, parameters: drawParameters, timings: drawTimings };
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) drawLater(target.id);
    }
  }, { rootMargin: "600px" });

  function drawLater(id) {
    near.unobserve(byId(id));
    later[id]();
  }

  function drawAll() {
    drawScatter();
    for (const id of Object.keys(later)) if (byId(id)) near.observe(byId(id));
    if (place !== null) scrollTo(0, place);
    place = null;
  }

  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  for (const made of document.querySelectorAll(".copy[data-copy]")) made.addEventListener("click", () => copyText(made));
  for (const head of document.querySelectorAll("table.front tr[data-row] > th")) {
    const trial = byNumber.get(Number(head.parentElement.dataset.row));
    head.append(" ", pinButton(trial, "pin"));
  }
  document.addEventListener("pointerover", (event) => {
    const row = event.target.closest("tr[data-row]");
    if (row) highlight(Number(row.dataset.row));
    else if (!event.target.closest("#scatter")) highlight(null);
  });
  const controls = byId("scatter-controls");
  if (controls) {
    const third = run.objectives.find((name) => !run.axes.includes(name));
    if (third) byId("axis-size").value = third;
    controls.addEventListener("change", drawScatter);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    closeTips();
    if (pins.length) pin([]);
  });
  addEventListener("beforeprint", () => {
    for (const id of Object.keys(later)) if (byId(id)) drawLater(id);
    for (const part of document.querySelectorAll("details:not(.settings, .more)")) part.open = true;
  });
  let place = null; // where the page is scrolled to, once its chart has its height

  // A page of a running search loads itself again, as it is looked at: pins, table and place stay.
  function startRefresh() {
    const kept = history.state && history.state.safemerge;
    if (kept) {
      pins = kept.pins.filter((number) => byNumber.has(number));
      Object.assign(view, kept.view);
      place = kept.scroll;
      if (byId("trials-search")) byId("trials-search").value = view.words;
    }
    if (!run.refresh_s) return;
    const isBusy = () => document.hidden || document.activeElement === byId("trials-search") || String(getSelection());
    const again = () => {
      if (isBusy()) return setTimeout(again, 2000);
      history.replaceState({ safemerge: { pins, view, scroll: scrollY } }, "");
      history.scrollRestoration = "manual";
      location.reload();
    };
    setTimeout(again, 1000 * run.refresh_s);
  }

  startRefresh();
  startTrials();
  if (view.outcome && byId("trials-outcome")) byId("trials-outcome").value = view.outcome;
  let width = 0;
  let waiting = 0;
  new ResizeObserver(() => {
    const now = byId("main").clientWidth;
    if (now === width) return;
    width = now;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(drawAll);
  }).observe(byId("main"));
