"use strict";
// The network at a moment: layers as columns as tall as they are wide. A moment may be a fraction: on the way to the next.

const GLOW = 4; // moments over which added and removed units fade
const PITCH = [5, 12]; // distance of two units in pixels, at least and at most

class Picture {
  constructor(story, stories, height) {
    this.story = story;
    this.height = height;
    this.stories = stories; // shown side by side, at the same scale
    this.svg = svg("svg", { role: "img", class: "network" });
    this.box = el("div", { class: "picture" }, this.svg);
    this.time = 0;
    this.width = 0;
    new ResizeObserver(() => {
      const width = this.box.clientWidth;
      if (width && width !== this.width) { this.width = width; this.draw(this.time); }
    }).observe(this.box);
  }

  /** Layers at a moment, with what came and went recently and how strongly that still shows. */
  layersAt(moment) {
    const { moments } = this.story;
    return moments[moment].layers.map((layer) => {
      for (let ago = 0; ago < GLOW && moment - ago >= 0; ago++) {
        const past = moments[moment - ago].layers.find((one) => one.id === layer.id);
        if (past && (past.came || past.went) && moments[moment - ago].kind === "round") {
          return { ...layer, came: past.came, went: past.went, which: past.which, fresh: past.fresh, strength: 1 - ago / GLOW };
        }
      }
      return { ...layer, came: 0, went: 0, strength: 0 };
    });
  }

  draw(time) {
    this.time = time;
    const { moments, results } = this.story;
    if (!moments.length || !this.width) return;
    const first = Math.min(Math.floor(time), moments.length - 1), part = Math.min(1, time - first);
    const now = this.layersAt(first);
    let shown = now.map((layer) => ({ ...layer, presence: 1 }));
    if (part > 0 && first + 1 < moments.length) {
      const soon = this.layersAt(first + 1);
      shown = soon.map((layer) => {
        const old = now.find((one) => one.id === layer.id);
        if (layer.strength === 1 && layer.went) return { ...layer, old: 1 - part, presence: 1 }; // they turn into shadows
        if (!layer.strength && old && old.went) return { ...old, strength: old.strength * (1 - part), presence: 1 }; // which vanish
        const from = old ? old.width : 0, width = from + (layer.width - from) * part;
        const came = layer.strength === 1 && layer.came ? Math.max(0, width - (layer.width - layer.came)) : layer.came;
        const fading = old && old.strength > layer.strength ? old.strength + (layer.strength - old.strength) * part : layer.strength;
        return { ...layer, width, came, strength: fading, presence: old ? 1 : part };
      });
    }
    const data = (results || {}).data || {};
    const inputs = { end: true, title: "input", width: data.shape ? data.shape.join("×") : data.features, presence: 1 };
    const outputs = { end: true, title: "output", width: this.story.task === "regression" ? null : (data.classes || []).length || null, presence: 1 };
    this.paint([inputs, ...shown, outputs]);
    const text = momentText(this.story, moments[Math.round(time)] || moments[first]);
    this.svg.setAttribute("aria-label", `Network of ${this.story.name}. ${text.where}. ${text.size}.`);
  }

