// What is known of one result, and copying; called by page.js, in whose data it looks.

function openRow(row) {
  if (row === undefined) return;
  state.row = keyOf(row);
  showDetail();
  writeAddress();
}

function closeRow() {
  state.row = "";
  showDetail();
  writeAddress();
  moveTo(current);
}

function enterDetail() {
  detail.focus({ preventScroll: true });
  detail.scrollIntoView({ block: "nearest" });
}

function showDetail() {
  const row = rowNamed(state.row);
  const inside = row === undefined ? viewAlone() : detailOf(row);
  detail.hidden = !inside.length;
  detail.replaceChildren(...inside);
  for (const [place, line] of painted) line.setAttribute("aria-selected", shown[place] === row);
}

// What a comparison shows without a verdict of its own.
function viewAlone() {
  const view = state.row ? viewOf(state.row) : [];
  detail.setAttribute("aria-label", state.row);
  return view.length ? [detailHeader("token by token"), ...view] : [];
}

function detailOf(row) {
  detail.setAttribute("aria-label", `${word("outcome", row)}: ${keyOf(row)}`);
  return [
    detailHeader(element("span", `mark ${word("outcome", row)}`, outcomeText(row)), ` ${nameOf(row)}`),
    element("p", "said", word("reason", row)),
    ...block("", word("details", row), "pre"),
    ...viewOf(word("check", row)),
    ...block("prompt", word("said", row)),
    ...block("text", word("text", row)),
    ...otherTargets(row),
    ...factsOf(row),
    ...reproducing(row),
  ];
}

function nameOf(row) {
  const prompt = word("prompt", row);
  return `${word("test", row)}${prompt && `[${prompt}]`} on ${word("target", row)}`;
}

function detailHeader(...title) {
  const shut = element("button", "close", "close");
  shut.type = "button";
  return element("header", "", element("h3", "", ...title), shut);
}

function block(title, text, look = "wrap") {
  if (!text) return [];
  const shownText = element("pre", look, text);
  shownText.tabIndex = 0;
  shownText.setAttribute("role", "region");
  shownText.setAttribute("aria-label", title || "details");
  return title ? [element("h4", "", title), shownText] : [shownText];
}

function otherTargets(row) {
  const same = (name) => having(name, (text) => text === word(name, row));
  const alike = ["test", "prompt", "expectation", "generation"].map(same);
  const others = [];
  for (let other = 0; other < table.count; other++) {
    if (other !== row && word("target", other) !== word("target", row) && alike.every((fits) => fits(other))) {
      others.push(other);
    }
  }
  if (!others.length) return [];
  const lines = others.map((other) => element("li", "", linkTo(other), " ",
    element("span", `mark ${word("outcome", other)}`, outcomeText(other)),
    element("div", "said", word("text", other) || word("reason", other))));
  return [element("h4", "", "on the other targets"), element("ul", "others", ...lines)];
}

function linkTo(row) {
  const link = element("a", "", word("target", row));
  link.href = `#${new URLSearchParams({ ...Object.fromEntries(told()), row: keyOf(row) })}`;
  return link;
}

function factsOf(row) {
  const facts = {
    "check": word("check", row),
    "expectation": word("expectation", row),
    "known failure": word("xfail", row),
    "model": [word("model", row), word("quantization", row)].filter(Boolean).join(", "),
    "generation": [word("generation", row), word("arguments", row)].filter(Boolean).join(": "),
    "ended": [word("finish", row), ...counted(row)].filter(Boolean).join(", "),
    "numbers": word("numbers", row),
    "written at": `${word("file", row)}:${table.numbers.line[row]}`,
  };
  const told = Object.entries(facts).filter(([, text]) => text);
  const list = element("dl", "", ...told.flatMap(([name, text]) => [element("dt", "", name), element("dd", "", text)]));
  return [element("h4", "", "what is known"), list];
}

function counted(row) {
  const { new_tokens, seconds } = table.numbers;
  const tokens = new_tokens[row] === null ? "" : `${numberText(new_tokens[row])} new tokens`;
  return [tokens, seconds[row] === null ? "" : `${numberText(seconds[row])} s`];
}

function reproducing(row) {
  const commands = word("commands", row) || `pytest "${word("check", row)}"`;
  return [element("h4", "", "how to reproduce"), ...commands.split("\n").map(commandLine)];
}

function commandLine(command) {
  const copy = element("button", "copy", "copy");
  copy.type = "button";
  return element("p", "command", element("code", "", command), " ", copy);
}

// ---- copying

async function copyFrom(button) {
  const code = button.parentElement.querySelector("code");
  const done = (await inClipboard(code.textContent)) || selectedAndCopied(code);
  button.textContent = done ? "copied ✓" : "select and copy";
  byId("told").textContent = done ? "copied" : "could not be copied";
  setTimeout(() => { button.textContent = "copy"; byId("told").textContent = ""; }, 2000);
}

async function inClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // no clipboard here, or no leave to use it
  }
}

function selectedAndCopied(node) {
  getSelection().selectAllChildren(node);
  return document.execCommand("copy");
}
