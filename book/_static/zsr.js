/* Tables of numbers: a search field above, and columns that sort on a click; without this script they are plain tables. */

const value = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
};

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}

function searchable(box) {
  const rows = [...box.querySelectorAll("tbody tr")];
  const label = document.createElement("label");
  const field = document.createElement("input");
  const count = document.createElement("output");
  field.type = "search";
  const search = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      found += !row.hidden;
    }
    count.textContent = `${found} of ${rows.length}`;
  };
  field.addEventListener("input", search);
  label.className = "zsr-search";
  label.append("Search ", field, " ", count);
  box.before(label);
  search();
}

for (const box of document.querySelectorAll(".zsr-numbers")) {
  sortable(box.querySelector("table"));
  searchable(box);
}

// the theme leaves the name of the book outside of all landmarks
const side = document.getElementById("pst-primary-sidebar");
side?.setAttribute("role", "complementary");
side?.setAttribute("aria-label", "Book");

// docutils gives references a role that ARIA has dropped, inside a list of other things
for (const part of document.querySelectorAll(".citation-list, .citation")) part.removeAttribute("role");