  paint(columns) {
    const { width, height } = this, widest = Math.max(...this.stories.map((story) => story.widest));
    const top = 26, bottom = 30, tall = height - top - bottom, middle = top + tall / 2;
    const total = columns.reduce((sum, column) => sum + column.presence, 0);
    const slot = Math.min(150, width / total);
    const left = (width - slot * total) / 2;
    // Units as dots, in as many files as it takes to tell them apart; as a bar if there is no room for these.
    const room = slot * 0.5, rows = (pitch) => Math.max(1, Math.floor(tall / pitch));
    const fits = (pitch) => Math.ceil(widest / rows(pitch)) * pitch <= room;
    let pitch = PITCH[1];
    while (pitch > PITCH[0] && !fits(pitch)) pitch -= 0.5;
    const dots = fits(pitch);
    const files = dots ? Math.ceil(widest / rows(pitch)) : 1;
    const unit = dots ? pitch : tall / widest;
    const thick = dots ? files * pitch : Math.max(3, Math.min(18, slot * 0.42));
    const grid = { unit, dots };
    let at = left;
    const places = columns.map((column) => {
      const x = at + (slot * column.presence) / 2;
      at += slot * column.presence;
      const units = column.end ? [] : inOrder(column), seen = units.reduce((sum, one) => sum + one.count * one.room, 0);
      const own = Math.max(1, Math.min(files, Math.ceil(seen))); // files of this layer
      const size = column.end ? Math.min(tall * 0.34, 84) : Math.max((seen / own) * unit, 2);
      return { ...column, x, units, files: own, from: middle - size / 2, to: middle + size / 2, thick: column.end ? Math.min(thick, 14) : dots ? own * unit : thick };
    });
    const ribbons = places.slice(1).map((place, number) => this.ribbon(places[number], place));
    const parts = places.map((place) => (place.end ? this.end(place, slot) : this.layer(place, grid, slot)));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...ribbons, ...parts);
  }

  ribbon(a, b) {
    const x1 = a.x + a.thick / 2 + 1, x2 = b.x - b.thick / 2 - 1, half = (x1 + x2) / 2;
    const path = `M${x1} ${a.from}C${half} ${a.from} ${half} ${b.from} ${x2} ${b.from}L${x2} ${b.to}C${half} ${b.to} ${half} ${a.to} ${x1} ${a.to}Z`;
    return svg("path", { d: path, class: "ribbon", opacity: Math.min(a.presence, b.presence) });
  }

  end(place, slot) {
    const label = slot > 34 ? place.title : place.title.slice(0, slot > 22 ? 3 : 0);
    return svg("g", { class: "end" },
      svg("line", { x1: place.x, x2: place.x, y1: place.from + place.thick / 2, y2: place.to - place.thick / 2, "stroke-width": place.thick * 0.8, "stroke-linecap": "round" }),
      known(place.width) || place.width ? svg("text", { x: Math.max(place.x, 4 * String(place.width).length + 2), y: place.from - 8, class: "size" }, known(place.width) ? short(place.width) : place.width) : null,
      svg("text", { x: place.x, y: this.height - 8, class: "name" }, label));
  }

  /** A layer: old units, those that came lit, those that went as shadows where they were. */
  layer(place, grid, slot) {
    const { unit } = grid, { files } = place;
    const piece = (from, to, name, opacity) => {
      if (to - from < 0.01 || opacity <= 0) return null;
      if (!grid.dots) return svg("line", { x1: place.x, x2: place.x, y1: place.from + from * unit, y2: Math.max(place.from + to * unit, place.from + from * unit + 1.5), "stroke-width": place.thick, class: name, opacity });
      return svg("g", { class: name, opacity, "stroke-width": unit * 0.72, "stroke-linecap": "round", "stroke-dasharray": `0 ${unit}` }, Array.from({ length: files }, (_, file) => {
        const first = (Math.ceil(from - 1e-6) - file) / files, last = Math.ceil((to - file) / files - 1e-6) - 1;
        const start = files > 1 ? Math.ceil(first) : from; // in one file units may be on their way
        if (last < Math.floor(start)) return null;
        const x = place.x + (file - (files - 1) / 2) * unit, y = place.from + unit / 2, end = files > 1 ? last : start + Math.ceil(to - from - 1e-6) - 1;
        return svg("line", { x1: x, x2: x, y1: y + start * unit, y2: y + end * unit + 0.01 });
      }));
    };
    let at = 0;
    const pieces = place.units.flatMap(({ count: units, room, looks }) => {
      const from = at;
      at += units * (files > 1 ? Math.round(room) : room);
      return room < 0.5 && files > 1 ? [] : looks.map(([name, opacity]) => piece(from, grid.dots ? from + units : at, name, opacity));
    });
    return svg("g", { opacity: place.presence },
      svg("title", {}, `${place.name || "layer"}: ${plural(Math.round(place.width), "unit")}`),
      pieces,
      slot > 20 ? svg("text", { x: place.x, y: Math.max(13, place.from - 8), class: "size" }, Math.round(place.width)) : null,
      slot > 56 && place.name && place.to < this.height - 22 ? svg("text", { x: place.x, y: this.height - 8, class: "name" }, tail(place.name, Math.floor(slot / 7))) : null);
  }
}

/**
 * A layer's units from top to bottom, in runs: [{count, room, looks: [[class, opacity]]}]; room is the part of its place
 * that a unit that went still has.
 */
