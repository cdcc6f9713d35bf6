"use strict";
// On paper nothing opens and shuts: charts without their tables, all rounds in one table each run, the sizes, the code.

const PAPER = { wide: 680, narrow: 332, low: 150, tall: 170 }; // pixels of a chart: all across a page, and two in a row
const STRIP = { width: 840, height: 150 }; // pixels of two rows of pictures of a network on its way
const REFUSED_ON_PAPER = 3; // the closest of a round

/** A round's candidates on paper: the accepted as the changes that they made, the closest of the refused. */
function paperRows(story, round) {
  const nat = (round.record || {}).loss_per_nat || 1;
  const give = (decrease, one, unit) => (one.held_out_stderr ? plusMinus(decrease, one.held_out_stderr / (2 * unit)) : num(decrease));
  const row = (kind, verdict, one, figures, why) => el("tr", { class: kind }, el("td", {}, verdict), el("td", {}, badge(one.kind), ` ${one.place}`), figures.map((cell) => el("td", {}, cell)), el("td", {}, why));
  const taken = round.changes.map((one) => row("accepted", "accepted", one, [signedCount(one.parameters), give(one.expected_decrease, one, one.loss_per_nat || 1), num(one.price), "", signed(one.realized_decrease)],
    one.kind === "insert" ? `${one.detail}, ${plural(one.width_after, "unit")}` : `${count(one.width_before)} → ${count(one.width_after)} units`));
  const refused = story.candidates(round).filter((one) => !one.accepted);
  const shown = refused.slice(0, REFUSED_ON_PAPER).map((one) => row("refused", one.reason ? "not taken" : "refused", one,
    [signedCount(one.parameters), give(one.expected_decrease, one, nat), num(one.price), signed(one.margin), ""], one.reason || one.detail));
  const more = refused.length - shown.length;
  return [...taken, ...shown, more > 0 ? el("tr", { class: "refused" }, el("td", { colspan: 8 }, `and ${count(more)} more refused`)) : null];
}

/** Why a network changed, for paper. */
function paperRounds(story) {
  const heads = ["verdict", "change", "parameters", "expected", "price", "margin", "realized", "what"];
  const said = (round) => [`Step ${count(round.step)} `, el("b", {}, verdict(story, round)), ...round.rollbacks.map((one) => ` (${one.text})`), round.record ? ` · η ${num(round.record.eta)}` : ""];
  return el("table", { class: "paper" },
    el("caption", {}, `Rounds of ${story.name}: what was accepted, and the closest of what was refused`),
    el("thead", {}, el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name)))),
    story.rounds.map((round) => el("tbody", { class: kindOf(round) }, el("tr", { class: "said" }, el("th", { scope: "rowgroup", colspan: 8 }, said(round))), paperRows(story, round))));
}

/** The network as it began, after its changes (some of many), and as it was kept, for paper. */
function paperPictures(story, player) {
  const found = [0, ...player.changes, player.kept].filter((at, place, all) => all.indexOf(at) === place && story.moments[at]).sort((a, b) => a - b);
  const deepest = story.moments[story.moments.length - 1].layers.length, across = deepest <= 3 ? 4 : deepest <= 8 ? 3 : 2, most = 2 * across;
  const chosen = found.length <= most ? found : Array.from({ length: most }, (_, at) => found[Math.round((at * (found.length - 1)) / (most - 1))]);
  return el("div", { class: "paper strip", style: `grid-template-columns: repeat(${across}, minmax(0, 1fr))` }, chosen.map((at) => {
    const picture = new Picture(story, [story], STRIP.height), moment = story.moments[at];
    picture.width = STRIP.width / across;
    picture.draw(at);
    const what = at === 0 ? "the start" : at === player.kept ? "kept" : moment.kind === "round" ? story.moments[at].round.changes.map((one) => KINDS[one.kind] || "inserted").filter((one, place, all) => all.indexOf(one) === place).join(", ") : "";
    return el("figure", { class: "one" }, picture.svg, el("figcaption", {}, `Step ${count(moment.step)}${what ? `: ${what}` : ""}`));
  }));
}

/** Make a page ready for paper; gives what makes it ready for the screen again. */
function toPaper(root, stories, lists, charts, player) {
  const shut = [...root.querySelectorAll("details:not([open])")].filter((box) => !box.closest(".chart, .rounds"));
  for (const box of shut) { box.open = true; if (box.childNodes.length < 2 && box.refresh) box.refresh(); }
  const tables = stories.map((story, at) => { const made = paperRounds(story); lists[at].element.after(made); return made; });
  if (stories.length === 1 && stories[0].moments.length > 1) {
    tables.push(paperPictures(stories[0], player));
    root.querySelector(".player").prepend(tables[tables.length - 1]);
  }
  const sizes = charts.filter((chart) => chart.view).map((chart) => {
    const { view } = chart, more = 14 * Math.max(0, legendSize(chart.chart.rows).lines - 1);
    const isWide = getComputedStyle(chart.element).gridColumnEnd === "-1";
    view.width(isWide ? PAPER.wide : PAPER.narrow).height((isWide ? PAPER.low : PAPER.tall) + more).run();
    return () => view.width(chart.plot.clientWidth).height(chart.height).run();
  });
  return () => {
    for (const box of shut) box.open = false;
    for (const made of tables) made.remove();
    for (const back of sizes) back();
  };
}
