"use strict";
// Why each change happened: every round, with all of its candidates, what was expected of them, what they cost, what was refused.

const CANDIDATE_COLUMNS = [
  { name: "verdict", left: true }, { name: "change", left: true },
  { name: "decrease and price", left: true, title: "bar: expected decrease of the loss, with its standard error; upright line: the price; square-root scale" },
  { name: "expected", title: "expected decrease of the loss, in nats per sample" },
  { name: "price", title: "least decrease that its parameters have to bring, in nats per sample" },
  { name: "margin", title: "expected decrease beyond what the policy requires, in nats per sample; negative if it falls short" },
  { name: "gain η", title: "exact gain of the expansion score; minus the cost, for pruning" },
  { name: "held-out η ± error", title: "gain of a step fitted on one half of the samples and valued on the other, with its standard error" },
  { name: "units" }, { name: "parameters", title: "net change of the number of parameters" }, { name: "detail", left: true },
];
const CHANGE_COLUMNS = [
  { name: "change", left: true }, { name: "width" }, { name: "parameters" }, { name: "gain η" }, { name: "held-out η ± error" }, { name: "expected" }, { name: "price" },
  { name: "realized", title: "at the next round, the loss without what was added less the loss with it" }, { name: "loss before" }, { name: "loss after" },
  { name: "outputs moved", title: "largest relative change of an output at the moment of the change" },
];

const plusMinus = (value, error) => `${num(value)} ± ${num(error, 2)}`;
const badge = (kind) => el("span", { class: `badge ${kind}` }, { widen: "widen", insert: "insert", prune: "prune" }[kind] || kind);

/** A bar for the expected decrease, a whisker for its error, an upright line for the price; all by their square roots. */
function bar(one, nat, most) {
  const x = (value) => 100 * Math.sqrt(Math.min(1, Math.max(0, value) / most));
  const decrease = one.kind === "prune" ? Math.abs(one.expected_decrease || 0) : Math.max(0, one.expected_decrease || 0), error = (one.held_out_stderr || 0) / (2 * nat), price = Math.abs(one.price || 0);
  const whisker = error ? svg("line", { x1: x(decrease - error), x2: x(decrease + error), y1: 7, y2: 7, class: "whisker" }) : null;
  return svg("svg", { class: "bar", viewBox: "-1 0 102 14", "aria-hidden": "true" },
    svg("rect", { x: 0, y: 4, width: x(decrease), height: 6, rx: 2, class: one.kind + (one.accepted ? "" : " refused") }), whisker,
    svg("line", { x1: x(price), x2: x(price), y1: 1, y2: 13, class: "price" }));
}

function candidateTable(story, round) {
  const candidates = story.candidates(round), nat = round.record.loss_per_nat || 1;
  const most = Math.max(1e-12, ...candidates.map((one) => Math.max(Math.abs(one.expected_decrease || 0) + (one.held_out_stderr || 0) / (2 * nat), Math.abs(one.price || 0))));
  const rows = candidates.map((one) => ({
    class: one.accepted ? "accepted" : "refused",
    cells: [one.accepted ? "accepted" : one.reason ? "not taken" : "refused", [badge(one.kind), ` ${one.place}`], bar(one, nat, most), signed(one.expected_decrease), num(one.price), signed(one.margin), num(one.gain),
      one.kind === "prune" ? "–" : plusMinus(one.held_out_gain, one.held_out_stderr), count(one.units), signedCount(one.parameters), one.reason ? `${one.detail}; ${one.reason}` : one.detail],
  }));
  return table(`Candidates of round ${round.number}, at step ${count(round.step)}: the accepted in their order, then the best refused of each kind and place`, CANDIDATE_COLUMNS, rows);
}

function changeTable(round) {
  return table(`Changes of round ${round.number}`, CHANGE_COLUMNS, round.changes.map((one) => [
    [badge(one.kind), ` ${one.place}`, one.kind === "insert" ? ` (${one.detail})` : ""], `${count(one.width_before)} → ${count(one.width_after)}`, signedCount(one.parameters), num(one.gain),
    one.kind === "prune" ? "–" : plusMinus(one.held_out_gain, one.held_out_stderr), signed(one.expected_decrease), num(one.price), signed(one.realized_decrease), num(one.loss_before, 4), num(one.loss_after, 4), num(one.output_change, 2)]));
}

/** By how much the best of those refused fell short. */
function closest(story, round) {
  const best = story.candidates(round).filter((one) => !one.accepted && known(one.margin)).sort((a, b) => b.margin - a.margin)[0];
  if (!best) return "";
  const what = `${best.kind} ${best.place}`;
  return best.margin < 0 ? `closest refused: ${what}, short by ${num(-best.margin, 2)} nats` : `not taken: ${what}, ${num(best.margin, 2)} nats above what is required${best.reason ? ` (${best.reason})` : ""}`;
}

