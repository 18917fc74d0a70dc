// What a page with scripts adds to the report: live plots, arms to toggle, tables to sort and filter, commands to copy.
// Without it, or where it fails, the page stays complete: plots are static, folded parts open by a click.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const hidden = new Set();  // names of arms
  const views = new Map();  // an element with a live plot -> its view

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // ---------------------------------------------------------------- plots

  // As `charts.fit` does for the static plots.
  function fit(spec, width) {
    const {narrowestPanel, panelMargin, axisWidth, rowMargin} = data.layout;
    const most = Math.max(1, Math.floor((width - axisWidth) / (narrowestPanel - panelMargin)));
    const columns = Math.min(spec.facet?.sort.length ?? 1, most);
    const panel = Math.floor((width - axisWidth) / columns) - panelMargin;
    const legend = {...spec.config.legend, columns: Math.max(1, Math.floor(width / spec.usermeta.legendColumn))};
    const config = {...spec.config, legend, header: {...spec.config.header, labelLimit: panel}};
    if (spec.facet) return {...spec, config, columns, spec: {...spec.spec, width: panel}};
    if (spec.height?.step) {
      return {...spec, config: {...config, axisY: {labelLimit: width - rowMargin}}, width: width - rowMargin};
    }
    return {...spec, config, width, autosize: {type: "fit-x", contains: "padding"}};
  }

  function hiddenLabels() {  // of the legends: those of which every arm is hidden
    const labels = new Set(data.arms.flatMap((arm) => [...legendLabels(arm)]));
    return [...labels].filter((label) => data.arms.every((arm) => hidden.has(arm.name) || !legendLabels(arm).has(label)));
  }

  function legendLabels(arm) {
    const levels = Object.values(arm.levels);
    const others = levels.slice(1).join(", ");
    const [first, ...rest] = Object.keys(arm.levels);
    return new Set([levels[0], others, `${first} ${levels[0]}`, `${rest.join(", ")} ${others}`]);
  }

  async function draw(chart, spec) {
    const width = Math.floor(chart.clientWidth);
    if (width < 100 || chart.dataset.width === String(width) && chart.dataset.drawn === spec.key) return;
    chart.dataset.width = width;
    chart.dataset.drawn = spec.key;
    let live = chart.querySelector(".live");
    if (!live) chart.append(live = element("div", {className: "live"}));
    const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
    // Level 1: errors alone; Vega-Lite warns of defaults that it takes.
    const options = {renderer: "svg", actions: false, logLevel: 1, tooltip: {theme: isDark ? "dark" : "light"}};
    views.get(chart)?.finalize();
    const {view} = await vegaEmbed(live, fit(spec.definition, width), options);
    views.set(chart, view);
    view.addEventListener("click", (event, item) => {
      if (item?.mark.role?.startsWith("legend-")) toggleLabel(item.datum.value);  // its text may be cut
    });
    chart.classList.add("is-live");
    live.querySelector("svg").setAttribute("aria-hidden", "true");  // the chart has the text alternative
    if (hidden.size) show(view);
  }

  function show(view) {
    const names = Object.keys(view.getState().signals);
    if (!names.includes("hidden")) return;
    view.signal("hidden", [...hidden]).signal("hidden_labels", hiddenLabels()).runAsync();
  }

  function toggleLabel(label) {
    const arms = data.arms.filter((arm) => legendLabels(arm).has(label)).map((arm) => arm.name);
    if (arms.length) setHidden(arms, !arms.every((name) => hidden.has(name)));
  }

  function setHidden(names, isHidden) {
    for (const name of names) isHidden ? hidden.add(name) : hidden.delete(name);
    for (const box of document.querySelectorAll(".controls input[data-arms]")) {
      const arms = JSON.parse(box.dataset.arms);
      const shown = arms.filter((name) => !hidden.has(name)).length;
      box.checked = shown === arms.length;
      box.indeterminate = shown > 0 && shown < arms.length;
    }
    views.forEach(show);
  }

  function drawn(chart) {
    return {key: chart.dataset.chart, definition: withoutManyDots(data.specs[chart.dataset.chart])};
  }

  // As `charts._without_dots`: thousands of marks would make a page slow.
  function withoutManyDots(spec) {
    const sizes = Object.values(spec.datasets).map((rows) => rows.reduce((sum, row) => sum + (row.value?.length ?? 1), 0));
    const strip = (part) => part.spec ? {...part, spec: strip(part.spec)}
      : part.layer ? {...part, layer: part.layer.filter((layer) => !layer.name?.startsWith("dots"))} : part;
    return Math.max(...sizes) > data.layout.mostDots ? strip(spec) : spec;
  }

  function livePlots() {
    if (typeof vegaEmbed === "undefined") return;
    const resized = new ResizeObserver((entries) => entries.forEach(({target}) => later(target)));
    const waiting = new Map();
    const later = (chart) => {
      clearTimeout(waiting.get(chart));
      waiting.set(chart, setTimeout(() => draw(chart, chart.spec ? chart.spec() : drawn(chart)), 60));
    };
    const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({target}) => {
      seen.unobserve(target);
      resized.observe(target);  // which also reports the size that it has now
    }), {rootMargin: "400px"});
    document.querySelectorAll(".chart").forEach((chart) => seen.observe(chart));
  }

  function armControls() {
    const figure = document.querySelector('#answer [data-chart="arms"]')?.closest("figure");
    if (!figure || data.arms.length < 2) return;
    const box = element("details", {className: "controls"}, element("summary", {textContent: "Choose the arms in the plots"}));
    const choice = (label, arms, colour) => {
      const input = element("input", {type: "checkbox", checked: true});
      input.dataset.arms = JSON.stringify(arms);
      input.addEventListener("change", () => setHidden(arms, !input.checked));
      const swatch = colour === undefined ? [] : [element("span", {className: "swatch", style: `background:var(--c${colour})`})];
      return element("label", {}, input, ...swatch, label);
    };
    const factors = Object.keys(data.arms[0].levels);
    factors.forEach((factor, place) => {
      const levels = [...new Set(data.arms.map((arm) => arm.levels[factor]))];
      const choices = levels.map((level, number) => choice(
        level, data.arms.filter((arm) => arm.levels[factor] === level).map((arm) => arm.name), place ? undefined : number % 7,
      ));
      box.append(element("fieldset", {}, element("legend", {textContent: factor}), ...choices));
    });
    if (factors.length > 1) {
      const choices = data.arms.map((arm) => choice(arm.name, [arm.name]));
      box.append(element("fieldset", {}, element("legend", {textContent: "arms"}), ...choices));
    }
    figure.append(box);
  }

  // A plot of the curves of one arm's runs, of a chosen quantity.
  function curveExplorer() {
    const panels = ["balanced_accuracy", "macro_f1", "accuracy", "loss"].filter((name) => data.specs[`panels_${name}`]);
    const section = document.getElementById("learning");
    if (!section || !panels.length || typeof vegaEmbed === "undefined") return;
    const specs = Object.fromEntries(panels.map((name) => [name, data.specs[`panels_${name}`]]));
    const arms = specs[panels[0]].facet.sort;
    const pick = (label, values) => {
      const select = element("select", {}, ...values.map((value) => element("option", {value, textContent: value})));
      return [select, element("label", {}, label, select)];
    };
    const [arm, armLabel] = pick("Arm ", arms);
    const [metric, metricLabel] = pick("Metric ", panels);
    const chart = element("div", {className: "chart"});
    chart.setAttribute("role", "img");
    chart.spec = () => {
      const {spec, data: rows, datasets, config, usermeta} = specs[metric.value];
      const filter = {filter: {field: "arm", equal: arm.value}};
      const transform = [filter, ...(spec.transform ?? [])];
      const definition = {...spec, data: rows, datasets, config, usermeta, height: 260, transform};
      return {key: `${arm.value}/${metric.value}`, definition};
    };
    const update = () => {
      chart.setAttribute("aria-label", `Training and validation ${metric.value} by epoch of every run of ${arm.value}`);
      draw(chart, chart.spec());
    };
    [arm, metric].forEach((select) => select.addEventListener("change", update));
    const title = element("h3", {textContent: "Every run of one arm"});
    section.querySelector("figure").after(
      element("div", {className: "explorer"}, title, element("div", {className: "controls"}, armLabel, metricLabel), chart),
    );
    update();
  }

  // ---------------------------------------------------------------- tables

  function numberOf(text) {
    const match = text.replaceAll(",", "").match(/[-+]?\d*\.?\d+(e[-+]?\d+)?/i);
    return match ? Number(match[0]) : NaN;
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent) return;
      const button = element("button", {type: "button", textContent: head.textContent});
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const isNumeric = head.classList.contains("number");
        const key = (row) => row.cells[column].textContent.trim();
        const compare = (a, b) => {
          if (!isNumeric) return sign * a.localeCompare(b, "en", {numeric: true});
          const [x, y] = [numberOf(a), numberOf(b)];
          return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);  // empty cells come last
        };
        body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
      });
    });
  }

  function filterable(table) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 6) return;
    const region = table.closest(".wide");
    const name = region.getAttribute("aria-label");
    const input = element("input", {type: "search", placeholder: "Filter rows"});
    input.setAttribute("aria-label", `Filter the rows of ${name}`);
    const count = element("span");
    count.setAttribute("role", "status");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
      count.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
    });
    region.before(element("div", {className: "filter"}, input, count));
  }

  // ---------------------------------------------------------------- commands, mistakes, folded parts

  function copyable(box) {
    const code = box.querySelector("code");
    const button = element("button", {type: "button", textContent: "Copy"});
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {  // a page that is not trusted with the clipboard
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    box.append(button);
  }

  function linkMistakes() {
    for (const link of document.querySelectorAll("td.shade a")) {
      link.addEventListener("click", () => {
        for (const tile of document.querySelectorAll(".gallery li[data-true]")) {
          const isChosen = tile.dataset.true === link.dataset.true && tile.dataset.predicted === link.dataset.predicted;
          tile.classList.toggle("is-chosen", isChosen);
        }
      });
    }
  }

  function unfold() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    target?.scrollIntoView();
  }

  armControls();
  curveExplorer();
  livePlots();
  document.querySelectorAll("table").forEach((table) => { sortable(table); filterable(table); });
  document.querySelectorAll(".command").forEach(copyable);
  linkMistakes();
  addEventListener("hashchange", unfold);
  if (location.hash) unfold();
  const folded = [];  // what print has opened
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((part) => {
    folded.push(part);
    part.open = true;
  }));
  addEventListener("afterprint", () => folded.splice(0).forEach((part) => { part.open = false; }));
})();
