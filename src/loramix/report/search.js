// Filters the samples by test set, task and the words in them, and chooses the models whose answers are shown.
{
  const finder = document.getElementById("finder");
  const [words, set, task, count, chosen] = ["words", "set", "task", "count", "chosen"].map((id) =>
    document.getElementById(id),
  );
  const boxes = [...finder.querySelectorAll("input[type=checkbox]")];
  const samples = [...document.querySelectorAll("article.sample")].map((article) => ({
    article,
    parts: [...article.querySelectorAll("[data-model], .asked")].map((part) => ({
      part,
      model: part.dataset.model,
      said: part.querySelector(".said"),
      text: part.querySelector(".said").textContent.toLowerCase(),
    })),
  }));

  // A sample stays if each word occurs in one of its texts that are shown.
  const stays = (sample, wanted, shown) =>
    (!set.value || sample.article.dataset.set === set.value) &&
    (!task.value || sample.article.dataset.task === task.value) &&
    wanted.every((word) => sample.parts.some(({ model, text }) => shown(model) && text.includes(word)));

  const mark = (said, pattern, found) => {
    const walker = document.createTreeWalker(said, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      for (const match of walker.currentNode.data.matchAll(pattern)) {
        const range = new Range();
        range.setStart(walker.currentNode, match.index);
        range.setEnd(walker.currentNode, match.index + match[0].length);
        found.add(range);
      }
    }
  };

  const update = () => {
    const wanted = words.value.toLowerCase().split(/[\s/]+/).filter(Boolean);
    const on = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const shown = (model) => model === undefined || on.has(model);
    const pattern = new RegExp(wanted.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "gi");
    const found = globalThis.Highlight && new Highlight();
    let left = 0;
    for (const sample of samples) {
      const hidden = !stays(sample, wanted, shown);
      sample.article.hidden = hidden;
      if (hidden) continue;
      left += 1;
      for (const { part, model, said, text } of sample.parts) {
        part.hidden = !shown(model);
        if (part.hidden || !wanted.some((word) => text.includes(word))) continue;
        const folded = said.querySelector("details");
        if (folded) folded.open = true;
        if (found) mark(said, pattern, found);
      }
    }
    if (found) CSS.highlights.set("found", found);
    count.textContent = `${left} of ${samples.length} samples`;
    chosen.textContent = `${on.size} of ${boxes.length}`;
  };

  for (const button of finder.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = button.value === "all";
      update();
    });
  }
  finder.addEventListener("input", update);
  finder.hidden = false;
  update();
}
