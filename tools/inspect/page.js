// Choosing what is shown: filters, iterations, groups, trajectories. One trajectory is drawn at a time, and only
// its own JSON is parsed. Where the data comes from is in file.js and live.js, which end in `start`.

let summary, all, bounds;
const state = { matching: [], current: null, record: null, colour: "weight", openPrompts: false };

function setSummary(found) {
  summary = found;
  all = found.trajectories;
  bounds = found.weight_bounds;
}

function lambdaOf(iteration) {
  return summary.lambdas[iteration] ?? null;
}

function hashOf(row) {
  return `#${encodeURIComponent(row.id)}`;
}

function problemNotice() {
  const items = summary.problems.map((text) => element("li", {}, text));
  const more = summary.num_problems - summary.problems.length;
  if (more) items.push(element("li", {}, `and ${more} more`));
  const title = summary.num_problems === 1 ? "1 line or file could not be read and is left out here"
    : `${summary.num_problems} lines or files could not be read and are left out here`;
  const details = element("details", {}, element("summary", {}, title), element("ul", {}, ...items));
  return element("div", { class: "notice", id: "problems" }, details);
}

function leftOutNotice() {
  const text = `${summary.num_left_out} trajectories were not recorded: trajectories.jsonl had reached ` +
    "logging.max_trajectories_mib.";
  return element("div", { class: "notice", id: "left-out" }, text);
}

