"use strict";
// Elements, numbers and tables. All text goes in as text, never as HTML: names of columns and classes may be anything.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A number for people: three digits by default, a true minus. */
function num(value, digits = 3) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  const text = size >= 1e5 || (size < 1e-4 && size > 0) ? value.toExponential(Math.max(0, digits - 1)) : String(Number(value.toPrecision(digits)));
  return text.replace(/-/g, "−").replace(/e\+?(.*)$/, "e$1");
}
const count = (value) => (known(value) ? value.toLocaleString("en") : "–");
const signed = (value, digits = 3) => (known(value) && value > 0 ? "+" : "") + num(value, digits);
const signedCount = (value) => (known(value) && value > 0 ? "+" : "") + count(value).replace("-", "−");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const widths = (list) => (list && list.length ? list.join("–") : "none");

function seconds(value) {
  if (!known(value)) return "–";
  if (value < 90) return `${num(value)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${num(value / 3600)} h`;
}
function short(value) {
  if (!known(value)) return "–";
  for (const [size, letter] of [[1e9, " G"], [1e6, " M"], [1e4, " k"]]) if (value >= size) return num(value / Math.min(size, letter === " k" ? 1e3 : size)) + letter;
  return count(value);
}
const cap = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/**
 * A table in a box that scrolls by itself, also by keyboard.
 * columns: [{name, title, left}] or names; rows: lists of text or nodes, or {cells, class}.
 */
function table(caption, columns, rows, kind) {
  const heads = columns.map((column) => (typeof column === "string" ? { name: column } : column));
  const side = heads.map((head) => (head.left ? "left" : null));
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    el("table", { class: kind },
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((head, at) => el("th", { scope: "col", title: head.title, class: side[at] }, head.name)))),
      el("tbody", {}, rows.map((row) => {
        const cells = row.cells || row;
        return el("tr", { class: row.class }, cells.map((cell, at) => el(at ? "td" : "th", { scope: at ? null : "row", class: side[at] }, cell)));
      }))));
}

/** What opens and shuts; its content is made when it is first opened, and anew when it may have changed. */
function disclosure(label, make, attributes) {
  const box = el("details", attributes || {}, el("summary", {}, label));
  box.refresh = () => {
    if (!box.open) return;
    while (box.childNodes.length > 1) box.lastChild.remove();
    box.append(...[make()].flat());
  };
  box.addEventListener("toggle", () => box.childNodes.length < 2 && box.refresh());
  return box;
}
function openAll(root) {
  const shut = [...root.querySelectorAll("details:not([open])")];
  for (const box of shut) {
    box.open = true;
    if (box.childNodes.length < 2 && box.refresh) box.refresh();
  }
  return shut;
}
