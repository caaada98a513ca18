// The table of results with its filters and its order, and the address that holds them. What one result says: detail.js.

const byId = (id) => document.getElementById(id);
const table = dataIn("data"); // the rest of its columns stands behind this script: the first rows need not wait for it
const viewport = byId("viewport");
const detail = byId("detail");
const body = byId("rows").tBodies[0];
const headers = [...document.querySelectorAll("#rows [data-sort]")];

const COLUMNS = headers.map((button) => button.dataset.sort);
const FILTERS = ["outcome", "test", "target", "expectation"];
const SEARCHED = ["check", "reason", "details", "text", "said", "expectation", "generation", "model", "finish", "xfail"];
const YET_TO_COME = { values: [], codes: [] };
const AHEAD = 10; // rows painted above and below those in sight
const IN_CELL = 200; // characters of a text in the table
const ROW = Math.round(2.125 * parseFloat(getComputedStyle(document.documentElement).fontSize)); // its height, pixels

const state = { q: "", outcome: "", test: "", target: "", expectation: "", sort: "", row: "" };
const painted = new Map(); // the place of a row among those shown: its element
let shown = []; // numbers of the rows that fit the filters, in order
let current = 0; // the place at which the keyboard is

// ---- the data: columns of texts, each text once, and columns of numbers

function dataIn(id) {
  return JSON.parse(byId(id).textContent);
}

function word(name, row) {
  const { values, codes } = table.words[name] ?? YET_TO_COME;
  return values[codes.length ? codes[row] : 0] ?? "";
}

function keyOf(row) {
  return `${word("check", row)}|${word("expectation", row)}`;
}

const rowByKey = once(() => {
  const rows = new Map();
  for (let row = table.count - 1; row >= 0; row--) rows.set(keyOf(row), row);
  return rows;
});

function rowNamed(key) {
  return key ? rowByKey().get(key) : undefined;
}

const lowered = once((name) => table.words[name].values.map((text) => text.toLowerCase()));

// For each row a number by which it is sorted; null where there is none.
const ranks = once((name) => {
  if (name in table.numbers) return table.numbers[name];
  const { values, codes } = table.words[name];
  const order = [...values.keys()];
  if (name !== "outcome") order.sort(comparing(values)); // outcomes come with the worst first
  const rank = [];
  order.forEach((code, place) => { rank[code] = place; });
  return codes.length ? codes.map((code) => rank[code]) : new Array(table.count).fill(0);
});

function comparing(values) {
  // Words and numbers within as a reader counts them; of very many texts that would take too long.
  const { compare } = new Intl.Collator("en", { numeric: true });
  const plain = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
  const chosen = values.length > 2000 ? plain : compare;
  return (one, other) => chosen(values[one], values[other]);
}

function once(make) {
  const made = new Map();
  return (name) => {
    if (!made.has(name)) made.set(name, make(name));
    return made.get(name);
  };
}

// Large, and seldom looked at: what is shown token by token.
const tokens = once(() => dataIn("tokens-data"));

function viewOf(key) {
  const { views, texts } = tokens();
  return Object.hasOwn(views, key) ? [tokenView(views[key], texts)] : [];
}

// ---- which rows, in which order

function fitting() {
  const tests = FILTERS.filter((name) => state[name]).map((name) => having(name, (text) => text === state[name]));
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  tests.push(...words.map(saying));
  const rows = [];
  for (let row = 0; row < table.count; row++) if (tests.every((fits) => fits(row))) rows.push(row);
  return rows;
}

function having(name, fits, values = table.words[name].values) {
  const { codes } = table.words[name];
  const good = values.map(fits);
  return codes.length ? (row) => good[codes[row]] : () => good[0];
}

function saying(part) {
  const columns = SEARCHED.map((name) => having(name, (text) => text.includes(part), lowered(name)));
  return (row) => columns.some((fits) => fits(row));
}

function sorted(rows) {
  if (!state.sort) return rows;
  const sign = state.sort.startsWith("-") ? -1 : 1;
  const rank = ranks(state.sort.replace("-", ""));
  const missing = (row) => rank[row] === null;
  return rows.sort((one, other) => missing(one) - missing(other) || sign * (rank[one] - rank[other]));
}

// ---- painting: only the rows in sight exist

