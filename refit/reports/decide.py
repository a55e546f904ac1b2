"""The page of `make decide`: the suspects of the last audit one after the other, to be decided with keys or a mouse."""

from collections.abc import Sequence

from refit.artifacts.paths import DECISIONS
from refit.artifacts.suspects import Suspect
from refit.reports.style import page_template, percent


def decide_page(suspects: Sequence[Suspect], classes: Sequence[str], nonce: str) -> str:
    """The page. Its script asks the server that sent it for pictures and decisions, and no other; `nonce` is the one
    that the server's content security policy names."""
    data = {"suspects": [_as_json(suspect) for suspect in suspects], "classes": list(classes)}
    return page_template(_HTML).render(data=data, nonce=nonce, decisions=str(DECISIONS))


def _as_json(suspect: Suspect) -> dict[str, object]:
    """What the page shows of a suspect: `images` can be decided about, `beside` captions the further pictures."""
    image, other, is_pair = suspect.image, suspect.other, suspect.kind == "duplicate"
    if is_pair:
        why = [f"Similarity {suspect.score:.3f}", *(["mirrored"] if suspect.mirrored else [])]
        why += ["across splits: the test becomes too easy"] if image.split != other.split else []
        why += ["with two labels"] if image.label != other.label else []
        suggested = [other.label, image.label] if image.label != other.label else ["", ""]
    else:
        why = [f"The probability of its label is {percent(suspect.score)}"]
        suggested = [suspect.suggested]
    beside = [] if is_pair else [suspect.suggested, *([image.label] if suspect.alike else [])]
    return {
        "kind": suspect.kind,
        "rank": suspect.rank,
        "why": ", ".join(why),
        "images": [{**one._asdict(), "suggested": label}
                   for one, label in zip(suspect.undecided, suggested, strict=True)],
        "beside": [f"the most similar {label}" for label in beside],
    }  # fmt: skip


