// What a page does beyond reading: it follows progress, moves by arrow keys, copies, asks before it cancels.
// All of it is extra: without scripts every page can be read and every button works.
"use strict";

const CELLS_AT_ONCE = 60;
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
    const query = new URLSearchParams();
    wanted.slice(at, at + CELLS_AT_ONCE).forEach((cell) => query.append("index", cell.dataset.unfinished));
    const answer = await fetch(`/submissions/${id}/cells?${query}`);
    if (!answer.ok) return;
    for (const fresh of elements(await answer.text())) {
      const old = document.getElementById(fresh.id);
      if (old && old.className !== fresh.className) replace(old, fresh);
    }
  }
}

// What can be done with a submission is something else once it is done.
async function refreshActions() {
  const old = document.getElementById("actions");
  if (!old) return;
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("actions");
  if (fresh) old.replaceWith(document.adoptNode(fresh));
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
