"use strict";
// Sorting, filtering, and the cells behind a number. The page can be read without it.
(() => {
  const MOST_CELLS = 200;
  const known = JSON.parse(document.getElementById("list").textContent);

  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== undefined && text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  // --- Sorting: once as the heading says, then the other way round, then as it was.

  function value(row, column) {
    const cell = row.cells[column];
    const number = parseFloat(cell.dataset.value);
    return { number: Number.isNaN(number) ? null : number, text: cell.textContent.trim() };
  }

  // Numbers before texts before nothing, in either direction.
  function compare(a, b, sign) {
    const rank = (one) => (one.number !== null ? 0 : one.text ? 1 : 2);
    if (rank(a) !== rank(b)) return rank(a) - rank(b);
    if (a.number !== null) return sign * (a.number - b.number);
    return sign * a.text.localeCompare(b.text, "en", { numeric: true });
  }

  function sort(heading) {
    const table = heading.closest("table");
    const body = table.tBodies[0];
    const first = heading.querySelector("button").dataset.first;
    const other = first === "ascending" ? "descending" : "ascending";
    const now = heading.getAttribute("aria-sort");
    const next = now === "none" ? first : now === first ? other : "none";
    for (const one of table.tHead.rows[0].cells) one.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", next);
    const column = heading.cellIndex;
    const sign = next === "descending" ? -1 : 1;
    const rows = [...body.rows].map((row) => ({ row, place: Number(row.dataset.place), key: value(row, column) }));
    rows.sort((a, b) => (next === "none" ? 0 : compare(a.key, b.key, sign)) || a.place - b.place);
    body.append(...rows.map((one) => one.row));
  }

  for (const body of document.querySelectorAll("table[data-sorts] > tbody")) {
    [...body.rows].forEach((row, place) => { row.dataset.place = place; });
  }

  // --- Filtering: rows that hold every word, in all tables of the box's section.

  function filter(box) {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, all = 0;
    for (const row of box.closest("section").querySelectorAll("table[data-sorts] > tbody > tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
      all += 1;
    }
    box.closest("p").querySelector("output").textContent = words.length ? `${shown} of ${all} rows` : "";
  }

  // --- The cells behind a number: places in the list of cells, and what each contributes.

  function described(place) {
    const row = known.cells[place];
    return [...row.slice(0, -1), ...known.shared[row.at(-1)]];
  }

  function cellTable(places, scores) {
    const table = element("table");
    const head = table.createTHead().insertRow();
    const body = table.createTBody();
    const columns = [...known.columns.slice(0, 1), ...(scores ? ["score"] : []), ...known.columns.slice(1)];
    const rows = places.slice(0, MOST_CELLS).map((place, index) => {
      const [name, ...rest] = described(place);
      return [name, ...(scores ? [scores[index]] : []), ...rest].map((one) => (one === null ? "" : String(one)));
    });
    const filled = columns.map((_, column) => rows.some((row) => row[column] !== ""));
    columns.forEach((name, column) => filled[column] && head.append(element("th", name, { scope: "col" })));
    for (const row of rows) {
      const line = body.insertRow();
      row.forEach((text, column) => {
        if (filled[column]) line.append(column ? element("td", text) : element("th", text, { scope: "row" }));
      });
    }
    const box = element("div", null, { class: "scroll", tabindex: "0", role: "region", "aria-label": "Cells" });
    box.append(table);
    return box;
  }

  function more(count) {
    return count > MOST_CELLS ? `${MOST_CELLS} of ${count} are shown.` : "";
  }

  const panel = document.getElementById("behind");
  let opener = null;

  function nameOf(button) {
    const cell = button.closest("td");
    if (!cell) return button.closest("figure")?.querySelector("h4")?.textContent ?? "Cells";
    const heading = cell.closest("table").tHead.rows[0].cells[cell.cellIndex].textContent;
    return `${cell.parentElement.cells[0].textContent}, ${heading}: ${button.textContent}`;
  }

  function show(button) {
    opener?.setAttribute("aria-expanded", "false");
    opener = button;
    button.setAttribute("aria-expanded", "true");
    const places = button.dataset.cells.split(" ").map(Number);
    const close = element("button", "Close", { type: "button", class: "close" });
    const told = element("p", more(places.length));
    const [name, ...rest] = described(places[0]);
    if (rest.at(-1) !== "probe") {
      told.append(" How one came about: ");
      told.append(element("code", `python -m bench.why ${name}${document.body.dataset.options}`));
    }
    panel.replaceChildren(close, element("h2", nameOf(button)), cellTable(places, button.dataset.scores?.split(",")), told);
    panel.hidden = false;
  }

  function hide() {
    panel.hidden = true;
    opener?.setAttribute("aria-expanded", "false");
    opener?.focus();
    opener = null;
  }

  // --- All cells: written only when asked for, and only those that hold every word.

  function list(box) {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const holds = (place) => {
      const text = described(place).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    };
    const places = [...known.cells.keys()].filter(holds);
    const target = document.getElementById("cell-list");
    target.replaceChildren(cellTable(places), element("p", `${places.length} cells. ${more(places.length)}`));
  }

  document.addEventListener("click", (event) => {
    const heading = event.target.closest("table[data-sorts] thead button")?.closest("th");
    const number = event.target.closest("button[data-cells]");
    if (heading) sort(heading);
    else if (number) {
      show(number);
      panel.focus({ preventScroll: true });
    } else if (event.target.closest("#behind .close")) hide();
  });
  document.addEventListener("focusin", (event) => {
    if (!panel.hidden && event.target.matches("button[data-cells]") && event.target !== opener) show(event.target);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !panel.hidden) hide();
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches("[data-filter]")) filter(event.target);
    else if (event.target.matches("[data-list]")) list(event.target);
  });
  document.getElementById("all-cells")?.addEventListener("toggle", (event) => {
    const box = event.target.querySelector("[data-list]");
    if (event.target.open && !document.getElementById("cell-list").hasChildNodes()) list(box);
  });
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not(#all-cells)")) one.open = true;
  });
})();
