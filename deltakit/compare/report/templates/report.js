"use strict";
// What is absent stays at the end, whichever way a column is sorted.
function compare(a, b, sign) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  const numbers = a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
  return sign * (numbers ? a - b : a.localeCompare(b));
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column]?.dataset.sort;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => compare(key(a), key(b), down ? -1 : 1));
    table.tBodies[0].append(...rows);
  }));
}

// A title of a picture, at once and beside the pointer; without this script the browser shows it.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll("svg title")) {
  const point = title.parentElement;
  const text = title.textContent;
  title.remove();
  point.addEventListener("pointermove", (event) => {
    tip.textContent = text;
    tip.hidden = false;
    const x = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  });
  point.addEventListener("pointerleave", () => { tip.hidden = true; });
}
