// One trajectory: its steps, their tokens, and what the teacher made of them.

const COLOURS = {
  weight: { value: (step, i) => step.teacher?.weights[i] ?? null, neutral: 1 },
  advantage: { value: (step, i) => step.teacher?.token_advantages[i] ?? null, neutral: 0 },
  logRatio: { value: (step, i) => step.teacher?.log_ratios[i] ?? null, neutral: 0 },
  logprob: { value: (step, i) => step.old_logprobs[i], neutral: 0 },
};
const MAX_LOGPROB = 5;

function isClipped(weight, bounds) {
  if (!bounds || weight === null) return null;
  return weight <= bounds[0] ? "low" : weight >= bounds[1] ? "high" : null;
}

function versionOf(step, position) {
  return step.version_spans.find(([start, end]) => start <= position && position < end)?.[2] ?? null;
}

function tokenName(step, position) {
  const text = step.tokens[position];
  if (text !== "") return text;
  return step.special_tokens[position] ?? "·";
}

/** How far from neutral a token's colour reaches at most, over the whole trajectory. */
function colourReach(steps, colour, bounds) {
  if (colour === "logprob") return MAX_LOGPROB;
  if (colour === "weight" && bounds) return Math.max(1 - bounds[0], bounds[1] - 1);
  const { value, neutral } = COLOURS[colour];
  let reach = 0;
  for (const step of steps) {
    step.token_ids.forEach((_, position) => {
      const found = value(step, position);
      if (found !== null) reach = Math.max(reach, Math.abs(found - neutral));
    });
  }
  return reach || 1;
}

/** Colours the tokens that are on the page; nothing else is drawn again. */
function paint(root, steps, colour, reach) {
  const { value, neutral } = COLOURS[colour];
  for (const node of root.querySelectorAll(".token")) {
    const found = value(steps[node.dataset.step], Number(node.dataset.position));
    node.classList.remove("up", "down", "amount");
    if (found === null || found === neutral) continue;
    const share = Math.min(1, Math.abs(found - neutral) / reach);
    node.classList.add(colour === "logprob" ? "amount" : found > neutral ? "up" : "down");
    node.style.setProperty("--share", (0.12 + 0.78 * share).toFixed(3));
  }
}

function drawScale(colour, reach) {
  const { neutral } = COLOURS[colour];
  const bar = element("i", { class: colour === "logprob" ? "sequential" : "diverging" });
  const ends = colour === "logprob" ? ["0", `≤ −${MAX_LOGPROB}`]
    : [plain(neutral - reach), plain(neutral + reach)];
  byId("scale").replaceChildren(ends[0], bar, ends[1]);
}

function chip(text, kind = "") {
  return element("span", { class: `chip ${kind}` }, text);
}

function labelled(label, ...content) {
  return element("div", {}, element("p", { class: "label" }, label), ...content);
}

function words(text) {
  return text === null || text === "" ? element("p", { class: "nothing" }, "none") : element("pre", {}, text);
}

/** `build` fills the details the first time they are opened. */
function lazyDetails(title, build, className = "") {
  const details = element("details", { class: className }, element("summary", {}, title));
  let built = false;
  details.addEventListener("toggle", () => {
    if (!details.open || built) return;
    built = true;
    details.append(...build());
  });
  return details;
}

function promptPart(step) {
  const roles = step.messages.map((message) => message.role).join(" + ");
  const cached = step.num_cached_tokens ? `, ${step.num_cached_tokens} of them cached` : "";
  const before = step.continues === null ? "" : `goes on from step ${step.continues + 1} · `;
  return lazyDetails(
    `Prompt · ${before}${roles} · ${step.num_prompt_tokens} tokens${cached}`,
    () => step.messages.map((message) =>
      element("div", { class: "message" }, element("p", { class: "label" }, message.role), element("pre", {}, message.content))),
    "prompt",
  );
}

function tokenNode(step, stepIndex, position, bounds) {
  const text = step.tokens[position];
  const classes = ["token"];
  if (step.action_mask[position]) classes.push("action");
  if (text === "") classes.push(step.special_tokens[position] ? "special" : "continued");
  if (text.includes("\n")) classes.push("newline");
  const clipped = isClipped(step.teacher?.weights[position] ?? null, bounds);
  if (clipped) classes.push(clipped);
  const attributes = { class: classes.join(" "), "data-step": stepIndex, "data-position": position };
  return element("span", { ...attributes, tabindex: position ? "-1" : "0" }, tokenName(step, position));
}

