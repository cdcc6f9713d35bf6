"use strict";
// How good the network is: scores beside intervals and baselines, classes, predictions against truth, wrong images.

const NAMED = 30; // classes whose confusion matrix has names and numbers
const GUESSES = { constant: ["majority guess", "mean guess"], latest: ["latest value", "latest value"], linear: ["linear model", "linear model"] };
const OF_CLASS = ["f1", "recall", "precision", "average_precision", "jaccard"];
const percent = (part, whole) => (whole ? `${num((100 * part) / whole)} %` : "–");
const guessNames = (baselines, isNumber) => Object.keys(GUESSES).filter((name) => baselines && baselines[name]).map((name) => [name, GUESSES[name][isNumber ? 1 : 0]]);
const testUnit = (data) => (data.kind === "images" ? "image" : "row");

function scoreTable(story) {
  const { test, intervals, baselines, positive, data = {} } = story.results, guesses = guessNames(baselines, story.task === "regression");
  const between = (ends) => (ends ? `${num(ends[0])} to ${num(ends[1])}` : "–");
  const isNamed = positive !== null && positive !== undefined;
  const title = (name) => (isNamed && OF_CLASS.includes(name) ? `${metric(name)} of “${positive}”` : metric(name));
  const rows = Object.entries(test).map(([name, value]) => [title(name), num(value, 4), ...(intervals ? [between(intervals[name])] : []), ...guesses.map(([guess]) => num((baselines[guess] || {})[name], 4))]);
  const heads = [{ name: "score", left: true }, "network", ...(intervals ? [{ name: "95 % interval", title: "By the bootstrap: what other test rows of the same kind might have given" }] : []), ...guesses.map(([, name]) => name)];
  return table(`Scores on ${plural(data.test_rows, `test ${testUnit(data)}`)}`, heads, rows, "scores");
}

function foldTable(story) {
  const { cross_validation: found } = story.results;
  if (!found) return null;
  const names = Object.keys(found.mean).filter((name) => name !== "parameters");
  const line = (title, figures, rows, size, layers, kind) => ({ cells: [title, rows, ...names.map((name) => num(figures[name], 4)), size, layers], class: kind });
  const rows = found.folds.map((fold, at) => line(`fold ${at + 1}`, fold.test, count(fold.test_rows), count(fold.parameters), widths(fold.architecture)));
  const guesses = guessNames(found.baselines, story.task === "regression").map(([name, title]) => line(`${title}, mean`, found.baselines[name], "", "", "", "refused"));
  return [el("h3", {}, "Cross-validation"), el("p", { class: "note" }, "For each fold a network from scratch is tested on it and thrown away; the spread says how much scores depend on the rows."),
    table("Scores of the folds", [{ name: "fold", left: true }, "test rows", ...names.map(metric), "parameters", { name: "hidden layers", left: true }],
      [...rows, line("mean", found.mean, "", count(Math.round(found.mean.parameters)), "", "accepted"), line("standard deviation", found.spread, "", count(Math.round(found.spread.parameters)), ""), ...guesses], "scores")];
}

