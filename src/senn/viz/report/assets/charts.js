"use strict";
// Charts: a Vega-Lite specification each, its data by name (so that they can be renewed), and the same as a table.

const COLORS = [1, 2, 3, 4, 5, 6, 7, 8].map((number) => `var(--c${number})`);
const KIND_COLORS = { widen: "var(--widen)", insert: "var(--insert)", prune: "var(--prune)" };
const STEP = { field: "step", type: "quantitative", scale: { type: "sqrt", nice: false }, axis: { title: "step (square-root scale)", grid: false, tickCount: 6, format: ",d" } };
const CONFIG = {
  background: "transparent", font: "system-ui, sans-serif", padding: 4, mark: { aria: false },
  view: { stroke: null },
  axis: { labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--grid)", domainColor: "var(--edge)", tickColor: "var(--edge)", titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11 },
  legend: { labelColor: "var(--ink)", titleColor: "var(--muted)", orient: "top", title: null, labelFontSize: 12, symbolStrokeWidth: 3, labelLimit: 118 },
};
const HEIGHT = { loss: 270 };

const ruler = { data: { values: [{}] }, transform: [{ calculate: "at", as: "step" }], mark: { type: "rule", color: "var(--ink)", opacity: 0.45, strokeDash: [3, 3] }, encoding: { x: STEP } };
const rug = {
  data: { name: "changes" },
  mark: { type: "rule", strokeWidth: 2, clip: true },
  encoding: {
    x: STEP, y: { value: { expr: "height - 9" } }, y2: { value: { expr: "height" } },
    color: { field: "kind", type: "nominal", scale: { domain: Object.keys(KIND_COLORS), range: Object.values(KIND_COLORS) }, legend: null },
    tooltip: [{ field: "step", title: "step" }, { field: "text", title: "change" }],
  },
};

/** Lines over steps: rows of {step, series, value, epoch}. */
function lines({ y, log, area, stepped, counted, series, colors, dashed, marked }) {
  const color = series.length > 1 || dashed
    ? { field: "series", type: "nominal", scale: { domain: series, range: colors || series.map((_, at) => COLORS[at % COLORS.length]) }, sort: null, legend: series.length > 1 && series.length <= 12 ? { symbolType: area ? "square" : "stroke" } : null }
    : { value: (colors || COLORS)[0] };
  const scale = log ? { type: "log", nice: true } : { zero: Boolean(area || stepped || counted), nice: true };
  const Y = { field: "value", type: "quantitative", scale, stack: area ? "zero" : null, axis: { title: y, tickCount: 5, format: (stepped || counted) && !area ? "~s" : ".3~r" } };
  const dash = dashed ? { strokeDash: { field: "part", type: "nominal", scale: { domain: ["validation", "training"], range: [[1, 0], [4, 3]] }, legend: { symbolStrokeColor: "var(--ink)" } }, detail: { field: "part" } } : {};
  const tooltip = [{ field: "series", title: " " }, ...(dashed ? [{ field: "part", title: "part" }] : []), { field: "step", title: "step", format: ",d" }, { field: "epoch", title: "epoch", format: ",d" }, { field: "value", title: y, format: (stepped || counted) && !area ? ",d" : ".4~g" }];
  const mark = area ? { type: "area", opacity: 0.75, line: false, interpolate: "step-after" } : { type: "line", strokeWidth: 2, interpolate: stepped ? "step-after" : "linear" };
  return {
    layer: [
      ...(marked ? [rug] : []),
      { data: { name: "curve" }, mark, encoding: { x: STEP, y: Y, color: color, ...dash } },
      ruler,
      {
        data: { name: "curve" },
        params: [{ name: "near", select: { type: "point", on: "pointerover", nearest: true, clear: "pointerout" } }],
        mark: { type: "point", filled: true, size: 55 },
        encoding: { x: STEP, y: Y, color: color.field ? { ...color, legend: null } : color, opacity: { condition: { param: "near", value: 1, empty: false }, value: 0 }, tooltip },
      },
    ],
    resolve: { scale: { color: "independent" } },
  };
}