function responsePart(step, stepIndex, bounds) {
  const box = element("div", { class: "response", "aria-label": "Response, token by token", role: "group" });
  const several = step.version_spans.length > 1;
  step.token_ids.forEach((_, position) => {
    const begins = several && step.version_spans.find(([start]) => start === position);
    if (begins) box.append(element("span", { class: "version", title: "sampled under these weights" }, `v${begins[2]}`));
    box.append(tokenNode(step, stepIndex, position, bounds));
  });
  return box;
}

function evidencePart(step, asked) {
  if (step.teacher === null) return element("p", { class: "nothing" }, "the learner reported nothing of this step");
  if (step.teacher.context !== null) return element("pre", { class: "evidence" }, step.teacher.context);
  const why = !asked ? "not asked for: λ is 0, every weight stays 1"
    : step.teacher.advantage === 0 ? "not asked for: the advantage is 0"
    : "none: every weight of this step stays 1";
  return element("p", { class: "nothing" }, why);
}

function bar(className, value, reach) {
  const node = element("i", { class: className });
  const height = (50 * Math.min(1, Math.abs(value) / reach)).toFixed(1);
  node.style.height = `${height}%`;
  node.style[value >= 0 ? "bottom" : "top"] = "50%";
  return node;
}

/** Every weighted token with its log-ratio Δ, the two parts it is made of, and its weight. */
function splitPart(step, bounds) {
  const { teacher } = step;
  const weighted = (teacher?.weights ?? []).flatMap((weight, position) => (weight === null ? [] : [position]));
  if (!weighted.length) return null;
  const whole = teacher.context_effects === null || teacher.log_ratios_without_context === null;
  const lists = whole ? [teacher.log_ratios] : [teacher.log_ratios, teacher.context_effects, teacher.log_ratios_without_context];
  const reach = Math.max(0.1, ...lists.flatMap((list) => weighted.map((i) => Math.abs(list[i] ?? 0))));
  const cells = weighted.map((i) => {
    const bars = whole ? [bar("whole", teacher.log_ratios[i] ?? 0, reach)]
      : [bar("context-effect", teacher.context_effects[i] ?? 0, reach), bar("without-context", teacher.log_ratios_without_context[i] ?? 0, reach)];
    const weight = { class: isClipped(teacher.weights[i], bounds) ? "bound" : "dim" };
    return element(
      "div", {},
      element("div", { class: "name" }, tokenName(step, i).trim() || "␣"),
      element("div", { class: "bars" }, ...bars),
      element("div", {}, `Δ ${signed(teacher.log_ratios[i])}`),
      element("div", weight, `w ${plain(teacher.weights[i])}`),
    );
  });
  const key = element("span", { class: "key" });
  if (whole) {
    key.append("Log-ratio Δ of each weighted token (the teacher was not scored without the context)");
  } else {
    key.append(
      element("span", {}, "Log-ratio Δ of each weighted token:"),
      element("span", {}, element("i", { class: "context-effect" }), "context effect"),
      element("span", {}, element("i", { class: "without-context" }), "log-ratio without context"),
      element("span", {}, `bars reach from −${plain(reach)} to +${plain(reach)}`),
    );
  }
  return labelled(key, element("div", { class: "split", role: "group", "aria-label": "Log-ratio in its parts" }, ...cells));
}

function tableRow(step, position) {
  const { teacher } = step;
  const numbers = [
    plain(step.old_logprobs[position], 3),
    versionOf(step, position) ?? "–",
    signed(teacher?.token_advantages[position], 3),
    plain(teacher?.weights[position], 3),
    signed(teacher?.log_ratios[position], 3),
    signed(teacher?.context_effects?.[position], 3),
    signed(teacher?.log_ratios_without_context?.[position], 3),
  ];
  return element(
    "tr", { class: step.action_mask[position] ? "action" : null },
    element("td", {}, String(position)),
    element("td", { class: "text" }, JSON.stringify(tokenName(step, position))),
    element("td", {}, String(step.token_ids[position])),
    ...numbers.map((number) => element("td", {}, String(number))),
  );
}