function inOrder({ width, came, went, which, fresh, strength, old = 0 }) {
  if (!strength || !(came || went)) return [{ count: width, room: 1, looks: [["units", 1]] }];
  if (!went) return [
    { count: width - came, room: 1, looks: [["units", 1]] },
    { count: came, room: 1, looks: [["units", strength < 1 ? 1 : 0], [fresh ? "lit inserted" : "lit", strength]] }];
  const all = width + went; // numbers are those before; of old records they aren't known: the last, then
  const gone = new Set(which && which.length === went ? which : Array.from({ length: went }, (_, at) => width + at));
  const runs = [], room = Math.min(1, strength * GLOW);
  for (let at = 0; at < all; at++) {
    const last = runs[runs.length - 1], is = gone.has(at);
    if (last && last.is === is) last.count += 1;
    else runs.push({ is, count: 1, room: is ? room : 1, looks: is ? [["units", old], ["gone", strength * 0.5 * (1 - old)]] : [["units", 1]] });
  }
  return runs;
}

/** The end of a dotted name that has room. */
function tail(name, length) {
  if (name.length <= length) return name;
  const parts = name.split(".");
  while (parts.length > 1 && parts.join(".").length > length - 1) parts.shift();
  return "…" + parts.join(".").slice(1 - length);
}

/** The network over time: a picture for each run, a slider over moments (steps for several runs), and what happened then. */
class Player {
  constructor(stories, onMove) {
    this.stories = stories;
    this.onMove = onMove;
    this.pictures = stories.map((story) => new Picture(story, stories, stories.length > 1 ? 230 : 300));
    this.slider = el("input", { type: "range", min: 0, max: 0, step: 1, value: 0, id: "time", "aria-label": "Time", oninput: () => { this.position = Number(this.slider.value); this.pause(); } });
    this.button = el("button", { type: "button", class: "play", "aria-label": "Play", onclick: () => (this.playing ? this.pause() : this.play()) });
    this.back = el("button", { type: "button", class: "quiet", "aria-label": "Previous change of size", onclick: () => this.jump(-1) }, "‹ change");
    this.on = el("button", { type: "button", class: "quiet", "aria-label": "Next change of size", onclick: () => this.jump(1) }, "change ›");
    this.where = el("p", { class: "where" });
    this.what = el("p", { class: "what" });
    this.size = el("p", { class: "sizes" });
    this.now = el("div", { class: "now", "aria-live": "polite" }, this.where, this.what, this.size);
    this.marks = svg("svg", { class: "ticks", "aria-hidden": "true", preserveAspectRatio: "none", viewBox: "0 0 1000 10" });
    this.pause();
    this.refresh();
  }

  element() {
    const pictures = this.pictures.map((picture) => (this.pictures.length > 1 ? el("figure", { class: "one" }, el("figcaption", {}, picture.story.name), picture.box) : picture.box));
    return el("div", { class: "player" }, el("div", { class: "pictures" }, pictures),
      el("div", { class: "controls" }, this.button, el("div", { class: "track" }, this.slider, this.marks), this.back, this.on),
      this.now,
      el("p", { class: "legend" }, [["lit", "units added"], ["inserted", "layer inserted"], ["gone", "units removed"]].map(([kind, text]) => el("span", { class: "item" }, el("span", { class: `dot ${kind}` }), text))));
  }

  /** Positions of the slider: steps at which anything happens. */
  refresh() {
    const end = this.position === undefined || this.position >= this.steps.length - 1;
    const single = this.stories.length === 1;
    this.steps = single ? this.stories[0].moments.map((moment) => moment.step)
      : [...new Set(this.stories.flatMap((story) => story.moments.map((moment) => moment.step)))].sort((a, b) => a - b);
    this.slider.max = Math.max(0, this.steps.length - 1);
    this.changes = single ? this.stories[0].moments.flatMap((moment, at) => (moment.kind === "round" && moment.round.changes.length ? [at] : []))
      : this.steps.flatMap((step, at) => (this.stories.some((story) => story.rounds.some((round) => round.changes.length && round.step === step)) ? [at] : []));
    const kept = single ? this.stories[0].keptMoment : -1;
    this.kept = kept < 0 ? this.steps.length - 1 : kept;
    const kind = (at) => (single ? kindOf(this.stories[0].moments[at].round) : "widen");
    this.marks.replaceChildren(...this.changes.map((at) => {
      const x = (1000 * at) / Math.max(1, this.steps.length - 1);
      return svg("line", { x1: x, x2: x, y1: 0, y2: 10, class: kind(at) });
    }));
    if (kept >= 0) this.marks.append(svg("line", { x1: (1000 * kept) / Math.max(1, this.steps.length - 1), x2: (1000 * kept) / Math.max(1, this.steps.length - 1), y1: 0, y2: 10, class: "kept" }));
    this.show(end ? this.steps.length - 1 : this.position);
  }