/** Expected against realized decreases of rounds: on the diagonal they agree. */
function calibration(stories) {
  const scale = { type: "symlog", constant: 1e-3, nice: false };
  const several = stories.length > 1;
  const color = several
    ? { field: "series", type: "nominal", scale: { domain: stories.map((story) => story.name), range: stories.map((_, at) => COLORS[at % COLORS.length]) } }
    : { field: "kind", type: "nominal", scale: { domain: Object.keys(KIND_COLORS), range: Object.values(KIND_COLORS) } };
  const axis = (title) => ({ title, values: [-1, -0.1, -0.01, -0.001, 0, 0.001, 0.01, 0.1, 1, 10], format: "~g", labelOverlap: "greedy" });
  return {
    layer: [
      { data: { name: "diagonal" }, mark: { type: "line", color: "var(--muted)", strokeDash: [2, 3] }, encoding: { x: { field: "value", type: "quantitative", scale }, y: { field: "value", type: "quantitative", scale } } },
      {
        data: { name: "curve" },
        mark: { type: "point", filled: true, size: 70, stroke: "var(--card)", strokeWidth: 1 },
        encoding: {
          x: { field: "expected", type: "quantitative", scale, axis: axis("expected (nats)") },
          y: { field: "realized", type: "quantitative", scale, axis: axis("realized (nats)") },
          color: { ...color, legend: { symbolType: "circle", ...(several ? {} : { values: [...new Set(decreaseRows(stories).map((row) => row.kind))] }) } },
          opacity: { condition: { test: "datum.step <= at", value: 0.95 }, value: 0.2 },
          tooltip: [{ field: "series", title: "run" }, { field: "step", title: "step" }, { field: "text", title: "change" }, { field: "expected", format: ".3g" }, { field: "realized", format: ".3g" }],
        },
      },
    ],
  };
}

/** Score against parameters of networks that are pruned without training; a ring marks the one that is kept. */
function sizesSpec(stories, y) {
  const several = stories.length > 1;
  const color = several
    ? { field: "series", type: "nominal", scale: { domain: stories.map((story) => story.name), range: stories.map((_, at) => COLORS[at % COLORS.length]) }, legend: { symbolType: "stroke" } }
    : { value: "var(--c1)" };
  const encoding = {
    x: { field: "parameters", type: "quantitative", scale: { type: "log", nice: false, padding: 12 }, axis: { title: "parameters (logarithmic scale)", grid: false, tickCount: 5, format: "~s", labelOverlap: "greedy" } },
    y: { field: "value", type: "quantitative", scale: { zero: false, nice: true }, axis: { title: y, tickCount: 5, format: ".3~r" } },
    color,
  };
  const tooltip = [{ field: "series", title: "run" }, { field: "share", title: "units removed", format: ".0%" }, { field: "parameters", title: "parameters", format: ",d" }, { field: "widths", title: "units" }, { field: "value", title: y, format: ".4~g" }, { field: "loss", title: "loss", format: ".4~g" }];
  return {
    layer: [
      { data: { name: "curve" }, mark: { type: "line", strokeWidth: 2 }, encoding: { ...encoding, order: { field: "parameters" } } },
      { data: { name: "curve" }, mark: { type: "point", filled: true, size: 45, opacity: 1 }, encoding: { ...encoding, color: several ? { ...color, legend: null } : color, tooltip } },
      { data: { name: "curve" }, transform: [{ filter: "datum.kept" }], mark: { type: "point", filled: false, size: 190, strokeWidth: 2, color: "var(--ink)" }, encoding: { x: encoding.x, y: encoding.y, tooltip } },
      { data: { name: "curve" }, transform: [{ filter: "datum.kept" }], mark: { type: "text", align: "right", dx: -13, dy: several ? 0 : 15, color: "var(--ink)", fontSize: 11, text: several ? "" : "kept" }, encoding: { x: encoding.x, y: encoding.y } },
    ],
    resolve: { scale: { color: "independent" } },
  };
}
function sizeRows(stories) {
  return stories.filter((story) => story.frontier).flatMap((story) => {
    const { points, units, score_name: score } = story.frontier;
    return points.map((point, at) => ({
      series: story.name, parameters: point.parameters, share: units ? point.removed / units : 0, widths: widths(Object.values(point.widths)),
      value: point.figures[score || "loss"], loss: point.figures.loss, kept: at === 0,
    })).filter((row) => known(row.value));
  });
}