function showRun() {
  document.title = summary.name;
  byId("run-name").textContent = summary.name;
  byId("facts").replaceChildren(...summary.facts.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  byId("notices").replaceChildren(
    ...(summary.num_problems ? [problemNotice()] : []),
    ...(summary.num_left_out ? [leftOutNotice()] : []),
  );
  drawSuccess(summary);
  drawWeights(summary);
  drawEvidence(summary, pickIteration);
  drawCurve();
  showFailures();
  fillTaskTypes();
}

/** Gives a select its options, and what was chosen of them stays so. */
function fill(id, options) {
  const select = byId(id);
  const chosen = select.value;
  select.replaceChildren(...options);
  if (options.some((option) => option.value === chosen)) select.value = chosen;
}

function fillTaskTypes() {
  const types = [...new Set(all.map((row) => row.task_type))].sort();
  fill("filter-task-type", [
    element("option", { value: "all" }, "all"),
    ...types.map((type) => element("option", { value: `=${type}` }, type || "(none)")),
  ]);
  byId("filter-clipped").disabled = !bounds;
}

function drawCurve() {
  const names = Object.keys(summary.curves);
  fill("curve-name", names.map((name) => element("option", { value: name }, name)));
  byId("curve-name").hidden = !names.length;
  drawMetric(byId("curve-name").value, summary.curves);
}

function showFailures() {
  const rows = summary.failures.map((found) => element(
    "tr", {},
    element("td", {}, found.kind), element("td", {}, found.reason), element("td", {}, found.count.toLocaleString("en")),
    element("td", {}, String(found.iteration)),
    element("td", {}, element("details", {}, element("summary", {}, found.last_text.trim().split("\n").at(-1)),
      element("pre", {}, found.last_text))),
  ));
  const head = ["what", "reason", "times", "last in iteration", "last text"].map((name) => element("th", {}, name));
  byId("failures").hidden = !rows.length;
  byId("failure-rows").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function matches(row) {
  const success = byId("filter-success").value;
  const taskType = byId("filter-task-type").value;
  return (success === "all" || row.success === (success === "success"))
    && (taskType === "all" || taskType === `=${row.task_type}`)
    && (!byId("filter-clipped").checked || row.num_clipped > 0)
    && (!byId("filter-no-evidence").checked || row.num_without_evidence > 0);
}

function applyFilters() {
  state.matching = all.filter(matches);
  byId("match-count").textContent = `${state.matching.length} of ${all.length} trajectories`;
  fillIterations();
  if (!state.matching.length) {
    state.record = null;
    byId("groups").replaceChildren();
    const text = all.length ? "No trajectory matches these filters." : "No trajectory has been recorded yet.";
    byId("trajectory").replaceChildren(element("p", { class: "empty" }, text));
  } else if (state.matching.includes(state.current)) {
    if (state.record) showGroups();
    else show(state.current);
  } else {
    const wanted = state.current?.iteration;
    show(state.matching.find((row) => row.iteration === wanted) ?? state.matching[0]);
  }
}

function fillIterations() {
  const counts = new Map();
  for (const row of state.matching) counts.set(row.iteration, (counts.get(row.iteration) ?? 0) + 1);
  byId("iteration").replaceChildren(
    ...[...counts].map(([iteration, count]) =>
      element("option", { value: iteration }, `iteration ${iteration} (${count})`)),
  );
}

function pickIteration(iteration) {
  const first = state.matching.find((row) => row.iteration === Number(iteration));
  if (first) pick(first);
}

function stepIteration(direction) {
  const select = byId("iteration");
  const option = select.options[select.selectedIndex + direction];
  if (option) pickIteration(option.value);
}

function stepTrajectory(direction) {
  const next = state.matching[state.matching.indexOf(state.current) + direction];
  if (next) pick(next);
}

/** Whether what is shown changes with the run. */
function follows() {
  return !byId("live").hidden && byId("follow").checked;
}

/** Shows what a person asked for: it stays, whatever the run brings. */
function pick(row) {
  byId("follow").checked = false;
  show(row);
}

function rolloutButton(row) {
  const button = element("button", {
    type: "button", class: row.success ? "success" : "failure", "aria-current": row === state.current ? "true" : null,
    title: `return ${row.reward}, ${row.num_steps} steps, ${row.num_clipped} weights on a bound, ` +
      `${row.num_without_evidence} steps without evidence`,
    "aria-label": `rollout ${row.rollout_index}, ${row.success ? "success" : "failure"}`,
  }, `${row.rollout_index} ${row.success ? "✓" : "✗"}`);
  button.addEventListener("click", () => pick(row));
  return button;
}

function showGroups() {
  const groups = new Map();
  for (const row of state.matching.filter((one) => one.iteration === state.current.iteration)) {
    groups.set(row.group_id, [...(groups.get(row.group_id) ?? []), row]);
  }
  byId("groups").replaceChildren(...[...groups].map(([id, rows]) => {
    const solved = `${rows.filter((row) => row.success).length} of ${rows.length} solved`;
    return element(
      "section", { class: "group", title: rows[0].task_id },
      element("h3", {}, rows[0].task_type || rows[0].task_id),
      element("p", {}, `${solved} · ${id} · ${rows[0].task_id}`),
      element("div", { class: "rollouts" }, ...rows.map(rolloutButton)),
    );
  }));
  byId("iteration").value = state.current.iteration;
  const select = byId("iteration");
  byId("previous-iteration").disabled = select.selectedIndex <= 0;
  byId("next-iteration").disabled = select.selectedIndex >= select.options.length - 1;
}

function show(row) {
  state.current = row;
  readRecord(row, (record) => {
    if (state.current === row) showRecord(row, record);
  });
}

function showRecord(row, record) {
  state.record = record;
  showGroups();
  const { steps } = state.record;
  const asked = lambdaOf(row.iteration) !== 0;
  byId("trajectory").replaceChildren(
    trajectoryHead(state.record, lambdaOf(row.iteration)),
    ...steps.map((step, index) => stepCard(step, index, asked, bounds)),
  );
  if (!steps.length) byId("trajectory").append(element("p", { class: "empty" }, "This episode has no step."));
  openPrompts(state.openPrompts);
  recolour();
  hideTip();
  if (!follows()) history.replaceState(null, "", hashOf(row));
}

function recolour() {
  if (!state.record) return;
  const { steps } = state.record;
  const reach = colourReach(steps, state.colour, bounds);
  drawScale(state.colour, reach);
  paint(byId("trajectory"), steps, state.colour, reach);
}

function setColour(colour) {
  state.colour = colour;
  document.querySelector(`input[name="colour"][value="${colour}"]`).checked = true;
  recolour();
}

function openPrompts(open) {
  state.openPrompts = open;
  const button = byId("prompts");
  button.setAttribute("aria-pressed", String(open));
  button.textContent = open ? "Close prompts" : "Open prompts";
  for (const details of document.querySelectorAll("details.prompt")) details.open = open;
}

function hideTip() {
  byId("tip").hidden = true;
}

function showTip(node) {
  const tip = byId("tip");
  const step = state.record.steps[node.dataset.step];
  tip.replaceChildren(...tipContent(step, Number(node.dataset.position), bounds));
  tip.hidden = false;
  const at = node.getBoundingClientRect();
  const below = at.bottom + tip.offsetHeight + 10 < window.innerHeight;
  tip.style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - tip.offsetWidth - 12))}px`;
  tip.style.top = `${Math.max(8, below ? at.bottom + 6 : at.top - tip.offsetHeight - 6)}px`;
}

function moveBetweenTokens(event, node) {
  const tokens = [...node.parentElement.querySelectorAll(".token")];
  const next = tokens[tokens.indexOf(node) + (event.key === "ArrowRight" ? 1 : -1)];
  if (!next) return;
  node.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const token = event.target.closest?.(".token");
  if (token && ["ArrowLeft", "ArrowRight"].includes(event.key)) return moveBetweenTokens(event, token);
  if (event.key === "Escape") return hideTip();
  if (event.target.closest?.("select")) return;
  const colours = Object.keys(COLOURS);
  const actions = {
    j: () => stepTrajectory(1),
    k: () => stepTrajectory(-1),
    "]": () => stepIteration(1),
    "[": () => stepIteration(-1),
    c: () => setColour(colours[(colours.indexOf(state.colour) + 1) % colours.length]),
    p: () => openPrompts(!state.openPrompts),
  };
  actions[event.key]?.();
}

function setScheme(scheme) {
  document.documentElement.dataset.scheme = scheme;
  byId("scheme").textContent = scheme === "dark" ? "Light" : "Dark";
}

function listen() {
  byId("filters").addEventListener("change", applyFilters);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("iteration").addEventListener("change", (event) => pickIteration(event.target.value));
  byId("previous-iteration").addEventListener("click", () => stepIteration(-1));
  byId("next-iteration").addEventListener("click", () => stepIteration(1));
  byId("curve-name").addEventListener("change", drawCurve);
  byId("colours").addEventListener("change", (event) => setColour(event.target.value));
  byId("prompts").addEventListener("click", () => openPrompts(!state.openPrompts));
  byId("scheme").addEventListener("click", () =>
    setScheme(document.documentElement.dataset.scheme === "dark" ? "light" : "dark"));
  for (const kind of ["pointerover", "focusin", "click"]) {
    byId("trajectory").addEventListener(kind, (event) => {
      const token = event.target.closest(".token");
      if (token) showTip(token);
      else if (kind !== "focusin") hideTip();
    });
  }
  byId("trajectory").addEventListener("pointerleave", hideTip);
  window.addEventListener("scroll", hideTip, { passive: true });
  document.addEventListener("keydown", onKey);
}

function start(found) {
  setSummary(found);
  setScheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  showRun();
  listen();
  state.current = all.find((row) => hashOf(row) === location.hash) ?? null;
  applyFilters();
}