/** How often each class is taken for each: numbers on shades, or shades alone of many classes. */
function confusionPicture(counts, labels) {
  const sums = counts.map((row) => row.reduce((sum, one) => sum + one, 0));
  const share = (at, to) => (sums[at] ? counts[at][to] / sums[at] : 0);
  if (labels.length > NAMED) {
    const size = labels.length, cells = counts.flatMap((row, at) => row.map((value, to) => (value ? svg("rect", { x: to, y: at, width: 1, height: 1, class: at === to ? "right" : "wrong", opacity: 0.15 + 0.85 * share(at, to) }, svg("title", {}, `${labels[at]} taken for ${labels[to]}: ${count(value)}`)) : null)));
    return el("figure", {}, svg("svg", { class: "confusion", viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": "Confusion matrix, true classes from top to bottom" }, cells),
      el("figcaption", {}, "True classes from top to bottom, what they were taken for from left to right; the darker, the larger the share of the class."));
  }
  const heads = [{ name: "true class", left: true }, ...labels.map((name) => ({ name, title: `taken for ${name}` }))];
  const rows = counts.map((row, at) => [labels[at], ...row.map((value, to) => el("span", { class: `cell ${at === to ? "right" : value ? "wrong" : ""}`, style: `--share: ${Math.round(100 * share(at, to))}%`, title: `${labels[at]} taken for ${labels[to]}: ${percent(value, sums[at])}` }, count(value)))]);
  return table("How often each class was taken for each", heads, rows, "confusion");
}

function classPart(story) {
  const { confusion, data = {} } = story.results, labels = data.classes || [];
  if (!confusion || confusion.length !== labels.length || confusion.some((row) => row.length !== labels.length)) return null;
  const all = data.class_rows && data.class_rows.length === labels.length ? data.class_rows : null, unit = testUnit(data);
  const rows = confusion.map((row, at) => {
    const own = row.reduce((sum, one) => sum + one, 0), taken = confusion.reduce((sum, one) => sum + one[at], 0);
    return [labels[at], ...(all ? [count(all[at])] : []), count(own), percent(row[at], own), percent(row[at], taken)];
  });
  const heads = [{ name: "class", left: true }, ...(all ? [`${unit}s`] : []), `test ${unit}s`, { name: "found", title: "Share of the class that was taken for it (recall)" }, { name: "right", title: "Share of what was taken for the class that belongs to it (precision)" }];
  return [el("h3", {}, "Classes"), el("div", { class: "halves" }, el("div", {}, table(`${cap(unit)}s of each class, and how many were found`, heads, rows, "classes")), el("div", {}, confusionPicture(confusion, labels)))];
}

/** Round numbers between two ends. */
function ticks(from, to, most = 5) {
  const rough = (to - from) / most, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough) || 10 * power;
  const found = [];
  for (let at = Math.ceil(from / step - 1e-9) * step; at <= to + 1e-9 * step && found.length < 20; at += step) found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return found;
}

function pairsPart(story) {
  const pairs = ((story.details || {}).pairs || []).filter((pair) => pair.every(known));
  if (pairs.length < 2) return null;
  const all = pairs.flat(), low = Math.min(...all), high = Math.max(...all), room = (high - low) * 0.04 || 1;
  const from = low - room, to = high + room, side = 420, left = 64, bottom = 44;
  const x = (value) => left + ((value - from) / (to - from)) * side, y = (value) => side - ((value - from) / (to - from)) * side + 8;
  const marks = ticks(low, high);
  const picture = svg("svg", { class: "pairs", viewBox: `0 0 ${left + side + 12} ${side + bottom + 8}`, role: "img", "aria-label": `Predicted against true ${(story.results.data || {}).target || "numbers"} of ${plural(pairs.length, "test row")}` },
    marks.map((value) => [svg("line", { class: "grid", x1: x(value), x2: x(value), y1: y(from), y2: y(to) }), svg("line", { class: "grid", x1: x(from), x2: x(to), y1: y(value), y2: y(value) }),
      svg("text", { x: x(value), y: side + 24 }, short(value) === count(value) ? num(value, 4) : short(value)), svg("text", { x: left - 8, y: y(value) + 4, class: "at" }, short(value) === count(value) ? num(value, 4) : short(value))]),
    svg("line", { class: "diagonal", x1: x(from), x2: x(to), y1: y(from), y2: y(to) }),
    pairs.map(([truth, guess]) => svg("circle", { cx: x(truth), cy: y(guess), r: pairs.length > 300 ? 2.2 : 3.2 }, svg("title", {}, `true ${num(truth, 4)}, predicted ${num(guess, 4)}`))),
    svg("text", { x: left + side / 2, y: side + bottom + 2 }, "true"), svg("text", { transform: `translate(14 ${side / 2}) rotate(-90)` }, "predicted"));
  return [el("h3", {}, "Predicted against true"), el("figure", { class: "card" }, picture, el("figcaption", {}, `${plural(pairs.length, "test row")}; on the line predictions are right.`))];
}

function wrongPart(story) {
  const { wrongest = [], wrong } = story.details || {}, { data = {} } = story.results, labels = data.classes || [];
  if (data.kind !== "images" || !story.details) return null;
  if (!wrongest.length) return [el("h3", {}, "Wrong images"), el("p", { class: "note" }, "No test image was taken for another class.")];
  const name = (at) => labels[at] ?? `class ${at + 1}`;
  return [el("h3", {}, "Wrong images"), el("p", { class: "note" }, `${plural(wrong, "test image")} of ${count(data.test_rows)} ${wrong === 1 ? "was" : "were"} taken for another class; ${wrongest.length < wrong ? `these ${count(wrongest.length)} are` : wrong === 1 ? "it is" : "they are"} shown as the network sees them, the surest mistakes first.`),
    el("div", { class: "wrongest" }, wrongest.map((one) => el("figure", {}, el("img", { src: one.image, alt: `a test image of ${name(one.true)}`, loading: "lazy" }),
      el("figcaption", {}, el("b", {}, name(one.true)), ` taken for ${name(one.taken_for)}, probability ${num(one.probability, 2)}`))))];
}

function scoresPart(story) {
  const { test } = story.results || {};
  if (!test || !Object.keys(test).length) return [];
  const notes = (story.results.test_notes || []).map((note) => el("p", { class: "note" }, cap(note), "."));
  return [scoreTable(story), notes, foldTable(story), classPart(story), pairsPart(story), wrongPart(story)].flat().filter(Boolean);
}
