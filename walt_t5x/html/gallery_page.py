"""HTML of the gallery without its cards: style, filter, playback, keys. `gallery` sets {{title}} and {{shares}}."""

STYLE = """
:root { --right: #1a7f37; --wrong: #b3261e; --accent: #2f6fde; }
@media (prefers-color-scheme: dark) { :root { --right: #5fcf80; --wrong: #ff8a80; --accent: #7aa7ff; } }
body { padding: 0; font-size: 15px; }
header { position: sticky; top: 0; z-index: 1; padding: 14px 24px; background: var(--page);
  border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: 8px 16px;
  align-items: center; }
h1 { font-size: 18px; margin: 0; }
#shares, #count, #keys, .facts { color: var(--soft); font-size: 13px; }
#shares { flex: 1 1 0; min-width: 12em; }
input, select, button { font: inherit; color: inherit; background: var(--card); padding: 5px 10px;
  border: 1px solid var(--line); border-radius: 7px; }
input { width: 12em; }
main { display: flex; flex-wrap: wrap; gap: 16px; padding: 20px 24px; align-items: flex-start; }
article { padding: 14px; display: flex; flex-direction: column; }
article[hidden] { display: none; }
article.current { outline: 3px solid var(--accent); }
article.large { flex-basis: 100%; }
article.large video, article.large img { height: min(60vh, 512px); }
h2 { font-size: 15px; font-weight: 600; margin: 0 0 10px; max-width: 34em;
  width: 0; min-width: 100%; }
.stages { display: flex; flex-wrap: wrap; gap: 10px; }
video, img { height: 192px; width: auto; }
figcaption { margin-top: 4px; }
figcaption b { font-weight: 600; }
p { margin: 6px 0 0; }
p:empty { display: none; }
.badges span { display: inline-block; margin-right: 6px; padding: 1px 9px; border-radius: 99px;
  border: 1px solid currentColor; font-size: 12px; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
"""

HEADER = """<header>
<h1>{{title}}</h1>
<span id="shares"></span>
<input id="text" type="search" placeholder="filter by prompt" aria-label="filter by prompt">
<select id="verdict" aria-label="filter by verdict" hidden>
<option value="">right and wrong</option><option value="right">right only</option>
<option value="wrong">wrong only</option>
</select>
<button id="pause" type="button">pause</button>
<span id="count"></span>
<span id="keys">keys: / filter, ← → card, Enter enlarge, space pause, . , frame</span>
</header>
<main>
"""

TAIL = """</main>
<script>
"use strict";
const get = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll("article")];
const videos = [...document.querySelectorAll("video")];
const shares = {{shares}};
get("shares").textContent = shares;
get("verdict").hidden = !shares;

// Every word of the filter must be in the prompt.
function filter() {
  const words = get("text").value.toLowerCase().split(/\\s+/).filter(Boolean);
  const verdict = get("verdict").value;
  let shown = 0;
  for (const card of cards) {
    const fits = words.every((word) => card.dataset.prompt.includes(word)) &&
      (!verdict || card.dataset.verdict === verdict);
    card.hidden = !fits;
    shown += fits;
  }
  get("count").textContent = `${shown} of ${cards.length} clips`;
}
get("text").addEventListener("input", filter);
get("verdict").addEventListener("change", filter);
filter();

// Browsers decode a limited number of videos at a time: those out of view are paused.
let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
const seen = new Set();
function update(video) {
  if (!paused && seen.has(video)) video.play().catch(() => {}); else video.pause();
}
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) seen.add(target); else seen.delete(target);
    update(target);
  }
}, { rootMargin: "200px" });
function label() { get("pause").textContent = paused ? "play" : "pause"; }
get("pause").addEventListener("click", () => {
  paused = !paused;
  videos.forEach(update);
  label();
});
get("pause").hidden = !videos.length;
label();
videos.forEach((video) => observer.observe(video));

// Keys: the current card among those shown; its clips are enlarged and stepped together.
let current = null;
function choose(card) {
  if (current) current.classList.remove("current");
  current = card;
  if (!card) return;
  card.classList.add("current");
  card.scrollIntoView({ block: "nearest" });
}
function move(by) {
  const shown = cards.filter((card) => !card.hidden);
  if (!shown.length) return;
  const at = shown.indexOf(current);
  choose(shown[at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by))]);
}
function stepFrame(by) {
  if (!paused) get("pause").click();
  for (const video of (current || document).querySelectorAll("video")) {
    const frame = 1 / Number(video.dataset.fps);
    video.currentTime = Math.min(video.duration, Math.max(0, video.currentTime + by * frame));
  }
}
const keys = {
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
  Enter: () => current && current.classList.toggle("large"),
  " ": () => get("pause").click(),
  ".": () => stepFrame(1),
  ",": () => stepFrame(-1),
  "/": () => get("text").focus(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select")) {
    if (event.key !== "Escape") return;
    get("text").value = "";
    filter();
    event.target.blur();
    return;
  }
  // A focused button handles Enter and space itself.
  if (event.target.matches("button") && (event.key === " " || event.key === "Enter")) return;
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});
</script>
"""