function refresh() {
  shown = sorted(fitting());
  current = Math.max(0, shown.indexOf(rowNamed(state.row)));
  body.replaceChildren();
  painted.clear();
  byId("height").style.height = `${(shown.length + 1) * ROW}px`;
  byId("shown").textContent = `${shown.length.toLocaleString("en")} of ${table.total.toLocaleString("en")}`;
  byId("rows").setAttribute("aria-rowcount", shown.length + 1);
  byId("nothing").hidden = shown.length > 0;
  viewport.hidden = !shown.length;
  bringIntoSight(current);
  paint();
}

function paint() {
  const first = Math.max(0, Math.floor(viewport.scrollTop / ROW) - AHEAD);
  const last = Math.min(shown.length, Math.ceil((viewport.scrollTop + viewport.clientHeight) / ROW) + AHEAD);
  for (const place of painted.keys()) if (place < first || place >= last) wipe(place);
  let next = body.firstChild;
  for (let place = first; place < last; place++) {
    if (painted.has(place)) next = painted.get(place).nextSibling;
    else painted.set(place, body.insertBefore(rowElement(place), next));
  }
  byId("rows").style.marginTop = `${first * ROW}px`;
}

function wipe(place) {
  if (painted.get(place).contains(document.activeElement)) viewport.focus({ preventScroll: true });
  painted.get(place).remove();
  painted.delete(place);
}

function rowElement(place) {
  const row = shown[place];
  const line = element("tr", "", ...COLUMNS.map((name) => cell(name, row)));
  line.tabIndex = place === current ? 0 : -1;
  line.dataset.place = place;
  line.setAttribute("aria-rowindex", place + 2); // the header is the first
  line.setAttribute("aria-selected", state.row !== "" && keyOf(row) === state.row);
  return line;
}

function cell(name, row) {
  if (name === "outcome") return element("td", `outcome mark ${word(name, row)}`, outcomeText(row));
  if (name in table.numbers) return element("td", name, numberText(table.numbers[name][row]));
  return element("td", name, word(name, row).slice(0, IN_CELL));
}

function outcomeText(row) {
  return `${table.symbols[word("outcome", row)]} ${word("outcome", row)}`;
}

function numberText(number) {
  return number === null ? "–" : number.toLocaleString("en", { maximumFractionDigits: number < 10 ? 2 : 1 });
}

function element(tag, look, ...inside) {
  const made = document.createElement(tag);
  if (look) made.className = look;
  made.append(...inside);
  return made;
}

// ---- moving through the rows

const MOVES = {
  ArrowDown: () => (viewport === document.activeElement ? current : current + 1),
  ArrowUp: () => current - 1,
  PageDown: () => current + rowsInSight(),
  PageUp: () => current - rowsInSight(),
  Home: () => 0,
  End: () => shown.length - 1,
};

function rowsInSight() {
  return Math.max(1, Math.floor(viewport.clientHeight / ROW) - 2);
}

function moveTo(place) {
  current = Math.min(Math.max(place, 0), shown.length - 1);
  bringIntoSight(current);
  paint();
  for (const [at, line] of painted) line.tabIndex = at === current ? 0 : -1;
  painted.get(current)?.focus({ preventScroll: true });
}

function bringIntoSight(place) {
  const lowest = (place + 2) * ROW - viewport.clientHeight; // the header takes the height of one
  viewport.scrollTop = Math.max(lowest, Math.min(viewport.scrollTop, place * ROW));
}

function onKey(event) {
  if (event.target.closest("thead") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in MOVES) {
    moveTo(MOVES[event.key]());
    if (state.row) openRow(shown[current]);
  } else if (event.key === "Enter" || event.key === " ") {
    openRow(shown[current]);
    enterDetail();
  } else return;
  event.preventDefault();
}

function onClick(event) {
  const line = event.target.closest("tbody tr");
  if (!line) return;
  moveTo(Number(line.dataset.place));
  openRow(shown[current]);
  detail.scrollIntoView({ block: "nearest" });
}

// ---- the address

let pending = 0;
let written = 0;

function writeAddress() {
  // Browsers refuse an address that changes all the time.
  clearTimeout(pending);
  pending = setTimeout(() => {
    written = Date.now();
    history.replaceState(null, "", `#${new URLSearchParams(told())}`);
  }, Math.max(0, written + 200 - Date.now()));
}

function told() {
  return Object.entries(state).filter(([name, value]) => value || name === "outcome");
}

