"use strict";
/* Shows only rows with all words of the filter box. Without scripts, the box stays hidden. */
const box = document.querySelector(".filter");
const rows = [...document.querySelectorAll("[data-row]")];
const wordsOf = rows.map((row) => row.textContent.toLowerCase());
if (box) box.hidden = rows.length < 2;
box?.addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase().split(/\s+/);
  rows.forEach((row, i) => {
    row.hidden = !wanted.every((word) => wordsOf[i].includes(word));
  });
  const shown = rows.filter((row) => !row.hidden).length;
  box.querySelector("output").value = shown < rows.length ? `${shown} of ${rows.length}` : "";
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    document.querySelectorAll(".large[open]").forEach((image) => { image.open = false; });
  }
});