const changesOf = (stories) => stories.flatMap((story) => story.rounds.filter((round) => round.changes.length).map((round) => ({ step: round.step, kind: kindOf(round), text: round.changes.map(changed).join("; ") })));

function lossRows(stories) {
  return stories.flatMap((story) => story.epochs.flatMap((epoch) =>
    [["training", epoch.train_loss], ["validation", epoch.validation_loss]].filter(([, value]) => known(value)).map(([part, value]) =>
      ({ step: epoch.step, epoch: epoch.epoch, part, value, series: stories.length > 1 ? story.name : part }))));
}
const epochRows = (stories, field) => stories.flatMap((story) => story.epochs.filter((epoch) => known(epoch[field])).map((epoch) => ({ step: epoch.step, epoch: epoch.epoch, value: epoch[field], series: story.name })));
const momentRows = (stories, field) => stories.flatMap((story) => story.moments.filter((moment) => known(moment[field])).map((moment) => ({ step: moment.step, epoch: moment.epoch, value: moment[field], series: story.name })));

function layerNames(story) {
  const last = story.moments.length ? story.moments[story.moments.length - 1].layers : [];
  return last.map((layer, at) => ({ id: layer.id, label: `layer ${at + 1}` }));
}
function widthRows(story) {
  const names = new Map(layerNames(story).map((layer) => [layer.id, layer.label]));
  return story.moments.flatMap((moment) => moment.layers.map((layer) => ({ step: moment.step, epoch: moment.epoch, value: layer.width, series: names.get(layer.id) || "gone" })));
}
function etaRows(stories) {
  return stories.flatMap((story) => {
    const rounds = story.rounds.filter((round) => round.record);
    if (stories.length > 1) return rounds.map(({ record, step, epoch }) => ({ step, epoch, value: record.eta, series: story.name }));
    const maps = [...new Set(rounds.flatMap(({ record }) => Object.keys(record.eta_by_map || {})))];
    return rounds.flatMap(({ record, step, epoch }) => maps.map((series) => ({ step, epoch, series, value: (record.eta_by_map || {})[series] ?? 0 })));
  });
}
/** What the additions of a round have brought, each measured by itself; undefined until that is known. */
function realizedOf(round) {
  const values = round.changes.map((change) => change.realized_decrease).filter(known);
  return values.length ? values.reduce((sum, value) => sum + value, 0) : undefined;
}
function decreaseRows(stories) {
  return stories.flatMap((story) => story.rounds.filter((round) => known(realizedOf(round))).map((round) => ({
    step: round.step, series: story.name, kind: kindOf(round), text: round.changes.map(changed).join("; "),
    expected: round.changes.filter((change) => known(change.realized_decrease)).reduce((sum, change) => sum + (change.expected_decrease || 0), 0), realized: realizedOf(round),
  })));
}
function diagonal(rows) {
  const values = rows.flatMap((row) => [row.expected, row.realized]);
  if (!values.length) return [];
  return [Math.min(0, ...values), 0, Math.max(0, ...values)].map((value) => ({ value }));
}

const asTable = (rows, columns) => [columns.map(([name]) => name), rows.map((row) => columns.map(([, cell]) => cell(row)))];
const curveTable = (unit, several) => (rows) => asTable(rows, [["step", (row) => count(row.step)], ["epoch", (row) => count(row.epoch)], [several ? "run" : "series", (row) => row.series + (several && row.part ? `, ${row.part}` : "")], [unit, (row) => num(row.value, 4)]]);

