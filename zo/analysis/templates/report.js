// Sorting and filtering. Without this script the page says the same, in the order of the settings.
"use strict";

const cellsOf = (row, column) => row.cells[column].dataset.key ?? "";

// Numbers as numbers, the rest as text; what was not measured last, whichever the direction.
function compareKeys(a, b, direction) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [a, b].map((key) => (key === "inf" ? Infinity : Number(key)));
  const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y || 0;
  return direction * order;
}

function sortBy(table, heading) {
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  const column = heading.cellIndex;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compareKeys(cellsOf(a, column), cellsOf(b, column), direction));
  table.tBodies[0].append(...rows);
}

function makeSortable(table) {
  for (const heading of table.tHead.rows[0].cells) {
    if ("plain" in heading.dataset) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, heading));
    heading.append(button);
  }
}

function addControl(place, title, control) {
  const label = document.createElement("label");
  label.append(title, control);
  place.append(label);
  return control;
}

function makeChoice(place, table, heading) {
  const column = heading.cellIndex;
  const keys = new Map([...table.tBodies[0].rows].map((row) => [row.cells[column].textContent, cellsOf(row, column)]));
  const values = [...keys].sort((a, b) => compareKeys(a[1], b[1], 1)).map(([text]) => text);
  const choice = addControl(place, heading.textContent, document.createElement("select"));
  choice.append(new Option("all", "all", true));
  values.forEach((value, i) => choice.append(new Option(value || "(none)", String(i))));
  return (row) => choice.value === "all" || row.cells[column].textContent === values[Number(choice.value)];
}

function makeSearch(place) {
  const input = addControl(place, "name contains", document.createElement("input"));
  input.type = "search";
  return (row) => row.cells[0].textContent.toLowerCase().includes(input.value.trim().toLowerCase());
}

function makeFilters(place) {
  const table = document.getElementById(place.dataset.filters);
  if (!table) return;
  const headings = [...table.tHead.rows[0].cells].filter((heading) => "filter" in heading.dataset);
  const tests = [makeSearch(place), ...headings.map((heading) => makeChoice(place, table, heading))];
  const count = document.createElement("output");
  count.setAttribute("aria-live", "polite");
  place.append(count);
  const apply = () => {
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) row.hidden = !tests.every((test) => test(row));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
  };
  place.addEventListener("input", apply);
  apply();
}

document.querySelectorAll("[data-filters]").forEach(makeFilters); // before the buttons: headings are labels
document.querySelectorAll("[data-sortable]").forEach(makeSortable);