function tokenTable(step) {
  const names = ["#", "token", "id", "log π_old", "version", "advantage", "weight", "log-ratio Δ", "context effect", "Δ without context"];
  const heads = names.map((name) => element("th", { class: name === "token" ? "text" : null }, name));
  const rows = step.token_ids.map((_, position) => tableRow(step, position));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  return [element("div", { class: "tokens", tabindex: "0" }, table)];
}

function stepChips(step, asked, bounds) {
  const chips = [];
  if (!step.action_valid) chips.push(chip(step.action === null ? "no action" : "invalid action", "warn"));
  if (step.finish_reason === "length") chips.push(chip("cut off", "warn"));
  const clipped = (step.teacher?.weights ?? []).filter((weight) => isClipped(weight, bounds)).length;
  if (clipped) chips.push(chip(`${clipped} on a bound`, "warn"));
  if (asked && step.teacher?.advantage && step.teacher.context === null) chips.push(chip("no evidence", "warn"));
  if (step.teacher) chips.push(chip(`advantage ${signed(step.teacher.advantage)}`));
  chips.push(chip(`reward ${signed(step.reward)}`));
  const versions = [...new Set(step.version_spans.map((span) => `v${span[2]}`))];
  chips.push(chip(`weights ${versions.join(", ")}`), chip(`${step.token_ids.length} tokens`));
  return element("span", { class: "chips" }, ...chips);
}

function stepCard(step, index, asked, bounds) {
  const title = element("h3", {}, element("small", {}, `Step ${index + 1}`), step.action ?? "(no action)");
  return element(
    "section", { class: "step", "aria-label": `Step ${index + 1}` },
    element("header", {}, title, stepChips(step, asked, bounds)),
    promptPart(step),
    element(
      "div", { class: "columns" },
      element(
        "div", {},
        labelled("Response", responsePart(step, index, bounds)),
        labelled("The environment answered", words(step.next_observation)),
        step.feedback === null ? null : labelled("Feedback", words(step.feedback)),
        splitPart(step, bounds),
      ),
      labelled("Evidence the teacher saw", evidencePart(step, asked)),
    ),
    lazyDetails("All tokens as a table", () => tokenTable(step)),
  );
}

function trajectoryHead(record, lambda) {
  const outcome = record.success ? chip("✓ success", "success") : chip("✗ failure", "failure");
  const chips = [
    outcome, chip(`return ${plain(record.reward)}`), chip(`ended: ${record.end_reason}`),
    chip(`${record.steps.length} steps`), chip(`iteration ${record.iteration}`),
    chip(`group ${record.group_id}, rollout ${record.rollout_index}`),
  ];
  if (record.weights_seq_no !== null) chips.push(chip(`oldest weights v${record.weights_seq_no}`));
  if (lambda !== null) chips.push(chip(`λ ${plain(lambda)}`));
  chips.push(chip(`${record.seconds} s`));
  const named = record.task_id.startsWith(record.task_type);
  const task = named ? record.task_id : `${record.task_type} · ${record.task_id}`;
  return element("div", { class: "head" }, element("h2", {}, task), element("div", { class: "chips" }, ...chips));
}

function tipContent(step, position, bounds) {
  const { teacher } = step;
  const clipped = isClipped(teacher?.weights[position] ?? null, bounds);
  const rows = [
    ["position, id", `${position}, ${step.token_ids[position]}`],
    ["log-probability", plain(step.old_logprobs[position], 4)],
    ["weights", `v${versionOf(step, position) ?? "?"}`],
    ["part of the action", step.action_mask[position] ? "yes" : "no"],
  ];
  if (teacher) {
    rows.push(
      ["advantage of the step", signed(teacher.advantage, 4)],
      ["advantage of the token", signed(teacher.token_advantages[position], 4)],
      ["factor on it", teacher.advantage ? plain(teacher.token_advantages[position] / teacher.advantage, 4) : "–"],
      ["teacher weight", plain(teacher.weights[position], 4) + (clipped ? ` (${clipped} bound)` : "")],
      ["log-ratio Δ", signed(teacher.log_ratios[position], 4)],
      ["  context effect", signed(teacher.context_effects?.[position], 4)],
      ["  without context", signed(teacher.log_ratios_without_context?.[position], 4)],
    );
  }
  const list = rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  return [element("b", {}, JSON.stringify(tokenName(step, position))), element("dl", {}, ...list)];
}