// The state that the address asks for; null where it is the name of a section.
function asked() {
  const address = location.hash.slice(1);
  if (!address) return opening();
  if (!address.includes("=")) return null;
  const given = new URLSearchParams(address);
  const known = (name, value) => FILTERS.includes(name) ? choices(name).includes(value)
    : name !== "sort" || COLUMNS.includes(value.replace("-", ""));
  return stateOf((name) => (known(name, given.get(name) ?? "") && given.get(name)) || "");
}

function stateOf(value) {
  return Object.fromEntries(Object.keys(state).map((name) => [name, value(name)]));
}

function opening() {
  const worst = ["failed", "error"].find((outcome) => table.outcomes.includes(outcome));
  return stateOf((name) => (name === "outcome" && worst) || "");
}

function obey(wanted) {
  Object.assign(state, wanted);
  byId("filter-text").value = state.q;
  for (const name of FILTERS) byId(`filter-${name}`).value = state[name];
  showOrder();
  refresh();
  showDetail();
}

function onAddress() {
  const wanted = asked();
  if (!wanted) return;
  obey(wanted);
  if (state.row && !detail.hidden) return enterDetail();
  byId("results").scrollIntoView();
  viewport.focus({ preventScroll: true });
}

// ---- what the reader does

function filterBy(change) {
  timed("harness:filter", () => {
    Object.assign(state, change);
    refresh();
  });
  writeAddress();
}

function sortBy(column) {
  const next = { [column]: `-${column}`, [`-${column}`]: "" };
  state.sort = next[state.sort] ?? column;
  timed("harness:sort", () => {
    showOrder();
    refresh();
    viewport.scrollTop = 0;
    paint();
  });
  writeAddress();
}

function showOrder() {
  for (const button of headers) {
    const order = { [button.dataset.sort]: "ascending", [`-${button.dataset.sort}`]: "descending" };
    button.parentElement.setAttribute("aria-sort", order[state.sort] ?? "none");
  }
}

function timed(name, work) {
  const start = performance.now();
  work();
  afterFrame(() => performance.measure(name, { start, end: performance.now() }));
}

function afterFrame(then) {
  requestAnimationFrame(() => setTimeout(then));
}

function clearFilters() {
  const none = Object.fromEntries(["q", ...FILTERS].map((name) => [name, ""]));
  filterBy(none);
  byId("filter-text").value = "";
  for (const name of FILTERS) byId(`filter-${name}`).value = "";
}

function choices(name) {
  return name === "outcome" ? table.outcomes : table.words[name].values;
}

function fillFilters() {
  for (const name of FILTERS) byId(`filter-${name}`).append(...choices(name).map((text) => new Option(text, text)));
}

function listen() {
  byId("filter-text").addEventListener("input", (event) => filterBy({ q: event.target.value }));
  for (const name of FILTERS) {
    byId(`filter-${name}`).addEventListener("change", (event) => filterBy({ [name]: event.target.value }));
  }
  for (const button of headers) button.addEventListener("click", () => sortBy(button.dataset.sort));
  for (const button of [byId("clear"), document.querySelector("#nothing button")]) {
    button.addEventListener("click", clearFilters);
  }
  viewport.addEventListener("scroll", paint, { passive: true });
  viewport.addEventListener("keydown", onKey);
  viewport.addEventListener("click", onClick);
  byId("explorer").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.row && !event.target.closest(".filters")) closeRow();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#detail .close")) closeRow();
    if (event.target.closest("button.copy")) copyFrom(event.target);
  });
  addEventListener("hashchange", onAddress);
  addEventListener("resize", paint);
}

function start() {
  const root = document.documentElement;
  root.classList.add("scripted");
  root.style.setProperty("--row", `${ROW}px`);
  byId("explorer").hidden = !table.count;
  fillFilters();
  const wanted = asked() ?? opening();
  const inRows = !wanted.q && !wanted.row && !wanted.sort; // what is asked for is told by the columns that are there
  if (inRows) obey(wanted);
  afterFrame(() => performance.mark("harness:rows"));
  document.addEventListener("DOMContentLoaded", () => complete(wanted));
}

function complete(wanted) {
  Object.assign(table.words, dataIn("words-data"));
  listen();
  obey(wanted);
  if (state.row && !detail.hidden) enterDetail();
  afterFrame(() => performance.mark("harness:ready"));
}

start();
