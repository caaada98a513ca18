"use strict";

// From how likely on a token has which shade, the lightest first: what is left has the darkest.
const TOKEN_SHADES = [[0.9, "≥ 90 %"], [0.5, "≥ 50 %"], [0.2, "≥ 20 %"], [0.05, "≥ 5 %"], [0.01, "≥ 1 %"], [0, "< 1 %"]];
const TOKEN_ENDS = { eos: "■ eos", stop: "■ stop string", length: "■ limit" };
const TOKEN_MARKS = { " ": "·", "\n": "⏎", "\t": "⇥" };

/** A view of aligned tokens; `texts`: by target and id, what the likeliest tokens say. */
function tokenView(view, texts) {
  const root = tokenElement("div", "token-view", { role: "group", "aria-label": `Tokens: ${view.title}` });
  const lines = tokenElement("div", "token-lines");
  const detail = tokenElement("div", "token-detail", { role: "status", "aria-live": "polite", "aria-atomic": "true" });
  const state = { view, texts: tokenTexts(view, texts || {}), lines, detail, rows: tokenRows(view), column: -1, width: 0 };
  const numbers = tokenElement("input", "", { type: "checkbox" });
  numbers.addEventListener("change", () => {
    lines.classList.toggle("token-numbered", numbers.checked);
    state.widths = undefined;
    tokenLayOut(state);
  });
  root.append(...tokenHead(view, numbers), lines, detail);
  tokenListen(state);
  tokenShow(state, tokenStart(state));
  // In a frame of its own: what changes the size of what is observed would be told as an error.
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (lines.clientWidth && lines.clientWidth !== state.width) tokenLayOut(state);
  })).observe(lines);
  return root;
}

