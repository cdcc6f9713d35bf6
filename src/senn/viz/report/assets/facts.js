"use strict";
// Figures of the finished run: scores, architecture, data, code.

const METRICS = {
  log_loss: "log loss", r2: "R²", rmse: "RMSE", mae: "MAE", f1: "F1", f1_macro: "F1, mean over classes", roc_auc: "area under the ROC curve",
  roc_auc_ovr: "area under ROC curves, mean", ece: "calibration error",
};
const metric = (name) => METRICS[name] || name.replace(/_/g, " ");

const hidden = (story) => (story.results || story.end || {}).architecture || (story.moments.length ? story.moments[story.moments.length - 1].layers.map((layer) => layer.width) : []);
const parameters = (story) => (story.results || story.end || {}).parameters ?? (story.moments.length ? story.moments[story.moments.length - 1].parameters : null);
const changeCount = (story) => story.rounds.reduce((sum, round) => sum + round.changes.length, 0);
const flops = (story) => { const last = story.kept || story.epochs[story.epochs.length - 1] || story.start || {}; return last.flops; };
const took = (story) => (story.results || story.end || story.epochs[story.epochs.length - 1] || {}).seconds;

/** The run in one sentence. */
function aboutText(story) {
  const { data = {} } = story.results || {}, start = story.start || {};
  const task = story.task === "regression" ? "Regression" : story.task ? "Classification" : "A run";
  const what = data.target ? ` of “${data.target}” from ${plural(data.features, "feature")}` : data.kind === "images" ? ` of images of ${(data.shape || []).join(" × ")}` : "";
  const rows = known(start.train_rows) ? `, ${count(start.train_rows)} rows to train on` : "";
  const optimizer = start.optimizer || (story.results || {}).optimizer;
  const open = story.results || story.end ? "" : " The run isn’t finished; this is its state so far.";
  return `${task}${what}${rows}${optimizer ? `, ${optimizer}` : ""}.${open}`;
}

function tiles(story) {
  const { test = {}, validation } = story.results || {}, end = story.end || {};
  const start = story.start || {};
  const last = story.epochs[story.epochs.length - 1] || {};
  const scores = Object.entries(test).length ? Object.entries(test).map(([name, value]) => [`test ${metric(name)}`, num(value, 4)])
    : Object.entries(validation || end.validation || {}).length ? Object.entries(validation || end.validation).map(([name, value]) => [`validation ${metric(name)}`, num(value, 4)])
      : known(last.validation_score) ? [[`validation ${story.scoreName}`, num(last.validation_score, 4)]] : [];
  const size = start.parameters ? ` from ${count(start.parameters)}` : "";
  const facts = [...scores.slice(0, 2), ["hidden layers", widths(hidden(story)), start.architecture ? `from ${widths(start.architecture)}` : ""], ["parameters", count(parameters(story)), size.trim()],
    ["changes of size", count(changeCount(story)), `in ${plural(story.rounds.length, "round")}`], ["time", seconds(took(story)), plural(story.epochs.length, "epoch")]].filter(([, value]) => value !== "–");
  return el("dl", { class: "tiles" }, facts.map(([name, value, note]) => el("div", {}, el("dt", {}, name), el("dd", { class: String(value).length > 10 ? "long" : null }, value, note ? el("small", {}, note) : null))));
}

function comparison(stories) {
  const names = [...new Set(stories.flatMap((story) => Object.keys((story.results || {}).test || {})))];
  const rows = stories.map((story) => {
    const results = story.results || {}, start = story.start || {};
    const scores = names.map((name) => num((results.test || {})[name], 4));
    const validation = (results.validation || (story.end || {}).validation || {}).loss;
    return [story.name, ...scores, num(validation, 4), widths(hidden(story)), count(parameters(story)), short(flops(story)), count(changeCount(story)), count(story.rounds.length), count(story.epochs.length), seconds(took(story)), results.seed ?? "–", start.optimizer || "–", start.policy || "fixed size"];
  });
  const heads = [{ name: "run", left: true }, ...names.map((name) => `test ${metric(name)}`), "validation loss", { name: "hidden layers", left: true }, "parameters", "FLOPs", "changes", "rounds", "epochs", "time", "seed", { name: "optimizer", left: true }, { name: "policy", left: true }];
  return table("Final figures of the runs", heads, rows);
}

function finalTable(story) {
  const results = story.results || {}, end = story.end || {};
  const rows = [
    ...Object.entries(results.test || {}).map(([name, value]) => [`test ${metric(name)}`, num(value, 5)]),
    ...Object.entries(results.validation || end.validation || {}).map(([name, value]) => [`validation ${metric(name)}`, num(value, 5)]),
    ["hidden layers", widths(hidden(story))], ["networks whose predictions are averaged", results.members > 1 ? count(results.members) : null], ["parameters", count(parameters(story))], ["operations of a forward pass, per sample", count(flops(story))],
    ["epoch kept", known(end.best_epoch) ? `${count(end.best_epoch)} of ${count(end.epochs)}` : null], ["ended because", end.reason], ["kept", end.kept], ["interrupted", results.interrupted ? "yes" : null],
    ["seed", known(results.seed) ? String(results.seed) : null], ["optimizer", results.optimizer], ["policy", results.policy],
    ["versions", results.versions ? Object.entries(results.versions).map(([name, version]) => `${name} ${version}`).join(", ") : null],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "–");
  return table(`Scores, size and settings of ${story.name}`, [{ name: "figure", left: true }, { name: "value", left: true }], rows);
}

function dataPart(story) {
  const { data } = story.results || {};
  if (!data) return null;
  const rows = [["name", data.name], ["rows", count(data.rows)], ["training rows", count(data.train_rows)], ["test rows", count(data.test_rows)], ["features", count(data.features)],
    ["image size", data.shape ? data.shape.join(" × ") : null], ["target", data.target], ["classes", data.classes ? data.classes.join(", ") : null], ...(data.notes || []).map((note) => ["note", note])]
    .filter(([, value]) => value !== null && value !== undefined && value !== "–");
  const columns = data.columns && data.columns.length ? disclosure("Columns", () => table("Columns and how they are read", [{ name: "column", left: true }, { name: "kind", left: true }], data.columns, "columns")) : null;
  return [el("h3", {}, "Data"), table("Data of the run", [{ name: "what", left: true }, { name: "value", left: true }], rows), columns];
}

function codePart(story) {
  if (!story.code) return null;
  const code = el("code", {}, story.code);
  const said = el("span", { role: "status", class: "note" });
  const copy = el("button", { type: "button", class: "quiet", onclick: async () => {
    try { await navigator.clipboard.writeText(story.code); said.replaceChildren("Copied."); }
    catch { getSelection().selectAllChildren(code); said.replaceChildren("Selected: copy it with the keyboard."); }
  } }, "Copy");
  return [el("h3", {}, "As PyTorch code"), el("p", {}, copy, " ", said), el("pre", { tabindex: "0", role: "group", "aria-label": `PyTorch code of the network of ${story.name}` }, code)];
}
