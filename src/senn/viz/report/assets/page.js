"use strict";
// The page: sections from the stories, what links them, themes, printing, records that keep coming.

const about = JSON.parse(document.getElementById("records").textContent);
const stories = about.runs.map((run) => new Story(run, about.columns));
const several = stories.length > 1;
const main = document.getElementById("main");
const drawn = new Map();

function section(id, title, ...content) {
  const found = content.flat().filter(Boolean);
  if (!found.length) return;
  main.append(el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), found));
  document.getElementById("sections").append(el("li", {}, el("a", { href: `#${id}` }, title)));
}

function mark(step) {
  for (const chart of drawn.values()) chart.mark(step);
  for (const list of lists) list.mark(step);
}
let lists = [];
const player = new Player(stories, mark);
lists = stories.map((story, at) => new Rounds(story, at ? `run-${at + 1}-` : "", (round) => player.goTo(round.step, round)));
const tilesBox = el("div", { class: "facts" }), finalBox = el("div"), grid = el("div", { class: "charts" });

function heading() {
  document.getElementById("name").replaceChildren(several ? `${stories.length} runs compared` : stories[0].name);
  document.getElementById("about").replaceChildren(several ? stories.map((story) => story.name).join(" · ") : aboutText(stories[0]));
  tilesBox.replaceChildren(several ? comparison(stories) : tiles(stories[0]));
}
function finals() {
  finalBox.replaceChildren(...stories.flatMap((story) => [several ? el("h3", {}, story.name) : null, finalTable(story), ...(several ? [] : dataPart(story) || []), ...(several && story.code ? [el("details", {}, el("summary", {}, "Code"), codePart(story))] : codePart(story) || [])]).filter(Boolean));
}
function drawCharts() {
  const found = charts(stories);
  const done = found.map((chart) => {
    const old = drawn.get(chart.key);
    if (old) return (old.ready = old.ready.then(() => old.update(chart)));
    const made = new Chart(chart, (step) => player.goTo(step));
    made.step = player.steps[Math.floor(player.position)] || 0;
    drawn.set(chart.key, made);
    const later = found.slice(found.indexOf(chart) + 1).map((one) => drawn.get(one.key)).find(Boolean);
    grid.insertBefore(made.element, later ? later.element : null);
    return made.ready;
  });
  dispatchEvent(new Event("resize")); // one that is alone in its row is as wide as two, until another comes
  return Promise.all(done);
}
function sizes() { // the picture as a table: sizes over time, for all runs
  const rows = stories.flatMap((story) => story.moments.filter((moment) => moment.kind === "start" || (moment.kind === "round" && moment.round.changes.length))
    .map((moment) => [...(several ? [story.name] : []), count(moment.step), moment.kind === "start" ? "the start" : verdict(story, moment.round), widths(moment.layers.map((layer) => layer.width)), count(moment.parameters)]));
  return table("Sizes over time", [...(several ? [{ name: "run", left: true }] : []), "step", { name: "what happened", left: true }, { name: "hidden layers", left: true }, "parameters"], rows);
}
const sizesTable = disclosure("Sizes over time, as a table", sizes);

function build() {
  heading();
  finals();
  if (several) section("figures", "Final figures", tilesBox); else main.append(tilesBox);
  section("network", several ? "How the networks grew" : "How the network grew", el("div", { class: "card" }, player.element(), sizesTable));
  if (!several) section("scores", "How good it is", ...scoresPart(stories[0]));
  section("curves", "Curves", el("p", { class: "note" }, el("span", { class: "hint" }, "Click on a curve to move the picture to that step; the dashed line marks it. "),
    several ? "" : [["widen", "widened"], ["insert", "inserted"], ["prune", "pruned"]].map(([kind, text]) => el("span", { class: "item" }, el("span", { class: `tick ${kind}` }), text))), grid);
  const why = el("p", { class: "note" }, "At each round every candidate is scored. It is accepted if the decrease of the loss expected of it exceeds its price, after an allowance for its uncertainty and for a new layer's slower start; the margin is what remains. A round adds at few places only, so a candidate with a smaller margin than others may wait for a later round.");
  section("rounds", "Why it changed", why, several ? stories.map((story, at) => [el("h3", {}, story.name), el("details", {}, el("summary", {}, "All rounds"), lists[at].element)]) : lists[0].element);
  section("final", several ? "Settings and code" : stories[0].end || stories[0].results ? "The network at the end" : "The network so far", finalBox);
  if (about.live) player.show(player.steps.length - 1); else player.showKept();
  return drawCharts();
}

/* Themes: the system's, light, dark. */
const themes = ["system", "light", "dark"];
const themeButton = document.getElementById("theme");
themeButton.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme || themes[0]) + 1) % themes.length];
  if (next === themes[0]) delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = next;
  themeButton.replaceChildren(`Theme: ${next}`);
});

/* Links to rounds open them; a filter must not hide them. */
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const box = target && target.querySelector(":scope > details");
  if (!box) return;
  target.hidden = false;
  box.open = true;
  box.refresh();
  box.querySelector("summary").focus({ preventScroll: true });
  target.scrollIntoView({ block: "start" });
}
addEventListener("hashchange", openTarget);
document.addEventListener("click", (event) => {
  const link = event.target.closest && event.target.closest("a[href^='#']");
  if (link && link.getAttribute("href") === location.hash) openTarget();
});

let toScreen = null;
const fromPaper = () => { if (toScreen) toScreen(); toScreen = null; };
addEventListener("beforeprint", () => { fromPaper(); toScreen = toPaper(main, stories, lists, [...drawn.values()], player); });
addEventListener("afterprint", fromPaper);

/* A run that goes on. */
function live() {
  const state = el("p", { id: "live", role: "status" }, "Live: the run is in progress.");
  document.getElementById("top").after(state);
  const events = new EventSource("events");
  let waiting = [], timer = null, over = false;
  const renew = () => {
    clearTimeout(timer);
    timer = null;
    stories[0].read(waiting);
    heading();
    finals();
    player.refresh();
    lists[0].update();
    sizesTable.refresh();
    drawCharts();
  };
  const soon = () => { timer = timer || setTimeout(renew, 250); };
  const end = (text) => { over = true; events.close(); state.classList.add("over"); state.replaceChildren(text); };
  events.addEventListener("start", () => { waiting = []; });
  events.addEventListener("more", (event) => { waiting = [...waiting, ...JSON.parse(event.data)]; soon(); });
  events.addEventListener("over", (event) => { renew(); end(`The run has ended${JSON.parse(event.data)}${stories[0].end ? ` (${stories[0].end.reason})` : ""}. This is its final state, which stays until you close the page.`); });
  events.onerror = () => { if (!over) end("The connection is lost: the run has ended or was stopped. This is the last state that was received."); };
}

window.senn = { stories, player, lists, drawn, ready: build() };
window.senn.ready.then(() => { document.documentElement.dataset.drawn = "yes"; openTarget(); });
if (about.live) live();
