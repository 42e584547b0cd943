// The table of all optimizers: choose rows by a word, by the floats in the state, and by what an update needs.
const NEEDS = ["params", "value", "grad_fn", "hessian_diag"];

function floatsPerEntry(state) {
  // "2 + row": terms of rows and columns are small; those of their squares are about as large as the matrix.
  let total = 0;
  for (const term of state.split(";")[0].split("+")) {
    const [count] = term.match(/^\s*[\d.]+/) ?? ["1"];
    if (/^\s*[\d.]+\s*$/.test(term) || term.includes("²")) total += Number(count);
  }
  return total;
}

function factsOf(row) {
  // The first line of the cell is the state; further lines are inputs, as code, and properties.
  const [state, ...lines] = row.cells[2].innerHTML.split(/<br\s*\/?>/);
  const found = document.createElement("div");
  found.innerHTML = lines.join(" ");
  const needs = Array.from(found.querySelectorAll("code"), (code) => code.textContent);
  return { text: row.textContent.toLowerCase(), floats: floatsPerEntry(state.replace(/<[^>]*>/g, "")), needs };
}

function control(form, title, element) {
  const label = document.createElement("label");
  label.append(`${title} `, element);
  form.append(label);
  return element;
}

function choices(pairs) {
  const select = document.createElement("select");
  for (const [value, title] of pairs) select.append(new Option(title, value));
  return select;
}

function makeFilter(table) {
  const form = document.createElement("form");
  form.className = "filter";
  const word = control(form, "Name or word", document.createElement("input"));
  word.type = "search";
  const floats = ["0", "1", "2", "3"].map((count) => [count, `at most ${count} per entry`]);
  const state = control(form, "State", choices([["", "any"], ...floats]));
  const needs = control(
    form, "Needs", choices([["", "any"], ["nothing", "gradients alone"], ...NEEDS.map((need) => [need, need])]));
  const count = document.createElement("output");
  form.append(count);
  table.closest(".table-wrapper").before(form);

  const rows = Array.from(table.tBodies[0].rows);
  const isFamily = (row) => row.cells[2].textContent.trim() === "";
  const facts = new Map(rows.filter((row) => !isFamily(row)).map((row) => [row, factsOf(row)]));

  function matches({ text, floats, needs: own }) {
    if (!text.includes(word.value.trim().toLowerCase())) return false;
    if (state.value !== "" && !(floats <= Number(state.value))) return false;
    if (needs.value === "nothing") return own.length === 0;
    return needs.value === "" || own.includes(needs.value);
  }

  function show() {
    let family = null, shown = 0;
    for (const row of rows) {
      if (isFamily(row)) { family = row; row.hidden = true; continue; }
      row.hidden = !matches(facts.get(row));
      if (row.hidden) continue;
      shown += 1;
      if (family) family.hidden = false;
    }
    count.textContent = `${shown} of ${facts.size}`;
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}

document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("#algorithms #optimizers table");
  if (table) makeFilter(table);
});
