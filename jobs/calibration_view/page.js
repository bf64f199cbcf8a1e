// Sorts and filters the tensors; without it the page shows them all by name.
(() => {
  const list = document.getElementById("tensors"), sort = document.getElementById("sort");
  const search = document.getElementById("search"), shown = document.getElementById("shown");
  const tensors = [...list.querySelectorAll("article")];
  const by = {
    clipped: (one, other) => other.dataset.clipped - one.dataset.clipped,
    kept: (one, other) => one.dataset.kept - other.dataset.kept,
    largest: (one, other) => other.dataset.largest - one.dataset.largest,
    name: () => 0,
  };

  function arrange() {
    const place = (one, other) => one.dataset.place - other.dataset.place;
    tensors.sort((one, other) => by[sort.value](one, other) || place(one, other));
    list.append(...tensors);
  }

  function filter() {
    const wanted = search.value.toLowerCase();
    for (const tensor of tensors) tensor.hidden = !tensor.dataset.name.toLowerCase().includes(wanted);
    const count = tensors.filter((tensor) => !tensor.hidden).length;
    shown.value = `${count} of ${tensors.length}`;
  }

  sort.addEventListener("change", arrange);
  search.addEventListener("input", filter);
  arrange();
  filter();
})();
