// What a page does beyond reading: it follows progress, moves by arrow keys, copies, asks before it cancels.
// All of it is extra: without scripts every page can be read and every button works.
"use strict";

const CELLS_AT_ONCE = 60;
const TRIES = [1, 3, 10, 30]; // seconds until what failed is asked for again
let source = null;

function follow() {
  if (source) source.close();
  const watched = [...document.querySelectorAll("[data-live]")].map((one) => one.dataset.live);
  const holder = document.querySelector("[data-part]");
  if (!holder || !watched.length || !window.EventSource) return;
  const query = new URLSearchParams({ part: holder.dataset.part });
  watched.forEach((id) => query.append("id", id));
  source = new EventSource(`/live?${query}`);
  source.addEventListener("status", (event) => redraw(event.lastEventId, event.data));
  // Or it would come again by itself, only to hear the same.
  source.addEventListener("end", () => source.close());
}

function redraw(id, html) {
  const old = document.getElementById(`submission-${id}`);
  const fresh = elements(html)[0];
  if (!old || !fresh) return;
  const moved = old.dataset.finished !== fresh.dataset.finished;
  const ended = !fresh.dataset.live;
  replace(old, fresh);
  if (moved || ended) refreshCells(id, ended);
  if (ended) refreshActions();
}

function elements(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return [...template.content.children];
}

// Who stands on a link with the keyboard still stands on it in what replaces it.
function replace(old, fresh) {
  const at = old.contains(document.activeElement) ? document.activeElement : null;
  old.replaceWith(fresh);
  if (!at) return;
  const links = [...fresh.querySelectorAll("a[href]")];
  const same = links.find((link) => link.href === at.href) || links[0];
  if (same) same.focus({ preventScroll: true });
}

// Jobs that were not finished when their cell was drawn are asked for again, those on the screen first; all of
// them at the end, when nothing more is said.
async function refreshCells(id, all) {
  const cells = [...document.querySelectorAll("#gallery [data-unfinished]")];
  const seen = (cell) => Math.abs(cell.getBoundingClientRect().top);
  cells.sort((one, other) => seen(one) - seen(other));
  const wanted = all ? cells : cells.slice(0, CELLS_AT_ONCE);
  for (let at = 0; at < wanted.length; at += CELLS_AT_ONCE) {
    const query = new URLSearchParams(location.search); // their links keep the filter
    ["index", "cursor"].forEach((name) => query.delete(name));
    wanted.slice(at, at + CELLS_AT_ONCE).forEach((cell) => query.append("index", cell.dataset.unfinished));
    const html = await ask(`/submissions/${id}/cells?${query}`, all);
    if (html === null) return;
    for (const fresh of elements(html)) {
      const old = document.getElementById(fresh.id);
      // An answer may be overtaken by a later one: what is finished stays.
      if (old && old.dataset.unfinished && old.className !== fresh.className) replace(old, fresh);
    }
  }
}

// What nothing will ask for later is asked for again, where the server or the way to it is away for a moment.
async function ask(path, again) {
  for (const seconds of again ? [...TRIES, 0] : [0]) {
    try {
      const answer = await fetch(path);
      if (answer.ok) return await answer.text();
      if (answer.status < 500 && answer.status !== 429) return null;
    } catch {
      // Nobody answers.
    }
    if (seconds) await new Promise((go) => { setTimeout(go, 1000 * seconds); });
  }
  return null;
}

// What can be done with a submission is something else once it is done. Form by form: one that stays keeps the
// keyboard, and what is half typed in it.
async function refreshActions() {
  if (!document.getElementById("actions")) return;
  const html = await ask(location.href, true);
  const old = document.getElementById("actions");
  const fresh = new DOMParser().parseFromString(html || "", "text/html").getElementById("actions");
  if (!old || !fresh) return;
  const does = (one) => one.getAttribute("action") || one.getAttribute("href");
  const wanted = [...fresh.children];
  const kept = wanted.map(does);
  const at = document.activeElement;
  [...old.children].filter((one) => !kept.includes(does(one))).forEach((one) => one.remove());
  let next = old.firstElementChild;
  for (const one of wanted) {
    if (next && does(next) === does(one)) next = next.nextElementSibling;
    else old.insertBefore(document.adoptNode(one), next);
  }
  // Who stood on what is gone goes on from here; on a link, since a button would be pressed by mistake.
  const link = old.querySelector("a[href]");
  if (!at.isConnected && link) link.focus({ preventScroll: true });
}

function moveAmongCells(key) {
  const links = [...document.querySelectorAll("#gallery .open")];
  const at = links.indexOf(document.activeElement);
  if (!links.length) return false;
  const top = (link) => link.getBoundingClientRect().top;
  const across = links.filter((link) => Math.abs(top(link) - top(links[0])) < 2).length || 1;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[key];
  if (at < 0) {
    if (key !== "ArrowRight") return false;
    links[0].focus();
    return true;
  }
  const next = links[at + step];
  if (next) next.focus();
  return Boolean(next);
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest("input, select, textarea, [contenteditable]")) return;
  const link = { ArrowLeft: "a[rel=prev]", ArrowRight: "a[rel=next]", Escape: "a.up" }[event.key];
  if (document.querySelector("#gallery")) {
    if (event.key.startsWith("Arrow") && moveAmongCells(event.key)) event.preventDefault();
  } else if (link) {
    const found = document.querySelector(`.around ${link}`);
    if (found) found.click();
  }
});

async function copy(button) {
  const from = document.getElementById(button.dataset.copy);
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(from.textContent);
    button.textContent = "Copied";
  } catch {
    // Without TLS a browser leaves the clipboard to the user: select what is to be copied.
    getSelection().selectAllChildren(from);
    button.textContent = "Selected; press Ctrl-C";
  }
  setTimeout(() => { button.textContent = before; }, 2000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) copy(button);
});

document.addEventListener("submit", (event) => {
  const asked = event.target.dataset.confirm;
  if (asked && !confirm(asked)) event.preventDefault();
});

addEventListener("pagehide", () => { if (source) source.close(); });
addEventListener("pageshow", (event) => { if (event.persisted) follow(); });
follow();
