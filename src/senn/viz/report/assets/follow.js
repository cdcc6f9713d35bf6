"use strict";
// Which layer is which over time. Records give names and widths in order of use; those of older versions of senn give
// widths alone, beside which changes name the places in the network.

/** All ways to choose `some` of the places 0..all-1 for new layers; of very many, those without a gap. */
function choices(all, some) {
  if (some <= 0) return [[]];
  let number = 1;
  for (let at = 0; at < some; at++) number *= (all - at) / (at + 1);
  if (number > 3000) return Array.from({ length: all - some + 1 }, (_, first) => Array.from({ length: some }, (_, at) => first + at));
  const found = [];
  const extend = (chosen, from) => {
    if (chosen.length === some) return found.push(chosen);
    for (let at = from; at <= all - (some - chosen.length); at++) extend([...chosen, at], at + 1);
  };
  extend([], 0);
  return found;
}

/** How badly a choice of new layers fits what was said: 0 for a perfect fit, the more the worse. */
function misfit(before, after, fresh, changes) {
  let cost = 0;
  const rest = after.map((_, at) => at).filter((at) => !fresh.includes(at));
  const owner = new Map();
  const open = changes.filter((change) => change.kind !== "insert");
  rest.forEach((at, number) => {
    const layer = before[number];
    owner.set(at, layer);
    const same = open.findIndex((change) => change.width_before === layer.width && change.width_after === after[at] && change.place === layer.name);
    const fitting = same >= 0 ? same : open.findIndex((change) => change.width_before === layer.width && change.width_after === after[at]);
    if (after[at] !== layer.width) cost += fitting < 0 ? 1 + Math.abs(after[at] - layer.width) : 0;
    if (fitting >= 0) {
      const [change] = open.splice(fitting, 1);
      if (layer.name !== null && layer.name !== change.place && !change.place.startsWith(layer.name + ".")) cost += 0.5;
    }
  });
  const starts = fresh.filter((at) => !fresh.includes(at - 1));
  for (const change of changes.filter((one) => one.kind === "insert")) {
    if (!fresh.some((at) => after[at] === change.width_after)) cost += 0.4;
    const named = before.some((layer) => layer.name === change.place);
    const follows = starts.map((start) => { let at = start; while (fresh.includes(at)) at++; return owner.get(at); });
    // A layer goes directly before the map that it is named after; the last map of all makes no hidden layer.
    if (named ? !follows.some((layer) => layer && layer.name === change.place) : !follows.some((layer) => !layer || layer.name === null)) cost += 0.25;
    else if (!named && !follows.includes(undefined) && before.some((layer) => layer.name === null)) cost += 0.01;
  }
  return cost;
}

/**
 * The layers after some changes, by their names. An inserted layer takes its map's place, and the map lies deeper from
 * then on: "body.2" becomes "body.2.1".
 */
function followNames(before, after, names, changes, nextId) {
  const own = new Map(before.filter((layer) => names.includes(layer.name)).map((layer) => [layer.name, layer]));
  for (const layer of before.filter((one) => one.name !== null && !own.has(one.name))) {
    const deeper = names.filter((name) => name.startsWith(layer.name + ".") && !before.some((one) => one.name === name));
    const same = deeper.filter((name) => after[names.indexOf(name)] === layer.width);
    if (deeper.length) own.set((same.length ? same : deeper).pop(), layer);
  }
  return after.map((width, at) => {
    const name = names[at], layer = own.get(name);
    if (!layer) return { id: nextId(), name, width, came: before.length ? width : 0, went: 0, fresh: before.length > 0 };
    const change = changes.find((one) => one.kind !== "insert" && (one.place === name || one.place === layer.name));
    return { id: layer.id, name, width, came: Math.max(0, width - layer.width), went: Math.max(0, layer.width - width), which: (change || {}).removed_units, fresh: false };
  });
}

/**
 * The layers after some changes: [{id, name, width, came, went, fresh}], in order of use.
 * before: the same before them. after: widths. changes: records of growth of one round. names: of the layers, if known.
 */
function follow(before, after, changes, nextId, names) {
  if (names && names.length === after.length) return followNames(before, after, names, changes, nextId);
  const added = after.length - before.length;
  if (added < 0) return after.map((width, at) => ({ ...(before[at] || { id: nextId() }), name: null, width, came: 0, went: 0, fresh: false }));
  let best = null, least = Infinity;
  for (const fresh of choices(after.length, added)) {
    const cost = misfit(before, after, fresh, changes);
    if (cost < least) [best, least] = [fresh, cost];
  }
  const inserts = changes.filter((change) => change.kind === "insert");
  const others = changes.filter((change) => change.kind !== "insert");
  let number = 0;
  return after.map((width, at) => {
    if (best.includes(at)) return { id: nextId(), name: null, width, came: width, went: 0, fresh: before.length > 0 || changes.length > 0 };
    const layer = before[number++];
    const own = others.filter((change) => change.width_before === layer.width && change.width_after === width);
    const change = own.find((one) => one.place === layer.name) || own[0];
    if (change) others.splice(others.indexOf(change), 1);
    let name = change ? change.place : layer.name;
    if (inserts.some((insert) => insert.place === name)) name = null; // it lies deeper from now on, under a longer name
    return { id: layer.id, name, width, came: Math.max(0, width - layer.width), went: Math.max(0, layer.width - width), which: (change || {}).removed_units, fresh: false };
  });
}