  moments(position) {
    return this.stories.map((story) => (this.stories.length === 1 ? position : story.at(this.steps[position])));
  }

  /** The networks that are kept: several runs keep those of different steps, so no position of the slider shows them all. */
  showKept() {
    this.show(this.kept);
    if (this.stories.length === 1 || !this.stories.every((story) => story.keptMoment >= 0)) return;
    const moments = this.stories.map((story) => story.keptMoment);
    this.pictures.forEach((picture, at) => picture.draw(moments[at]));
    this.tell(this.kept, moments);
    this.where.replaceChildren("The networks that are kept");
    this.slider.setAttribute("aria-valuetext", this.where.textContent);
  }

  show(position) {
    if (!this.steps.length) return;
    this.position = Math.max(0, Math.min(this.steps.length - 1, position));
    const whole = Math.floor(this.position), part = this.position - whole;
    const here = this.moments(whole), next = this.moments(Math.min(whole + 1, this.steps.length - 1));
    this.pictures.forEach((picture, at) => picture.draw(here[at] + (next[at] > here[at] ? (next[at] - here[at]) * part : 0)));
    this.slider.value = whole;
    if (whole === this.told && this.playing) return;
    this.told = whole;
    this.tell(whole, here);
    this.onMove(this.steps[whole]);
  }

  tell(position, moments) {
    if (this.stories.length > 1) {
      this.where.replaceChildren(`Step ${count(this.steps[position])}`);
      this.size.replaceChildren(...this.stories.map((story, at) => el("span", {}, `${story.name}: ${momentText(story, story.moments[moments[at]]).size}`)));
      this.slider.setAttribute("aria-valuetext", this.where.textContent);
      return;
    }
    const [story] = this.stories, moment = story.moments[moments[0]], text = momentText(story, moment);
    this.where.replaceChildren(text.where);
    this.what.replaceChildren(text.what, moment.kind === "round" ? el("a", { href: `#round-${story.rounds.indexOf(moment.round) + 1}`, class: "why" }, "why?") : "");
    this.size.replaceChildren(text.size);
    this.slider.setAttribute("aria-valuetext", `${text.where}: ${text.what} ${text.size}`);
  }

  /** Go to the moment of a step, with its round if it has one. */
  goTo(step, round) {
    this.pause();
    if (round && this.stories.length === 1) return this.show(round.moment);
    let at = this.steps.findIndex((one) => one > step);
    at = at < 0 ? this.steps.length - 1 : Math.max(0, at - 1);
    this.show(at);
  }

  jump(direction) {
    this.pause();
    const next = direction > 0 ? this.changes.find((at) => at > this.position) : [...this.changes].reverse().find((at) => at < this.position);
    this.show(next ?? (direction > 0 ? this.steps.length - 1 : 0));
  }

  play() {
    if (this.position >= this.steps.length - 1) this.show(0);
    this.playing = true;
    this.button.setAttribute("aria-label", "Pause");
    this.now.setAttribute("aria-live", "off"); // or each moment would be read out
    this.button.replaceChildren("❚❚");
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const pace = Math.max(2.5, this.steps.length / 14); // moments a second
    let last = null;
    const frame = (time) => {
      if (!this.playing) return;
      const next = (this.exact ?? this.position) + (last === null ? 0 : ((time - last) / 1000) * pace);
      last = time;
      this.exact = next;
      this.show(still ? Math.floor(next) : next);
      if (next >= this.steps.length - 1) return this.pause();
      requestAnimationFrame(frame);
    };
    this.exact = this.position;
    requestAnimationFrame(frame);
  }

  pause() {
    this.playing = false;
    this.told = undefined;
    this.button.setAttribute("aria-label", "Play");
    this.now.setAttribute("aria-live", "polite");
    this.button.replaceChildren("▶");
    if (this.steps && this.position !== undefined) this.show(Math.round(this.position));
  }
}
