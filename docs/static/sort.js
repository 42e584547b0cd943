// Long tables: a click on the title of a column sorts by it, another one in the other direction.
const LEAST_ROWS = 20;

function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  if (text === "" || text === "–") return Infinity;
  const number = parseFloat(text.replace(/^[>×]/, ""));
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a === b ? 0 : a - b;
  return String(a).localeCompare(String(b));
}

function makeSortable(table) {
  const body = table.tBodies[0];
  Array.from(table.tHead.rows[0].cells).forEach((title, column) => {
    const button = document.createElement("button");
    button.className = "sort";
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const ascending = title.ariaSort !== "ascending";
      for (const other of title.parentNode.cells) other.ariaSort = null;
      title.ariaSort = ascending ? "ascending" : "descending";
      const rows = Array.from(body.rows);
      rows.sort((a, b) => (ascending ? 1 : -1) * compare(valueOf(a, column), valueOf(b, column)));
      body.append(...rows);
    });
  });
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("#which-optimizer-a-measured-guide table"))
    if (table.tBodies[0].rows.length >= LEAST_ROWS) makeSortable(table);
});