/** All charts of some runs: {key, title, about, spec, data, table}; those without data are left out. */
function charts(stories) {
  const several = stories.length > 1, [story] = stories;
  const runs = stories.map((one) => one.name);
  const changes = several ? [] : changesOf(stories);
  const nats = stories.every((one) => one.task === "classification") ? "loss (nats)" : "loss";
  const curve = (key, title, about, rows, options) => ({ key, title, about, spec: lines({ series: runs, marked: changes.length > 0, ...options }), data: changes.length ? { curve: rows, changes } : { curve: rows }, table: curveTable(options.y, several), rows });
  const loss = lossRows(stories);
  const validated = loss.some((row) => row.series === "validation");
  const parts = validated ? { series: ["training", "validation"], colors: ["var(--c2)", "var(--c1)"] } : { series: ["training"], colors: ["var(--c2)"] };
  const eta = etaRows(stories);
  const maps = several ? runs : [...new Set(eta.map((row) => row.series))];
  const decreases = decreaseRows(stories);
  const sizes = sizeRows(stories);
  const sizeScore = sizes.length && stories.every((one) => !one.frontier || one.frontier.score_name) ? (several ? "score" : story.scoreName) : "loss";
  const found = [
    curve("loss", "Loss", several ? "Validation whole, training dashed." : `${validated ? "Of training and validation" : "Of training"}, after each epoch. Ticks below mark changes of size.`, loss,
      several ? { y: nats, log: loss.every((row) => row.value > 0), dashed: true } : { y: nats, log: loss.every((row) => row.value > 0), ...parts }),
    curve("score", `Validation ${[...new Set(stories.map((one) => one.scoreName))].join(" or ")}`, "After each epoch, on rows that are not trained on.", epochRows(stories, "validation_score"), { y: several ? "score" : story.scoreName, colors: several ? null : ["var(--c1)"] }),
    several ? null : curve("widths", "Widths", "Units of each hidden layer; a layer keeps its color when others are inserted before it.", widthRows(story), { y: "units", stepped: true, series: layerNames(story).map((layer) => layer.label) }),
    curve("parameters", "Parameters", "Of the network during training.", momentRows(stories, "parameters"), { y: "parameters", stepped: true, colors: several ? null : ["var(--c4)"] }),
    curve("flops", "Operations", "Floating-point operations of a forward pass, per sample.", [...stories.filter((one) => one.start && known(one.start.flops)).map((one) => ({ step: 0, epoch: 0, value: one.start.flops, series: one.name })), ...epochRows(stories, "flops")], { y: "FLOPs", counted: true, colors: several ? null : ["var(--c5)"] }),
    curve("eta", several ? "Expansion score η" : "Expansion score η, by linear map", "Twice the decrease of the loss that a full natural-gradient step is expected to bring, at each round.", eta,
      { y: "η", area: !several, stepped: true, series: maps }),
    { key: "decreases", title: "Expected and realized decrease", about: "Decrease of the loss expected of each round, and what the new units bring at the next one: the loss without them less the loss with them. On the dotted line they agree; above it they bring more than expected.",
      spec: calibration(stories), data: { curve: decreases, diagonal: diagonal(decreases) }, rows: decreases,
      table: (rows) => asTable(rows, [["step", (row) => count(row.step)], [several ? "run" : "change", (row) => (several ? row.series : row.text)], ["expected", (row) => signed(row.expected)], ["realized", (row) => signed(row.realized)]]) },
    { key: "frontier", title: `Validation ${sizeScore} at smaller sizes`, about: `The network that is kept${several ? " of each run" : ""} (ringed), pruned by its costs of removal to smaller and smaller sizes without any training; on the validation rows.`,
      spec: sizesSpec(stories, sizeScore), data: { curve: sizes }, rows: sizes,
      table: (rows) => asTable(rows, [[several ? "run" : "units", (row) => (several ? row.series : row.widths)], ["units removed", (row) => `${Math.round(100 * row.share)} %`], ["parameters", (row) => count(row.parameters)], [sizeScore, (row) => num(row.value, 4)], ["loss", (row) => num(row.loss, 4)]]) },
  ];
  const drawable = ({ key, rows }) => (key === "frontier" ? rows.length > 1 : key === "decreases" ? rows.length > 0 : rows.some((row) => row.step !== rows[0].step)); // one point is no line
  return found.filter((one) => one && drawable(one));
}

