"use strict";
// Draws the charts, filters them and the tables, and opens the details of a finding or record under its row. Whatever
// comes from the data is put in as text (textContent), never as markup.
(async () => {
  const NARROW = window.matchMedia("(max-width: 700px)").matches;
  const FILTERED = ["machine", "model", "precision", "rank", "backend"];
  const source = document.getElementById("data");
  const data = await decoded(source.textContent, source.dataset.encoding);
  source.remove();
  const records = data.tables.records;
  const drawn = new Map();
  const chosen = {};

  async function decoded(text, encoding) {
    if (encoding === "json") return JSON.parse(text);
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.filter((one) => one !== null && one !== undefined));
    return made;
  }

  // ---- filters

  // An `about` passes where it says nothing, or one of its backends is the one chosen.
  function passes(about) {
    return FILTERED.every((name) => {
      const wanted = chosen[name];
      if (!wanted) return true;
      const found = name === "backend" ? [about.backend, about.baseline] : [about[name]];
      const said = found.filter((one) => one !== undefined && one !== "" && one !== null);
      return said.length === 0 || said.includes(wanted);
    });
  }

  const form = document.querySelector("form.filters");
  if (form) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", filtered);
    form.addEventListener("reset", () => setTimeout(filtered));
  }

  async function filtered() {
    for (const select of form.querySelectorAll("select")) chosen[select.name] = select.value;
    let shown = 0, all = 0;
    for (const row of document.querySelectorAll("tbody tr[data-model]")) {
      row.hidden = !passes(row.dataset);
      if (row.id.startsWith("record-")) { all += 1; shown += row.hidden ? 0 : 1; }
    }
    for (const drawer of document.querySelectorAll("tr.drawer")) drawer.hidden = drawer.previousElementSibling.hidden;
    form.querySelector("output").textContent = shown === all ? "" : `${shown} of ${all} runs`;
    for (const chart of drawn.values()) { offer(chart); await fill(chart); }
  }

  // ---- data of a chart

  // Rows of a table that the filters and the chart's control let through; a row of a record gets its backend.
  function rows(name, option, control) {
    const columns = data.tables[name], names = Object.keys(columns), made = [];
    const wanted = control && columns[control.field] ? new Set(option ? option.values : []) : null;
    const length = names.length ? columns[names[0]].length : 0;
    for (let i = 0; i < length; i++) {
      if (wanted && !wanted.has(columns[control.field][i])) continue;
      const row = {};
      for (const key of names) row[key] = columns[key][i];
      if (row.record !== undefined) row.backend = records.backend[row.record];
      else if (!passes(row)) continue;
      made.push(row);
    }
    return made;
  }

  function offer(chart) {
    if (!chart.select) return;
    const before = chart.select.value;
    const offered = chart.control.options.map((option, i) => [option, String(i)]).filter(([option]) => passes(option.about));
    chart.select.replaceChildren(...offered.map(([option, value]) => {
      const one = el("option", { value });
      one.textContent = option.label;
      return one;
    }));
    if (offered.some(([, value]) => value === before)) chart.select.value = before;
    chart.select.disabled = offered.length < 2;
  }

  function datasets(chart) {
    const option = chart.select ? chart.control.options[chart.select.value] : null;
    return Object.fromEntries(chart.tables.map((name) => [name, rows(name, option, chart.control)]));
  }

  async function fill(chart) {
    const found = datasets(chart), first = found[chart.tables[0]];
    for (const name of chart.tables) chart.view.data(name, found[name]);
    chart.rows = first;
    chart.plot.hidden = first.length === 0;
    chart.empty.hidden = first.length > 0;
    if (first.length) await chart.view.resize().runAsync();
    if (chart.behind.open) tabulate(chart);
  }

  function tabulate(chart) {
    const titles = Object.entries(chart.columns);
    const head = el("tr", {}, ...titles.map(([, title]) => el("th", {}, title)));
    const body = chart.rows.slice(0, 500).map((row) => el("tr", {}, ...titles.map(([name], i) => {
      const text = row[name] === null || row[name] === undefined ? "—" : String(row[name]);
      return el("td", {}, i === 0 && row.href ? el("a", { href: row.href }, text) : text);
    })));
    const left = chart.rows.length > 500 ? [el("p", { class: "soft small" }, `The first 500 of ${chart.rows.length} rows.`)] : [];
    chart.behind.replaceChildren(chart.behind.querySelector("summary"), scroller("Data of the chart", head, body), ...left);
  }

  function scroller(label, head, body) {
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
  }

  // ---- drawing

  const tip = document.getElementById("tip");
  function tooltip(handler, event, item, value) {
    if (!value) { tip.hidden = true; return; }
    const pairs = typeof value === "object" ? Object.entries(value) : [["", value]];
    tip.replaceChildren(...pairs.map(([name, text]) => el("div", {}, el("b", {}, name), " ", String(text))));
    tip.hidden = false;
    const left = Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${event.pageY + 16}px`;
  }

  // A row of panels has no width of its own place: each gets its share, and on a narrow screen they stand in a column.
  function panels(spec, plot) {
    if (!spec.hconcat) return spec;
    const { hconcat, ...rest } = spec, beside = NARROW ? 1 : hconcat.length;
    const width = plot.clientWidth / beside - 75;
    return { ...rest, [NARROW ? "vconcat" : "hconcat"]: hconcat.map((one) => ({ ...one, width })) };
  }

  function fitted(whole, plot) {
    const config = data.config, spec = panels(whole, plot);
    if (!NARROW) return { ...spec, config };
    return { ...spec, config: { ...config,
      axis: { ...config.axis, labelLimit: 160, labelFontSize: 10, titleFontSize: 10, titleLimit: 230 },
      legend: { ...config.legend, columns: 1, labelFontSize: 10 },
    } };
  }

  async function draw(figure) {
    const id = figure.dataset.chart, chart = { ...data.charts[id] };
    chart.plot = figure.querySelector(".plot");
    chart.behind = figure.querySelector(".behind");
    chart.empty = el("p", { class: "soft" }, "Nothing that the filters let through.");
    chart.empty.hidden = true;
    chart.plot.after(chart.empty);
    const tools = figure.querySelector(".figure-tools");
    if (chart.control) {
      chart.select = el("select");
      tools.append(el("label", {}, `${chart.control.label} `, chart.select));
      offer(chart);
      chart.select.value = String(chart.control.start);
      chart.select.addEventListener("change", () => fill(chart));
    }
    for (const form of ["svg", "png"]) {
      const button = el("button", { type: "button", "aria-label": `Save ${id} as ${form.toUpperCase()}` }, form.toUpperCase());
      button.addEventListener("click", async () => {
        el("a", { href: await chart.view.toImageURL(form, 2), download: `${id}.${form}` }).click();
      });
      tools.append(button);
    }
    const found = datasets(chart);
    const made = await window.vegaEmbed(chart.plot, { ...fitted(chart.spec, chart.plot), datasets: found },
      { renderer: "svg", actions: false, tooltip, logLevel: 1 });
    chart.view = made.view;
    chart.plot.querySelector("svg").setAttribute("aria-hidden", "true");  // the plot is one image, described below it
    chart.rows = found[chart.tables[0]];
    chart.view.addEventListener("click", (event, item) => {
      if (item && item.datum && item.datum.href) window.location.hash = item.datum.href;
    });
    if (data.tables[chart.tables[0]].href) chart.plot.classList.add("linked");
    chart.behind.addEventListener("toggle", () => { if (chart.behind.open) tabulate(chart); });
    drawn.set(id, chart);
  }

  // ---- details of a finding or record, under its row

  function facts(pairs) {
    return el("dl", { class: "cols" }, ...pairs.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))));
  }

  function table(label, titles, body) {
    return scroller(label, el("tr", {}, ...titles.map((title) => el("th", {}, title))),
      body.map((row) => el("tr", {}, ...row.map((text) => el("td", {}, text)))));
  }

  function titled(title, node, present = true) {
    return present ? el("div", {}, el("h4", {}, title), node) : null;
  }

  function relative(path) {
    return path.split("/").map(encodeURIComponent).join("/");
  }

  function recordDetails(i) {
    const one = data.records[i];
    const links = one.files.flatMap(([name, path]) => [el("a", { href: relative(path) }, name), " · "]).slice(0, -1);
    const inFindings = data.findings.flatMap((finding, number) =>
      finding.records.some(([, members]) => members.includes(i))
        ? [el("a", { href: `#finding-${number + 1}` }, finding.title), " · "] : []).slice(0, -1);
    const jumps = [["timeline", "its memory over time"], ["loss", "its loss"], ["step-times", "its step times"]]
      .flatMap(([id, text]) => {
        const chart = drawn.get(id);
        const at = chart ? chart.control.options.findIndex((option) => option.values.includes(i)) : -1;
        if (at < 0) return [];
        const button = el("button", { type: "button" }, `Show ${text}`);
        button.addEventListener("click", async () => {
          chart.select.value = String(at);
          await fill(chart);
          document.getElementById(`chart-${id}`).scrollIntoView();
        });
        return [button, " "];
      });
    return el("div", {},
      el("h4", {}, one.title), facts(one.facts),
      one.message ? titled("How it ended", el("pre", { tabindex: "0" }, one.message)) : null,
      titled("Raw files", el("p", {}, ...links)),
      titled("Findings it is in", el("p", {}, ...inFindings), inFindings.length > 0),
      el("p", {}, ...jumps),
      titled("Steady steps", facts(one.steady), one.steady.length > 0),
      one.health.length ? titled("Contaminated", el("p", {}, one.health.join("; "))) : null,
      titled("Phases, seconds and peaks in GiB", table("Phases", ["phase", "seconds", "torch allocated", "torch reserved",
        "NVML process", "NVML device", "host RSS"], one.phases), one.phases.length > 0),
      steps(i),
      titled("Audit: what was asked for, and what ran",
        table("Audit", ["property", "requested", "effective", ""], one.audit), one.audit.length > 0),
      titled("Model", el("p", {}, one.model), one.model !== ""),
      titled("Settings", facts(one.settings)));
  }

  function steps(i) {
    const all = data.tables.steps;
    if (!all || !all.record.includes(i)) return null;
    const made = el("details", {}, el("summary", {}, "Every step"));
    made.addEventListener("toggle", () => {
      if (!made.open || made.childElementCount > 1) return;
      const own = all.record.flatMap((record, at) => (record === i ? [at] : []));
      made.append(table("Steps", ["step", "seconds", "loss", "part"], own.map((at) =>
        [all.step[at], all.seconds[at], all.loss[at] ?? "—", all.part[at]].map(String))));
    });
    return made;
  }

  function findingDetails(i) {
    const one = data.findings[i];
    const links = one.records.flatMap(([side, members]) => members.map((at) =>
      el("li", {}, `${side}: `, el("a", { href: `#${records.anchor[at]}` }, records.label[at]))));
    return el("div", {},
      el("h4", {}, one.title), facts(one.facts),
      titled("Sides, medians over their processes", table("Sides", data.side_columns, one.sides)),
      titled("Parity checks", table("Parity", ["check", "", "baseline", "candidate", "detail"], one.checks),
        one.checks.length > 0),
      titled("From these runs", el("ul", {}, ...links)));
  }

  function open() {
    const id = window.location.hash.slice(1);
    const row = id && document.getElementById(id);
    if (!row) return;
    for (let up = row.parentElement; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
    if (row.tagName === "DETAILS") row.open = true;
    if (row.tagName === "TR") {
      row.hidden = false;
      const record = records.anchor.indexOf(id);
      const finding = /^finding-(\d+)$/.exec(id);
      if ((record >= 0 || finding) && !(row.nextElementSibling && row.nextElementSibling.classList.contains("drawer"))) {
        const close = el("button", { type: "button", class: "close" }, "Close");
        const drawer = el("tr", { class: "drawer" }, el("td", { colspan: String(row.cells.length) },
          el("div", { class: "drawer-inner" }, close, record >= 0 ? recordDetails(record) : findingDetails(finding[1] - 1))));
        close.addEventListener("click", () => drawer.remove());
        row.after(drawer);
      }
    }
    row.scrollIntoView({ block: "start" });
  }

  for (const figure of document.querySelectorAll("figure[data-chart]")) await draw(figure);
  window.addEventListener("hashchange", open);
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[href^='#']");
    if (link && link.getAttribute("href") === window.location.hash) open();
  });
  open();
  document.documentElement.dataset.ready = "yes";
})();