function tokenElement(name, className, attributes = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A `Map` for each target: what its tokens say, those of the view itself in any case. One tokenizer, one map. */
function tokenTexts(view, texts) {
  const found = {};
  const shared = new Map();
  for (const side of view.sides) {
    const said = (found[side.target] ??= view.by_text ? new Map() : shared);
    for (const [id, text] of Object.entries(texts[side.target] || {})) said.set(Number(id), text);
    for (const [text, id] of side.tokens) said.set(id, text);
  }
  return found;
}

const tokenUnseen = (words) => tokenElement("span", "token-unseen", {}, words);
const tokenLetter = (number) => String.fromCharCode(65 + number);

/* --- what stands above the tokens --------------------------------------------------------------------------------- */

function tokenHead(view, numbers) {
  const sides = view.sides.map((side, number) => {
    const words = [`${side.count.toLocaleString("en")} ${side.count === 1 ? "token" : "tokens"}`];
    if (side.finish) words.push(`ended by ${{ eos: "EOS", stop: "a stop string", length: "the limit" }[side.finish] || side.finish}`);
    if (side.pads) words.push(`prompt padded by ${side.pads}${side.padding ? ` on the ${side.padding}` : ""}`);
    if (side.tail) words.push(side.tail);
    if (side.judged && view.sides.some((other) => !other.judged)) words.push("judged");
    const name = tokenElement("b", "", { dir: "auto" }, side.name);
    return tokenElement("li", "", {}, tokenBadge(number), " ", name, tokenElement("span", "token-meta", {}, words.join(" · ")));
  });
  const head = [tokenElement("p", "token-title", { dir: "auto" }, view.title), tokenElement("ul", "token-sides", {}, ...sides)];
  if (view.divergence) {
    head.push(tokenElement("p", "token-divergence", {}, tokenElement("span", "", { "aria-hidden": "true" }, "▼ "), view.divergence.sentence));
  } else if (view.sides.length > 1) {
    head.push(tokenElement("p", "token-divergence", {}, "= all sides have the same tokens"));
  }
  if (view.note) head.push(tokenElement("p", "token-note", {}, view.note));
  const swatches = TOKEN_SHADES.map(([, words], shade) => tokenElement("span", `token-swatch token-shade-${shade}`, {}, words));
  const key = tokenElement("p", "token-key", {}, tokenElement("span", "", {}, "how likely: "), ...swatches);
  if (view.sides.length > 1) key.append(tokenElement("span", "token-swatch token-changed", {}, "other than A"));
  key.append(tokenElement("span", "token-swatch token-special", {}, "special"));
  key.append(tokenElement("span", "token-swatch", {}, "second likeliest", tokenElement("sub", "", {}, "2")));
  key.append(tokenElement("label", "", {}, numbers, " show nats"));
  return [...head, key];
}

const tokenBadge = (number) => tokenElement("span", "token-badge", {}, tokenLetter(number));

/* --- rows of cells ------------------------------------------------------------------------------------------------ */

/** For each side its cells, one a column: what stands before, the tokens, how it ends. */
function tokenRows(view) {
  const before = view.sides.some((side) => side.pads || side.start);
  return view.sides.map((side, number) => {
    const ends = view.aligned.findLastIndex((column) => column[number] !== null) + 1;
    const cells = view.aligned.map((column, at) => {
      if (column[number] !== null) return tokenCell(view, number, column);
      return at < ends ? tokenElement("span", "token-gap", { "aria-hidden": "true" }, "–") : null;
    });
    cells.push(null);
    cells[ends] = tokenEnd(side);
    for (const [at, cell] of cells.entries()) if (cell) cell.dataset.column = at;
    if (view.divergence) cells[view.divergence.column]?.classList.add("token-parting");
    return { side, number, cells, lead: before ? tokenLead(side) : null, stop: null };
  });
}

function tokenCell(view, number, column) {
  const side = view.sides[number];
  const [text, id, logprob, special, top] = side.tokens[column[number]];
  const place = top.findIndex(([one]) => one === id) + 1;
  const rank = place === 1 || !top.length ? "" : String(place || `>${top.length}`);
  const reference = column[0] === null ? null : view.sides[0].tokens[column[0]];
  const changed = number > 0 && (reference === null || reference[view.by_text ? 0 : 1] !== (view.by_text ? text : id));
  const classes = ["token", tokenShade(logprob)];
  if (special) classes.push("token-special");
  if (changed) classes.push("token-changed");
  const cell = tokenElement("button", classes.join(" "), { type: "button", tabindex: "-1" }, tokenSaid(text, id));
  cell.dataset.side = number;
  if (rank) cell.append(tokenElement("sub", "", {}, tokenUnseen(" rank "), rank));
  cell.append(tokenElement("small", "", {}, tokenNats(logprob)));
  if (special) cell.append(tokenUnseen(" special"));
  if (changed) cell.append(tokenUnseen(" other than A"));
  return cell;
}

function tokenLead(side) {
  const pads = side.pads ? `pad×${side.pads}` : "";
  const words = side.start ? [`${side.start} before`] : side.padding === "right" ? ["prompt", pads] : [pads, "prompt"];
  return tokenElement("span", "token-mark", {}, words.filter(Boolean).join(" "));
}

function tokenEnd(side) {
  const hidden = side.count - side.start - side.tokens.length;
  if (hidden > 0) return tokenElement("span", "token-mark", {}, `… ${hidden.toLocaleString("en")} more`);
  if (!side.count) return tokenElement("span", "token-mark", {}, `no tokens ${TOKEN_ENDS[side.finish] || ""}`);
  return side.finish ? tokenElement("span", "token-mark", {}, TOKEN_ENDS[side.finish] || `■ ${side.finish}`) : null;
}

/** The text with everything in it that is not seen: spaces and line ends as signs, what has no width beside a circle. */
function tokenSaid(text, id) {
  const said = tokenElement("bdi", "token-text", { dir: "auto" });
  if (!text) {
    said.append(tokenElement("i", "", {}, `#${id}`));
    return said;
  }
  for (const [part] of text.matchAll(/ {1,}|\n{1,}|\t{1,}|[^\S \n\t]|[^\s]+/gu)) {
    const mark = TOKEN_MARKS[part[0]];
    if (mark) {
      said.append(tokenElement("i", "", {}, part.length > 6 ? `${mark.repeat(3)}×${part.length}` : mark.repeat(part.length)));
    } else if (/\s/u.test(part)) {
      said.append(tokenElement("i", "", {}, `\\u${part.codePointAt(0).toString(16).padStart(4, "0")}`));
    } else if (/^\p{Cf}+$/u.test(part)) {
      said.append(tokenElement("i", "", {}, [...part].map((one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`).join("")));
    } else {
      said.append(/^\p{M}/u.test(part) ? `◌${part}` : part);
    }
  }
  return said;
}

/* --- numbers ------------------------------------------------------------------------------------------------------ */

// Python writes what is not finite as a word: -inf, nan.
const tokenNumber = (logprob) => ({ "-inf": -Infinity, inf: Infinity, nan: NaN })[logprob] ?? logprob;

function tokenShade(logprob) {
  if (logprob === null || Number.isNaN(tokenNumber(logprob))) return "token-unknown";
  const chance = Math.exp(tokenNumber(logprob));
  return `token-shade-${TOKEN_SHADES.findIndex(([least]) => chance >= least)}`;
}

function tokenNats(logprob) {
  if (logprob === null) return "";
  const value = tokenNumber(logprob);
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : "−∞";
  if (value === 0) return "0";
  return (Math.abs(value) >= 0.1 ? value.toFixed(2) : value.toPrecision(1)).replace("-", "−");
}

function tokenPercent(logprob) {
  const chance = 100 * Math.exp(tokenNumber(logprob));
  if (Number.isNaN(chance)) return "NaN";
  if (chance > 0 && chance < 0.001) return "< 0.001 %";
  return `${chance >= 99.95 ? chance.toFixed(0) : chance >= 10 ? chance.toFixed(1) : chance.toPrecision(2)} %`;
}

/* --- lines that fit the width ------------------------------------------------------------------------------------- */

/** Breaks the columns into lines as wide as there is room, each with all sides. */
function tokenLayOut(state) {
  const { lines, rows, view } = state;
  const focused = lines.contains(document.activeElement) ? document.activeElement : null;
  const count = view.aligned.length + 1;
  state.width = lines.clientWidth;
  const whole = tokenLine(state, 0, count);
  lines.replaceChildren(whole);
  if (state.width) {
    state.widths ??= getComputedStyle(whole).gridTemplateColumns.split(" ").map(parseFloat);
    lines.replaceChildren(...tokenBreaks(state, rows[0].lead !== null, count).map(([from, to]) => tokenLine(state, from, to)));
    tokenScroll(state);
  }
  focused?.focus({ preventScroll: true });
}

/** To the line that is looked at, where not all are seen. */
function tokenScroll({ lines, rows, column }) {
  const line = rows.map(({ cells }) => cells[column]?.closest(".token-line")).find(Boolean);
  if (line) lines.scrollTop = line.offsetTop - lines.offsetTop - line.offsetHeight / 2;
}

function tokenBreaks(state, lead, count) {
  const gap = 3;
  const [label, ...columns] = state.widths.map((width) => width + gap);
  const [first, rest] = lead ? [columns[0], columns.slice(1)] : [0, columns];
  const breaks = [];
  let from = 0;
  let taken = label + first;
  for (let column = 0; column < count; column += 1) {
    const wanted = rest[column] + (column === count - 2 ? rest[column + 1] : 0); // how sides end is not put on a line alone
    if (taken + wanted > state.width && column > from && column < count - 1) {
      breaks.push([from, column]);
      from = column;
      taken = label;
    }
    taken += rest[column];
  }
  return [...breaks, [from, count]];
}

/** One line: a ruler, and below it a row of each side. */
function tokenLine(state, from, to) {
  const { rows, view } = state;
  const lead = from === 0 && rows[0].lead !== null;
  const line = tokenElement("div", "token-line");
  line.style.gridTemplateColumns = `max-content repeat(${to - from + (lead ? 1 : 0)}, max-content)`;
  const ruler = tokenElement("div", "token-row", { "aria-hidden": "true" }, tokenElement("span", "token-label"));
  if (lead) ruler.append(tokenElement("span", "token-ruler"));
  for (let column = from; column < to; column += 1) ruler.append(tokenElement("span", "token-ruler", {}, tokenTick(view, column, from)));
  line.append(ruler);
  for (const { side, number, cells, lead: before } of rows) {
    const name = tokenElement("span", "token-name", { "aria-hidden": "true", dir: "auto", title: side.name }, side.name);
    const label = tokenElement("span", "token-label", {}, tokenBadge(number), name);
    const row = tokenElement("div", "token-row", { role: "group", "aria-label": `${tokenLetter(number)} ${side.name}` }, label);
    if (lead) row.append(before);
    const shown = side.count ? cells.slice(from, to) : cells.slice(from, 1);
    if (!side.count) cells[0].style.gridColumn = `${lead ? 3 : 2} / -1`; // one cell as wide as the line
    if (!shown.some(Boolean)) continue; // it has ended before
    row.append(...shown.map((cell) => cell ?? tokenElement("span", "")));
    line.append(row);
  }
  return line;
}

function tokenTick(view, column, from) {
  const index = view.aligned[column]?.[0];
  const number = index === null || index === undefined ? "" : String(view.sides[0].start + index);
  if (view.divergence?.column === column) return `▼${number}`;
  return column === from || (number && Number(number) % 10 === 0) ? number : "";
}

/* --- walking and looking ------------------------------------------------------------------------------------------ */

// When the page is scrolled under a pointer that rests, nobody has pointed at anything.
const tokenPointer = { x: -1, y: -1 };

function tokenPointed(event) {
  const moved = event.clientX !== tokenPointer.x || event.clientY !== tokenPointer.y;
  Object.assign(tokenPointer, { x: event.clientX, y: event.clientY });
  return moved;
}

document.addEventListener("pointerdown", tokenPointed, true);

function tokenListen(state) {
  const { lines, rows } = state;
  const columnOf = (event) => {
    const cell = event.target.closest("[data-column]");
    return cell && lines.contains(cell) ? Number(cell.dataset.column) : -1;
  };
  for (const type of ["mousemove", "focusin", "click"]) {
    lines.addEventListener(type, (event) => {
      if (type === "mousemove" && !tokenPointed(event)) return;
      const column = columnOf(event);
      if (column < 0 || column >= state.view.aligned.length) return;
      const token = event.target.closest("button.token");
      if (token && type !== "mousemove") tokenStop(rows[Number(token.dataset.side)], column);
      if (type === "click") token?.focus();
      tokenShow(state, column);
    });
  }
  lines.addEventListener("keydown", (event) => {
    const token = event.target.closest("button.token");
    if (!token || event.ctrlKey || event.altKey || event.metaKey) return;
    const next = tokenNext(rows, Number(token.dataset.side), columnOf(event), event.key);
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    next?.focus();
  });
}

/** The token to go to, null when there is none, undefined for keys that mean nothing here. */
function tokenNext(rows, number, column, key) {
  const tokens = (row) => row.cells.filter((cell) => cell?.matches("button.token"));
  const own = tokens(rows[number]);
  const place = own.findIndex((cell) => Number(cell.dataset.column) === column);
  if (key === "ArrowRight") return own[place + 1] ?? null;
  if (key === "ArrowLeft") return own[place - 1] ?? null;
  if (key === "Home") return own[0];
  if (key === "End") return own.at(-1);
  if (key !== "ArrowDown" && key !== "ArrowUp") return undefined;
  const step = key === "ArrowDown" ? 1 : -1;
  for (let other = number + step; rows[other]; other += step) {
    const theirs = tokens(rows[other]);
    if (theirs.length) return theirs.findLast((cell) => Number(cell.dataset.column) <= column) ?? theirs[0];
  }
  return null;
}

/** Makes a token the one of its side at which Tab stops. */
function tokenStop(row, column) {
  if (row.stop) row.stop.tabIndex = -1;
  row.stop = row.cells[column];
  row.stop.tabIndex = 0;
}

/** Where to look first: where the sides part. Each side's tab stop is there, too. */
function tokenStart({ view, rows }) {
  const column = view.divergence ? view.divergence.column : 0;
  rows.forEach((row, number) => {
    const has = view.aligned.map((one) => one[number] !== null);
    const at = has.lastIndexOf(true, column);
    const stop = at >= 0 ? at : has.indexOf(true);
    if (stop >= 0) tokenStop(row, stop);
  });
  return column;
}

/** What all sides hold for likely at a column. */
function tokenShow(state, column) {
  const { view, rows, detail } = state;
  if (column === state.column || column >= view.aligned.length) return;
  for (const { cells } of rows) {
    cells[state.column]?.classList.remove("token-current");
    cells[column]?.classList.add("token-current");
  }
  state.column = column;
  detail.replaceChildren(...view.sides.map((side, number) => tokenSide(state, number, view.aligned[column][number])));
}

function tokenSide({ view, texts }, number, index) {
  const side = view.sides[number];
  const box = tokenElement("div", "token-chances");
  const head = tokenElement("p", "token-side", {}, tokenBadge(number), " ", tokenElement("b", "", { dir: "auto" }, side.name));
  box.append(head);
  if (index === null) {
    box.append(tokenElement("p", "token-meta", {}, "no token here"));
    return box;
  }
  const [text, id, logprob, special, top] = side.tokens[index];
  const facts = [`token ${side.start + index}`, `id ${id}`];
  if (special) facts.push("special");
  if (side.kl) facts.push(`KL to A ${tokenNats(side.kl[index])} nats`);
  if (logprob === null) facts.push("no log-probabilities recorded");
  box.append(tokenElement("p", "token-meta", {}, facts.join(" · ")));
  const list = tokenElement("ol", "");
  const likely = top.map(([one, chance], rank) => [rank + 1, one, chance]);
  if (logprob !== null && !top.some(([one]) => one === id)) likely.push([top.length ? `>${top.length}` : "", id, logprob]);
  for (const [rank, one, chance] of likely) list.append(tokenChance(rank, one, chance, one === id ? text : texts[side.target].get(one), one === id));
  if (logprob === null) list.append(tokenElement("li", "token-own", {}, tokenElement("span", "token-rank", {}, "▸"), tokenSaid(text, id)));
  box.append(list);
  return box;
}

function tokenChance(rank, id, logprob, text, own) {
  const bar = tokenElement("span", "token-bar", { "aria-hidden": "true" });
  bar.style.width = `${100 * Math.min(1, Math.exp(tokenNumber(logprob)) || 0)}%`;
  return tokenElement(
    "li",
    own ? "token-own" : "",
    {},
    bar,
    tokenElement("span", "token-rank", {}, `${own ? "▸" : ""}${rank}`),
    tokenSaid(text, id),
    tokenElement("span", "token-percent", {}, tokenPercent(logprob)),
    tokenElement("span", "token-nats", {}, tokenNats(logprob)),
  );
}