/** Vega-Lite shows, for the cell around the nearest point, fields of the cell: let it be those of its point. */
function nearestTooltips(spec) {
  for (const mark of spec.marks || []) {
    const tooltip = /voronoi/.test(mark.name || "") && mark.encode && mark.encode.update && mark.encode.update.tooltip;
    if (tooltip && tooltip.signal) tooltip.signal = tooltip.signal.replace(/datum\.datum\[/g, "datum[").replace(/datum\[/g, "datum.datum[");
  }
  return spec;
}

/** How many names of series have room beside each other also on a phone and on paper, and in how many lines. */
function legendSize(rows) {
  const names = [...new Set(rows.map((row) => String(row.series || "")))];
  const columns = Math.max(2, Math.min(5, Math.floor(290 / (26 + 6.5 * Math.max(1, ...names.map((name) => name.length))))));
  return { columns, lines: names.length > 12 ? 0 : Math.ceil(names.length / columns) };
}

/** A chart on the page: drawn once, its data renewed; drawn anew only if its specification changes. */
class Chart {
  constructor(chart, onClick) {
    this.key = chart.key;
    this.onClick = onClick;
    this.step = 0;
    this.plot = el("div", { class: "plot", role: "img" });
    this.title = el("h3", { id: `chart-${chart.key}` });
    this.about = el("p", { class: "note" });
    this.table = disclosure("As a table", () => table(this.chart.title, ...this.chart.table(this.chart.rows)));
    this.element = el("div", { role: "group", class: `card chart ${chart.key}`, "aria-labelledby": `chart-${chart.key}` }, this.title, this.about, this.plot, this.table);
    this.ready = Promise.resolve().then(() => this.update(chart)); // when it is on the page and has a width
  }

  async update(chart) {
    this.chart = chart;
    this.title.replaceChildren(chart.title);
    this.about.replaceChildren(chart.about);
    this.plot.setAttribute("aria-label", `Chart: ${chart.title}. ${chart.about} Its figures are in the table below it.`);
    this.table.refresh();
    const text = JSON.stringify(chart.spec);
    if (this.view && text === this.text) {
      for (const [name, values] of Object.entries(chart.data)) this.view.data(name, values);
      return this.view.runAsync();
    }
    this.text = text;
    const { columns, lines: high } = legendSize(chart.rows);
    this.height = (HEIGHT[chart.key] || 225) + 14 * Math.max(0, high - 1);
    const spec = { width: "container", height: this.height, autosize: { type: "fit", contains: "padding" }, config: { ...CONFIG, legend: { ...CONFIG.legend, columns } }, datasets: chart.data, params: [{ name: "at", value: this.step }], ...chart.spec };
    const { view } = await vegaEmbed(this.plot, spec, { mode: "vega-lite", actions: false, renderer: "svg", ast: false, patch: nearestTooltips, tooltip: { theme: "plain" } });
    this.view = view;
    if (this.onClick && !["decreases", "frontier"].includes(chart.key)) view.addEventListener("click", (event) => {
      const x = event.clientX - this.plot.querySelector("svg").getBoundingClientRect().left - view.origin()[0];
      const step = view.scale("x").invert(x);
      if (known(step)) this.onClick(step);
    });
    return this.mark(this.step);
  }

  /** Mark the step that the picture shows. */
  mark(step) {
    this.step = step;
    if (!this.view) return undefined;
    return this.view.signal("at", step).runAsync();
  }
}
