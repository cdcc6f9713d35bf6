"use strict";
// The records of a run as a story: moments at which the network has a size, rounds in which it was considered, curves.

const KINDS = { widen: "widened", prune: "pruned", outputs: "grew the outputs of", tokens: "grew the tokens of" };
const MOVES = { width: "widening", depth: "inserting layers", prune: "pruning" };

class Story {
  constructor(run, columns) {
    this.name = run.name;
    this.results = run.results;
    this.details = run.details;
    this.code = run.code;
    this.columns = columns;
    this.read(run.records);
  }

  read(records) {
    this.records = records;
    Object.assign(this, { start: null, end: null, epochs: [], rounds: [], moments: [] });
    let layers = [], ids = 0;
    const nextId = () => ids++;
    const now = { parameters: null, flops: null };
    let round = null;
    const moment = (record, { architecture, layers: names }, changes, kind) => {
      if (architecture) layers = follow(layers, architecture, changes, nextId, names);
      this.moments.push({ kind, step: record.step, epoch: record.epoch, layers, parameters: now.parameters, flops: now.flops, round });
      layers = layers.map((layer) => ({ ...layer, came: 0, went: 0, fresh: false }));
    };
    const settle = () => { // a round's changes are one
      if (!round || round.settled) return;
      round.settled = true;
      for (const change of round.changes) if (known(now.parameters)) now.parameters += change.parameters;
      const last = round.changes[round.changes.length - 1];
      round.moment = this.moments.length;
      moment(round, last || {}, round.changes, "round");
      round = null;
    };
    const begin = (record) => {
      settle();
      round = { number: record.round ?? this.rounds.length + 1, step: record.step, epoch: record.epoch, record: null, changes: [], rollbacks: [] };
      this.rounds.push(round);
    };
    for (const record of records) {
      if (record.event === "growth_round") {
        begin(record);
        round.record = record;
        if (!layers.length && record.architecture) layers = follow(layers, record.architecture, [], nextId, record.layers); // unknown before
        const last = this.rounds[this.rounds.length - 2];
        // live, changes were recorded before theirs was known; senn 0.1 had one figure for all
        if (last) last.changes.forEach((change, at) => {
          const value = record.realized_decreases ? record.realized_decreases[at] : record.realized_decrease;
          if (known(value)) change.realized_decrease = value;
        });
      }
      else if (record.event === "growth") {
        if (!round || round.step !== record.step) begin(record);
        round.changes.push(record);
      } else if (record.event === "rollback") {
        if (!round || round.step !== record.step) begin({ step: record.step, epoch: record.epoch });
        round.rollbacks.push(record);
      } else {
        settle();
        if (record.event === "end") this.end = record;
        if (record.event === "start" || record.event === "epoch") {
          Object.assign(now, { parameters: record.parameters, flops: record.flops });
          if (record.event === "start") this.start = record; else this.epochs.push(record);
          moment(record, record, [], record.event);
        }
      }
    }
    settle();
    this.kept = this.end && this.end.best_epoch !== undefined ? this.epochs.find((epoch) => epoch.epoch === this.end.best_epoch) || null : null;
    this.keptMoment = this.kept ? this.moments.findIndex((one) => one.kind === "epoch" && one.epoch === this.kept.epoch) : -1;
    this.widest = Math.max(1, ...this.moments.flatMap((one) => one.layers.map((layer) => layer.width + layer.went)));
    this.lastStep = this.moments.length ? this.moments[this.moments.length - 1].step : 0;
  }

  get task() { return (this.results || {}).task || (this.start || {}).task || ""; }
  get scoreName() { return this.task === "regression" ? "R²" : "accuracy"; }

  /** The kept network at smaller sizes, pruned without training: {points, units, score_name}, or null. */
  get frontier() { return (this.end || {}).frontier || null; }

  /** Number of the last moment at or before a step. */
  at(step) {
    let low = 0, high = this.moments.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.moments[middle].step <= step) low = middle; else high = middle - 1;
    }
    return low;
  }

  /** Candidates of a round as objects. */
  candidates(round) {
    const { rows = [], names = [] } = round.record || {};
    return rows.map(([accepted, ...cells]) => {
      const one = { accepted: accepted === 1 };
      this.columns.forEach((column, at) => { one[column] = ["kind", "place", "detail", "reason"].includes(column) ? names[cells[at]] : cells[at]; });
      return one;
    });
  }
}

/** A change in words: what, where, how much. */
function changed(change) {
  if (change.kind === "insert") return `inserted a layer of ${plural(change.width_after, "unit")} (${change.detail}) before ${change.place}`;
  return `${KINDS[change.kind] || change.kind} ${change.place} from ${count(change.width_before)} to ${count(change.width_after)}${["outputs", "tokens"].includes(change.kind) ? (change.detail ? ` (${change.detail})` : "") : " units"}`;
}

/** The kind of a round's changes, the rarest first. */
const kindOf = (round) => ["insert", "prune", "widen"].find((kind) => round.changes.some((change) => change.kind === kind)) || "widen";

/** What became of a round, in one sentence. */
function verdict(story, round) {
  const made = round.changes.map(changed).join("; ");
  if (round.rollbacks.length) return made ? `${cap(made)}, after ${plural(round.rollbacks.length, "attempt")} ${round.rollbacks.length > 1 ? "were" : "was"} taken back` : "Taken back: nothing was changed";
  if (made) return cap(made);
  return story.candidates(round).length ? "No candidate was worth its price" : "There were no candidates";
}

/** A moment in words. */
function momentText(story, moment) {
  const where = `step ${count(moment.step)}, epoch ${count(moment.epoch)}`;
  const size = `hidden layers ${widths(moment.layers.map((layer) => layer.width))}, ${count(moment.parameters)} parameters`;
  const what = moment.kind === "round" ? `${verdict(story, moment.round)}. ` : moment.kind === "start" ? "The start. " : story.kept && moment.kind === "epoch" && moment.epoch === story.kept.epoch ? "This network is kept. " : "";
  return { where: cap(where), what: what.trim(), size: cap(size) };
}