_HTML = """\
<title>Decide</title>
<link rel="icon" href="data:,">
<style nonce="{{ nonce }}">
{{ style | safe }}
  body { max-width: 76rem; padding: 1rem 1rem 3rem; }
  header { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; align-items: baseline; }
  header b { font-size: 1.15rem; font-variant-numeric: tabular-nums; }
  header nav { margin: 0; }
  header button { border: 0; background: none; padding: 0; color: inherit; font: inherit; text-decoration: underline;
                  cursor: pointer; }
  p { max-width: none; }
  progress { display: block; appearance: none; width: 100%; height: .4rem; margin: .5rem 0 1rem; border: 0;
             background: var(--line); }
  progress::-webkit-progress-bar { background: var(--line); }
  progress::-webkit-progress-value { background: #2a7fb0; }
  progress::-moz-progress-bar { background: #2a7fb0; }
  h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
  .pictures { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0; }
  .pictures figure { flex: 1 1 15rem; min-width: 0; margin: 0; padding: .5rem; border: 3px solid var(--line);
                     border-radius: .6rem; background: var(--card); }
  .pictures figure.chosen { border-color: #2a7fb0; }
  .pictures figure.beside { border-style: dashed; border-width: 1px; background: none; }
  .pictures img { width: 100%; aspect-ratio: 1; max-height: min(46vh, 26rem); object-fit: contain; background: none; }
  .pixelated { image-rendering: pixelated; }
  figcaption { font-size: .9rem; line-height: 1.4; margin-top: .4rem; overflow-wrap: anywhere; }
  figcaption b { color: var(--ink); font-size: 1rem; }
  .verdict { color: #fff; background: #2a7fb0; border-radius: .3rem; padding: .05rem .45rem; font-weight: 600; }
  .verdict.drop { background: #b3402f; } .verdict.relabel { background: #94610a; }
  .actions { display: flex; flex-wrap: wrap; gap: .5rem; }
  .actions button, dialog button { font: inherit; color: inherit; background: var(--card); padding: .4rem .8rem;
    border: 1px solid var(--line); border-radius: .5rem; cursor: pointer; }
  button:disabled { opacity: .45; cursor: default; }
  kbd { font: 600 .8rem ui-monospace, monospace; border: 1px solid var(--quiet); border-radius: .25rem;
        padding: 0 .35rem; }
  .actions kbd, figcaption kbd { margin-right: .4rem; }
  #said { min-height: 1.6rem; margin: .8rem 0; } #said.fault { color: #d0442f; font-weight: 600; }
  #help { font-size: .9rem; line-height: 1.9; } #help span { margin-right: .8rem; white-space: nowrap; }
  dialog { color: var(--ink); background: var(--page); border: 1px solid var(--quiet); border-radius: .6rem;
           width: min(26rem, 92vw); }
  dialog::backdrop { background: #0006; }
  dialog input { font: inherit; width: 100%; padding: .4rem; }
  dialog ul { list-style: none; padding: 0; margin: .6rem 0 0; max-height: 50vh; overflow-y: auto; }
  dialog li { padding: .25rem .5rem; border-radius: .3rem; cursor: pointer; overflow-wrap: anywhere; }
  dialog li[aria-selected=true] { background: var(--bar); }
  [hidden] { display: none !important; }
</style>
</head>
<body>
<header><b id="count"></b><nav id="kinds"></nav></header>
<progress id="bar" value="0" max="1" aria-label="decided"></progress>
<main>
<section id="one">
  <h1 id="title"></h1>
  <p class="quiet" id="why"></p>
  <div class="pictures" id="pictures"></div>
  <div class="actions" id="actions"></div>
</section>
<section id="end" hidden>
  <h1 id="end_title"></h1>
  <p>What to run next:</p>
  <dl class="facts">
    <dt><code>dvc repro</code></dt><dd>obeys <code>{{ decisions }}</code>: prepares the images again, and runs what
    depends on them. <code>dvc exp run</code> does the same and keeps the result as an experiment.</dd>
    <dt><code>make versus A=HEAD</code></dt><dd>shows what the decisions were worth: compares with the last commit;
    or with the experiment before, by its name</dd>
    <dt><code>make audit</code></dt><dd>looks for suspects again, without those that are decided</dd>
  </dl>
  <div class="actions" id="end_actions"></div>
</section>
<p id="said" role="status"></p>
<p class="quiet" id="help">
  <span><kbd>k</kbd> keep</span> <span><kbd>d</kbd> drop</span> <span><kbd>r</kbd> relabel as suggested</span>
  <span><kbd>l</kbd> another class</span> <span><kbd>1</kbd> <kbd>2</kbd> which of a pair</span>
  <span><kbd>Enter</kbd> <kbd>Space</kbd> skip to the next undecided</span>
  <span><kbd>\N{LEFTWARDS ARROW}</kbd> <kbd>\N{RIGHTWARDS ARROW}</kbd> back and forth</span>
  <span><kbd>u</kbd> undo</span>
  <br>Each decision is in <code>{{ decisions }}</code> at once. A pair is settled when one of the two is dropped
  or kept.
</p>
</main>
<dialog id="picker" aria-label="another class">
  <input id="filter" placeholder="type a part of the class, then Enter" autocomplete="off" spellcheck="false">
  <ul id="found" role="listbox"></ul>
</dialog>
<script nonce="{{ nonce }}">
"use strict";
const { suspects, classes } = {{ data | tojson }};
const by = id => document.getElementById(id);
let at = 0, chosen = 0, decisions = {}, undoable = 0;

function isDecided(suspect) {
  const kinds = suspect.images.map(image => decisions[image.file]?.kind).filter(kind => kind);
  return suspect.kind === "duplicate" ? kinds.some(kind => kind !== "relabel") : kinds.length > 0;
}

function nextUndecided(from, kind) {
  const found = suspects.findIndex((one, i) => i >= from && !isDecided(one) && (!kind || one.kind === kind));
  return found < 0 ? suspects.length : found;
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function button(key, text, act, disabled) {
  const made = element("button", { type: "button", disabled: Boolean(disabled) }, element("kbd", {}, key), text);
  made.addEventListener("click", event => { if (event.detail) made.blur(); inTurn(act); });
  return made;
}

function say(text, fault) {
  by("said").textContent = text;
  by("said").className = fault ? "fault" : "quiet";
}

async function ask(path, body) {
  const post = { method: "POST", body: JSON.stringify(body) };
  let response;
  try { response = await fetch(path, body ? post : {}); }
  catch { throw new Error("the server has ended; to go on: make decide, and open the address that it prints"); }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const pictures = new Map();
function picturesOf(number) {
  if (number >= suspects.length) return null;
  if (!pictures.has(number)) {
    const asked = ask(`/suspects/${number}`);
    asked.catch(() => pictures.delete(number));
    pictures.set(number, asked);
    if (pictures.size > 40) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(number);
}

function caption(image, i, suspect) {
  const made = element("figcaption", {});
  if (suspect.images.length > 1) made.append(element("kbd", {}, String(i + 1)));
  made.append(element("b", {}, image.label), ` in ${image.split} `);
  const decision = decisions[image.file];
  if (decision) {
    const text = { keep: "keep", drop: "drop", relabel: `relabel: ${decision.label}` }[decision.kind];
    made.append(element("span", { className: `verdict ${decision.kind}`, title: decision.why }, text));
  }
  made.append(element("br", {}), image.file);
  return made;
}

function show() {
  const decided = suspects.filter(isDecided).length;
  by("count").textContent = document.title = `${decided} of ${suspects.length} decided`;
  Object.assign(by("bar"), { value: decided, max: suspects.length });
  const kinds = [["duplicate", "near-duplicates"], ["label", "labels"]].map(([kind, name]) => {
    const all = suspects.filter(one => one.kind === kind), open = all.filter(one => !isDecided(one)).length;
    const text = `${name}: ${all.length - open} of ${all.length}`;
    const made = element("button", { type: "button", disabled: !open }, text);
    made.addEventListener("click", () => { made.blur(); go(nextUndecided(0, kind)); });
    return made;
  });
  by("kinds").replaceChildren(...kinds);
  history.replaceState(null, "", `#${at + 1}`);
  by("one").hidden = at >= suspects.length;
  by("end").hidden = !by("one").hidden;
  if (at >= suspects.length) showEnd(suspects.length - decided); else showSuspect(suspects[at]);
  for (let ahead = 1; ahead <= 3; ahead++) picturesOf(at + ahead)?.catch(() => {});
}

function showEnd(open) {
  by("end_title").textContent = open ? `The end of the list. ${open} undecided` : "All suspects are decided";
  by("end_actions").replaceChildren(
    ...open ? [button("Enter", "to the first undecided", skip)] : [],
    button("\N{LEFTWARDS ARROW}", "back", () => step(-1)), button("u", "undo", undo, !undoable));
}

function showSuspect(suspect) {
  const image = suspect.images[chosen], all = suspects.filter(one => one.kind === suspect.kind).length;
  const isPair = suspect.kind === "duplicate";
  by("title").textContent = isPair ? "The same picture twice?" : `${image.label}, or ${image.suggested}?`;
  const kind = isPair ? "Near-duplicates" : "Label";
  by("why").textContent = `${kind} ${suspect.rank} of ${all}. ${suspect.why}.`;
  const figures = [
    ...suspect.images.map((one, i) => {
      const made = element("figure", { className: i === chosen ? "chosen" : "" }, caption(one, i, suspect));
      if (isPair) made.addEventListener("click", () => choose(i));
      return made;
    }),
    ...suspect.beside.map(text => element("figure", { className: "beside" }, element("figcaption", {}, text)))];
  by("pictures").replaceChildren(...figures);
  picturesOf(at).then(answer => figures.forEach((figure, i) => {
    const { url, pixelated } = answer.pictures[i];
    figure.prepend(element("img", { src: url, alt: "", className: pixelated ? "pixelated" : "" }));
  })).catch(error => say(error.message, true));
  const which = isPair ? ` ${chosen + 1}` : "";
  by("actions").replaceChildren(
    button("k", isPair ? "keep both" : "keep", keep), button("d", `drop${which}`, drop),
    button("r", image.suggested ? `relabel${which}: ${image.suggested}` : "relabel", relabel, !image.suggested),
    button("l", "another class\N{HORIZONTAL ELLIPSIS}", pick), button("Enter", "skip", skip),
    button("\N{LEFTWARDS ARROW}", "back", () => step(-1), at === 0),
    button("\N{RIGHTWARDS ARROW}", "forth", () => step(1)),
    button("u", "undo", undo, !undoable));
}

function go(number) { at = Math.min(Math.max(number, 0), suspects.length); chosen = 0; show(); }
function step(by) { say(""); go(at + by); }
function skip() {
  const next = nextUndecided(at + 1);
  say(""); go(next < suspects.length || at < suspects.length ? next : nextUndecided(0));
}
function choose(number) { if (number < (suspects[at]?.images.length ?? 0)) { chosen = number; show(); } }

let last = Promise.resolve();
function inTurn(act) { last = last.then(act); }  // a key pressed while a decision is written is about what comes next

async function change(path, body, told) {
  try {
    const answer = await ask(path, body);
    ({ decisions, undo: undoable } = answer);
    told(answer);
  } catch (error) { say(error.message, true); }
}

function decide(decision, label = "", image = suspects[at]?.images[chosen]) {
  if (!image) return;
  return change("/decide", { suspect: at, file: image.file, decision, label }, () => {
    const text = decision === "relabel" ? `relabelled as ${label}` : { keep: "kept", drop: "dropped" }[decision];
    if (isDecided(suspects[at])) go(nextUndecided(at + 1)); else show();
    say(`${image.file}: ${text}`);
  });
}

function keep() {  // of a pair either will do: not the one whose new class a keep would undo
  const suspect = suspects[at];
  if (!suspect) return;
  const inOrder = [suspect.images[chosen], ...suspect.images];
  const image = inOrder.find(one => suspect.kind === "label" || decisions[one.file]?.kind !== "relabel");
  if (image) return decide("keep", "", image);
  say("both have a new class, which keep would undo; drop one, or skip", true);
}
function drop() { return decide("drop"); }
function relabel() {
  const suggested = suspects[at]?.images[chosen].suggested;
  if (suggested) return decide("relabel", suggested);
}
function undo() {
  if (undoable) return change("/undo", {}, answer => { go(answer.suspect); say("taken back"); });
  say("nothing was decided here that could be taken back");
}

let listed = [], marked = 0;
function pick() {
  if (at >= suspects.length) return;
  by("filter").value = "";
  list();
  by("picker").showModal();
}
function list() {
  const text = by("filter").value.trim().toLowerCase(), own = suspects[at].images[chosen].label;
  listed = classes.filter(name => name !== own && name.toLowerCase().includes(text));
  listed.sort((a, b) => b.toLowerCase().startsWith(text) - a.toLowerCase().startsWith(text));
  mark(0);
}
function mark(number) {
  marked = Math.min(Math.max(number, 0), listed.length - 1);
  by("found").replaceChildren(...listed.map((name, i) => {
    const made = element("li", { role: "option", ariaSelected: String(i === marked) }, name);
    made.addEventListener("click", () => take(i));
    return made;
  }));
  by("found").children[marked]?.scrollIntoView({ block: "nearest" });
}
function take(number) {
  if (!listed[number]) return;
  const label = listed[number];
  by("picker").close();
  inTurn(() => decide("relabel", label));
}
by("filter").addEventListener("input", list);
by("picker").addEventListener("keydown", event => {
  event.stopPropagation();
  const acts = { Enter: () => take(marked), ArrowDown: () => mark(marked + 1), ArrowUp: () => mark(marked - 1) };
  const act = acts[event.key];
  if (act) { event.preventDefault(); act(); }
});

const keys = { k: keep, d: drop, r: relabel, l: pick, u: undo, 1: () => choose(0), 2: () => choose(1), Enter: skip,
               " ": skip, ArrowLeft: () => step(-1), ArrowRight: () => step(1) };
document.addEventListener("keydown", event => {
  const act = keys[event.key.length > 1 ? event.key : event.key.toLowerCase()];
  const onButton = event.target.closest("button") && (event.key === "Enter" || event.key === " ");
  if (!act || onButton || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (!event.repeat || event.key.startsWith("Arrow")) inTurn(act);  // a key that is held down decides once
});
window.addEventListener("hashchange", () => { say(""); go(Number(location.hash.slice(1)) - 1 || 0); });

ask("/decisions").then(answer => {
  ({ decisions, undo: undoable } = answer);
  go(location.hash ? Number(location.hash.slice(1)) - 1 || 0 : nextUndecided(0));
}).catch(error => say(error.message, true));
</script>
</body>
</html>
"""
