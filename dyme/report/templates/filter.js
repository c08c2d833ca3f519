const picks = [...document.querySelectorAll("select")];
function show() {
  let shown = 0;
  for (const card of document.querySelectorAll("article")) {
    card.hidden = !picks.every(pick => !pick.value || card.dataset[pick.name] === pick.value);
    shown += !card.hidden;
  }
  document.getElementById("shown").textContent = shown;
}
for (const pick of picks) pick.addEventListener("change", show);
show();
