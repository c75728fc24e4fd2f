"use strict";
// The browser of readings. Text of the corpus and the models goes into the page as text nodes only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.sentences.length) return;

  const PAGE = 20;
  const KEYS = ["behavior", "verdict", "part", "reason", "q"];
  const form = document.getElementById("filters");
  const list = document.getElementById("sentences");
  const status = document.getElementById("status");
  const pager = document.getElementById("pager");
  const where = document.getElementById("page");
  const [previous, next] = pager.querySelectorAll("button");
  let page = 1;

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  for (const sentence of data.sentences) {
    const said = sentence.readings.map((r) => r.raw ?? JSON.stringify(r.content));
    sentence.haystack = [sentence.document, sentence.text, ...said].join("\n").toLowerCase();
  }

  function found() {
    const { behavior, verdict, part, reason, q } = Object.fromEntries(new FormData(form));
    const needle = q.trim().toLowerCase();
    const kept = [];
    for (const sentence of data.sentences) {
      if ((part && sentence.part !== part) || (needle && !sentence.haystack.includes(needle))) continue;
      const readings = sentence.readings.filter(
        (r) => (!behavior || r.behavior === behavior) && (!verdict || r.verdict === verdict) && (!reason || r.reason === reason),
      );
      if (readings.length) kept.push({ sentence, readings });
    }
    return kept;
  }

  // Offsets count characters, not UTF-16 units. Of overlapping entities the first is marked.
  function marked(text, entities) {
    const line = element("p", "sentence");
    line.dir = "auto";
    if (data.language) line.lang = data.language;
    const characters = Array.from(text);
    let at = 0;
    for (const entity of [...entities].sort((a, b) => a.start - b.start || b.end - a.end)) {
      if (!(entity.start >= at && entity.end <= characters.length)) continue;
      line.append(characters.slice(at, entity.start).join(""));
      const mark = element("mark", `type-${data.types.indexOf(entity.type)}`, characters.slice(entity.start, entity.end).join(""));
      mark.title = entity.type;
      line.append(mark);
      at = entity.end;
    }
    line.append(characters.slice(at).join(""));
    return line;
  }

  // What a behavior's content holds, as text: lists of records as the records' values.
  function told(value) {
    if (!Array.isArray(value)) return typeof value === "string" ? value : JSON.stringify(value);
    const one = (x) => (x && typeof x === "object" ? Object.values(x).join(" · ") : String(x));
    return value.map(one).join("; ") || "none";
  }

  function shown(reading) {
    const box = element("div", `reading ${reading.verdict}`);
    box.dataset.behavior = reading.behavior;
    box.dataset.verdict = reading.verdict;
    const head = element("p", "head", `${reading.behavior} · ${reading.verdict}`);
    if (reading.reason) head.append(": ", element("strong", "", reading.reason));
    box.append(head);
    const content = reading.content;
    if (!content) {
      const raw = element("pre", "raw", reading.raw?.trim() || "(empty answer)");
      raw.dir = "auto";
      box.append(raw);
    } else if (content.entities) {
      if (!content.entities.length) box.append(element("p", "none", "none"));
      const entities = element("ul", "entities");
      for (const entity of content.entities) {
        const item = element("li");
        const rest = ` (${entity.type}${entity.description ? `: ${entity.description}` : ""})`;
        item.append(element("bdi", "entity", entity.text), element("bdi", "", rest));
        entities.append(item);
      }
      if (content.entities.length) box.append(entities);
    } else {
      const pair = element("dl");
      for (const [label, text] of Object.entries(content)) {
        const value = element("dd", "", told(text));
        value.dir = "auto";
        pair.append(element("dt", "", label), value);
      }
      box.append(pair);
    }
    return box;
  }

  function item({ sentence, readings }) {
    const entry = element("li");
    const entities = readings.flatMap((r) => (r.verdict === "verified" && r.content?.entities) || []);
    const place = `${sentence.document}, paragraph ${sentence.paragraph + 1}, sentence ${sentence.sentence + 1}`;
    entry.append(marked(sentence.text, entities));
    entry.append(element("p", "place", place + (sentence.part === "held_out" ? " · held out" : "")));
    entry.append(...readings.map(shown));
    return entry;
  }

  const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

  function draw() {
    const kept = found();
    const pages = Math.max(1, Math.ceil(kept.length / PAGE));
    page = Math.min(Math.max(1, page), pages);
    const start = (page - 1) * PAGE;
    list.start = start + 1;
    list.replaceChildren(...kept.slice(start, start + PAGE).map(item));
    const total = kept.reduce((sum, { readings }) => sum + readings.length, 0);
    status.textContent = kept.length
      ? `${plural(total, "reading")} of ${plural(kept.length, "sentence")}`
      : "No reading matches this filter.";
    where.textContent = `page ${page} of ${pages}`;
    pager.hidden = pages < 2;
    previous.disabled = page === 1;
    next.disabled = page === pages;
  }

  function remember() {
    const values = new FormData(form);
    const state = new URLSearchParams();
    for (const key of KEYS) if (values.get(key)) state.set(key, values.get(key));
    if (page > 1) state.set("page", page);
    try {
      history.replaceState(null, "", `#${state.toString() || "browse"}`);
    } catch {
      // Some viewers show a page without an address of its own; the filter works all the same.
    }
  }

  // A fragment with '=' is a filter; any other is an anchor of the page.
  function recall() {
    const fragment = location.hash.slice(1);
    if (!fragment.includes("=")) return false;
    const state = new URLSearchParams(fragment);
    for (const key of KEYS) {
      const field = form.elements[key];
      field.value = state.get(key) ?? "";
      // A value that no option has selects nothing: back to the first, which is all.
      if (field.selectedIndex === -1) field.selectedIndex = 0;
    }
    page = Number.parseInt(state.get("page"), 10) || 1;
    return true;
  }

  function arrive() {
    if (!recall()) return;
    draw();
    document.getElementById("browse").scrollIntoView();
  }

  let waiting;
  function changed() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      page = 1;
      draw();
      remember();
    }, 120);
  }

  function turn(by) {
    page += by;
    draw();
    remember();
    document.getElementById("browse").scrollIntoView();
  }

  form.addEventListener("input", changed);
  form.addEventListener("reset", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  addEventListener("hashchange", arrive);
  document.getElementById("browser").hidden = false;
  draw();
  arrive();
})();