function roundSummary(story, round) {
  const { record, changes } = round;
  const expected = changes.reduce((sum, one) => sum + (one.expected_decrease || 0), 0);
  const price = changes.reduce((sum, one) => sum + (one.price || 0), 0);
  const removals = changes.every((one) => one.kind === "prune");
  const worth = removals ? `costs ${num(-expected)} nats, saves a price of ${num(-price)}` : `expected decrease ${signed(expected)} nats for a price of ${num(price)}`;
  const figures = changes.length ? `${worth}${known(realizedOf({ changes })) ? `, realized ${signed(realizedOf({ changes }))}` : ""}` : "";
  const moves = record && record.moves ? `considered ${record.moves.map((move) => MOVES[move] || move).join(", ")}` : "";
  const notes = [figures, record ? closest(story, round) : "", changes.length ? "" : moves].filter(Boolean).join(" · ");
  const state = changes.length ? kindOf(round) : round.rollbacks.length ? "rollback" : "nothing";
  return el("span", { class: `round ${state}` },
    el("span", { class: "when" }, `step ${count(round.step)}`), el("span", { class: "verdict" }, verdict(story, round)),
    round.rollbacks.length ? el("span", { class: "reason" }, round.rollbacks.map((one) => one.text).join("; ")) : null,
    el("span", { class: "figures" }, notes));
}

function roundDetails(story, round, goTo) {
  const { record } = round;
  const looked = record ? el("p", { class: "note" },
    `Scored on ${count(record.n_samples_seen)} of ${count(record.samples)} samples (loss ${num(record.loss, 4)}; ${count(record.parameters)} parameters). `,
    `Expansion score η ${num(record.eta)}, λ ${num(record.score_limit)}; by map: `,
    Object.entries(record.eta_by_map || {}).map(([name, value]) => `${name} ${num(value)}`).join(", "), ".") : el("p", { class: "note" }, "The candidates of this round weren't recorded.");
  return [
    looked,
    ...round.rollbacks.map((one) => el("p", { class: "rolled" }, cap(one.text))),
    round.changes.length ? changeTable(round) : null,
    record && (record.rows || []).length ? candidateTable(story, round) : null,
    el("p", {}, el("a", { href: "#network", onclick: () => goTo(round) }, "Show in the picture")),
  ].filter(Boolean);
}

/** The list of rounds of a run; it keeps what is open when records come in. */
class Rounds {
  constructor(story, prefix, goTo) {
    this.story = story;
    this.prefix = prefix;
    this.goTo = goTo;
    this.items = [];
    this.list = el("ol", { class: "rounds" });
    const counts = el("select", { id: `${prefix}filter`, onchange: () => this.filter() },
      [["all", "all rounds"], ["changed", "with a change of size"], ["nothing", "without a change"], ["rollback", "taken back"]].map(([value, text]) => el("option", { value }, text)));
    this.select = counts;
    this.said = el("span", { class: "note", role: "status" });
    this.element = el("div", { class: "list" }, el("p", { class: "filter" }, el("label", { for: `${prefix}filter` }, "Show "), counts, " ", this.said), this.list);
    this.update();
  }

  update() {
    this.story.rounds.forEach((round, at) => {
      const text = JSON.stringify([round.record, round.changes, round.rollbacks]);
      const old = this.items[at];
      if (old && old.text === text) return void (old.round = round);
      const item = { text, round };
      const box = disclosure(roundSummary(this.story, round), () => roundDetails(this.story, item.round, this.goTo), { open: Boolean(old && old.box.open) });
      box.refresh();
      item.box = box;
      item.node = el("li", { id: `${this.prefix}round-${at + 1}` }, box);
      if (old) old.node.replaceWith(item.node); else this.list.append(item.node);
      this.items[at] = item;
    });
    for (const item of this.items.splice(this.story.rounds.length)) item.node.remove();
    this.filter();
  }

  filter() {
    let shown = 0;
    for (const { node, round } of this.items) {
      const state = round.changes.length ? "changed" : round.rollbacks.length ? "rollback" : "nothing";
      node.hidden = this.select.value !== "all" && this.select.value !== state && !(this.select.value === "rollback" && round.rollbacks.length);
      shown += node.hidden ? 0 : 1;
    }
    this.element.classList.toggle("empty", !this.items.length);
    this.said.replaceChildren(this.items.length ? `${count(shown)} of ${plural(this.items.length, "round")}` : "There was no round of growth.");
  }

  mark(step) {
    for (const { node, round } of this.items) node.classList.toggle("here", round.step === step);
  }
}
