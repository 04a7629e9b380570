"use strict";
// Everything that is shown goes through textContent or attributes with numbers: recorded text is never taken for markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const BLANK = document.getElementById("pane").cloneNode(true);
// Every function below speaks of one side of the page, "here"; its elements' ids end with its suffix.
const panes = [{ suffix: "", root: document.getElementById("pane"), state: { run: 0, rollout: 0, episode: 0, t: 0, timer: null } }];
let here = panes[0], focused = panes[0], state = here.state;
const $ = (id) => document.getElementById(id + here.suffix);
const page = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const DIRECTIONS = ["right", "down", "left", "up"];
const OBJECTS = ["unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent"];
const COLOURS = ["red", "green", "blue", "purple", "yellow", "grey"];
const INK = ["#ff3b30", "#2fe04f", "#4d79ff", "#b070ff", "#ffe14d", "#a6a6a6"];  // minigrid's six, lifted where black would swallow them
const LETTERS = ["R", "GN", "B", "P", "Y", "GY"];
const DOORS = ["open", "closed", "locked"];
const AGENTS = { own: "An agent of its own acts", student: "A student acts alone", llm_policy: "The LLM acts through action heads, without words", drrn: "Q-learning over texts (DRRN) acts",
  cloning: "The BabyAI bot acts, and the LLM learns to say what it does", random: "Actions are uniformly random", bot: "The BabyAI bot acts" };

// --- small tools -------------------------------------------------------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value; else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const text = (place) => DATA.texts[place];
const quoted = (words) => words === "" ? "(nothing)" : `“${words}”`;
const minus = (words) => words.replace("-", "−");
const known = (value) => value !== null && value !== undefined;

function number(value, digits = 3) {
  if (!known(value)) return "–";
  const small = value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits;
  return minus(value.toFixed(small ? digits + 3 : digits));
}

const signed = (value, digits = 3) => known(value) && value > 0 ? `+${number(value, digits)}` : number(value, digits);
const percent = (value) => known(value) ? `${(100 * value).toFixed(1)} %` : "–";
const signOf = (f) => f > 0 ? "plus" : f < 0 ? "minus" : "none";
const signWord = (f) => !known(f) ? "no feedback" : Math.abs(f) === 1 ? (f > 0 ? "+1" : "−1") : f === 0 ? "0" : signed(f, 2);

function within(pane, action) {
  const before = here;
  [here, state] = [pane, pane.state];
  try { return action(); } finally { [here, state] = [before, before.state]; }
}

function softmax(scores) {
  const top = Math.max(...scores.map((score) => known(score) ? score : -Infinity));
  const weights = scores.map((score) => known(score) ? Math.exp(score - top) : 0);
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / total);
}

const run = () => DATA.runs[state.run];
const rollout = () => run().rollouts[state.rollout];
const episode = () => rollout().episodes[state.episode];
const step = () => episode().steps[state.t];
const isPolicy = () => run().facts.agent === "llm_policy";
const isOwn = () => run().facts.agent === "own"; // what it draws from need not be the LLM's distribution
const isFree = () => run().facts.vocabulary === "free";
const actionTexts = () => step().offered?.map(text) ?? run().facts.actions; // "offered": each state lists its own
const actionName = (action) => actionTexts()[action] ?? "done";

/** Whether the episode that ended here was a success, as the run counts it; null where nobody knows. Older traces tell the reward alone. */
const won = (one) => "won" in one ? one.won : one.reward > 0;

/** Probability of what was said, and its summed log-probability; of free text there is only the latter. */
function likelihood(said, scores) {
  if (!known(scores)) return null;
  const sum = scores[said.chosen];
  if (isFree()) return { sum, log: sum, p: Math.exp(sum) };
  const p = softmax(scores)[said.chosen];
  return { sum, log: Math.log(p), p };
}

// --- the frame -----------------------------------------------------------------------------------------------------------------

const code = (hex, cell, channel) => parseInt(hex.substr(6 * cell + 2 * channel, 2), 16);

function cellAt(hex, cell) {
  return { kind: OBJECTS[code(hex, cell, 0)] ?? "unseen", colour: code(hex, cell, 1), state: code(hex, cell, 2) };
}

const describeCell = (cell) => `${cell.kind === "door" ? `${DOORS[cell.state] ?? ""} ` : ""}${COLOURS[cell.colour] ?? ""} ${cell.kind}`;

function drawCell(cell, x, y, lettered) {
  const group = shape("g", { transform: `translate(${x} ${y})` });
  const ink = INK[cell.colour] ?? "#fff";
  const letter = lettered ? LETTERS[cell.colour] ?? "" : "";
  const label = (dx, dy, fill) => {
    const made = shape("text", { x: dx, y: dy, "font-size": letter.length > 1 ? 0.22 : 0.28, "text-anchor": "middle", "font-weight": 700, fill, "font-family": "sans-serif" });
    made.textContent = letter;
    return made;
  };
  switch (cell.kind) {
    case "wall":
      group.append(shape("rect", { width: 1.01, height: 1.01, fill: "#646464" }));
      break;
    case "floor":
      group.append(shape("rect", { x: 0.03, y: 0.03, width: 0.94, height: 0.94, fill: ink, opacity: 0.45 }));
      break;
    case "goal":
      group.append(shape("rect", { x: 0.03, y: 0.03, width: 0.94, height: 0.94, fill: ink }));
      break;
    case "lava":
      group.append(shape("rect", { x: 0.03, y: 0.03, width: 0.94, height: 0.94, fill: "#ff8000" }));
      for (const line of [0.3, 0.5, 0.7]) {
        group.append(shape("path", { d: `M.1 ${line} q.1 -.12 .2 0 t.2 0 t.2 0 t.2 0`, fill: "none", stroke: "#000", "stroke-width": 0.04 }));
      }
      break;
    case "ball":
      group.append(shape("circle", { cx: 0.5, cy: 0.5, r: 0.31, fill: ink }), label(0.5, 0.61, "#000"));
      break;
    case "box":
      group.append(shape("rect", { x: 0.16, y: 0.16, width: 0.68, height: 0.68, fill: "none", stroke: ink, "stroke-width": 0.08 }),
        shape("path", { d: "M.16 .36 H.84", stroke: ink, "stroke-width": 0.08 }), label(0.5, 0.72, ink));
      break;
    case "key":
      group.append(shape("circle", { cx: 0.56, cy: 0.28, r: 0.14, fill: "none", stroke: ink, "stroke-width": 0.09 }),
        shape("path", { d: "M.56 .42 V.88 M.56 .66 H.4 M.56 .82 H.4", fill: "none", stroke: ink, "stroke-width": 0.1 }), label(0.8, 0.86, ink));
      break;
    case "door":
      if (cell.state === 0) {
        group.append(shape("rect", { x: 0.04, y: 0.04, width: 0.92, height: 0.92, fill: "#000" }),
          shape("rect", { x: 0.84, y: 0.03, width: 0.13, height: 0.94, fill: "none", stroke: ink, "stroke-width": 0.05 }), label(0.45, 0.6, ink));
      } else {
        group.append(shape("rect", { x: 0.05, y: 0.05, width: 0.9, height: 0.9, fill: cell.state === 2 ? ink : "#000", "fill-opacity": 0.45, stroke: ink, "stroke-width": 0.07 }),
          shape("rect", { x: 0.16, y: 0.16, width: 0.68, height: 0.68, fill: "none", stroke: ink, "stroke-width": 0.05 }), label(0.42, 0.6, ink));
        group.append(cell.state === 2 ? shape("path", { d: "M.68 .42 V.6", stroke: ink, "stroke-width": 0.1 })
          : shape("circle", { cx: 0.7, cy: 0.5, r: 0.06, fill: ink }));
      }
      break;
  }
  if (!["wall", "empty", "unseen"].includes(cell.kind)) {
    const title = shape("title");
    title.textContent = describeCell(cell);
    group.prepend(title);
  }
  return group;
}

function drawAgent(x, y, direction, ghost) {
  const look = ghost ? { fill: "none", stroke: "#ff3b30", "stroke-width": 0.05, "stroke-dasharray": "0.1 0.07", opacity: 0.9 }
    : { fill: "#ff3b30", stroke: "#fff", "stroke-width": 0.04 };
  return shape("path", { d: "M.88 .5 L.13 .82 L.13 .18 Z", transform: `translate(${x} ${y}) rotate(${90 * direction} .5 .5)`, "stroke-linejoin": "round", ...look });
}

function gridLines(svg, width, height) {
  let d = "";
  for (let x = 0; x <= width; x += 1) d += `M${x} 0V${height}`;
  for (let y = 0; y <= height; y += 1) d += `M0 ${y}H${width}`;
  svg.append(shape("path", { d, stroke: "#555", "stroke-width": 0.025, fill: "none" }));
}

/** Where the cells of the view lie in the grid: column 3, row 6 of the view is the agent, who looks towards row 0. */
function viewToGrid(pose, column, row) {
  const [fx, fy] = [[1, 0], [0, 1], [-1, 0], [0, -1]][pose[2]];
  const ahead = 6 - row, right = column - 3;
  return [pose[0] + fx * ahead - fy * right, pose[1] + fy * ahead + fx * right];
}

function drawFrame() {
  const current = episode(), now = step(), view = DATA.views[now.view];
  const pose = current.poses && current.poses[state.t];
  const objects = [];
  let svg;
  if (!view) {
    $("frame").replaceChildren();
    $("caption").textContent = "This environment shows a text alone.";
    return;
  }
  if (pose) {
    const [width, grid] = DATA.grids[pose[3]];
    const height = grid.length / 6 / width;
    svg = shape("svg", { viewBox: `0 0 ${width} ${height}` });
    gridLines(svg, width, height);
    for (let x = 0; x < width; x += 1) {
      for (let y = 0; y < height; y += 1) {
        const cell = cellAt(grid, x * height + y);
        if (cell.kind !== "empty") svg.append(drawCell(cell, x, y, width <= 14));
        if (!["empty", "wall", "unseen"].includes(cell.kind)) objects.push(`${describeCell(cell)} at ${x}, ${y}`);
      }
    }
    const field = [];
    for (let column = 0; column < 7; column += 1) {
      for (let row = 0; row < 7; row += 1) {
        const [x, y] = viewToGrid(pose, column, row);
        if (x < 0 || y < 0 || x >= width || y >= height) continue;
        field.push([x, y]);
        if (code(view, 7 * column + row, 0) > 0) svg.append(shape("rect", { x, y, width: 1, height: 1, fill: "#fff", opacity: 0.2 }));
      }
    }
    const xs = field.map(([x]) => x), ys = field.map(([, y]) => y);
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    svg.append(shape("rect", { x: left + 0.03, y: top + 0.03, width: Math.max(...xs) - left + 0.94, height: Math.max(...ys) - top + 0.94, fill: "none",
      stroke: "#fff", "stroke-width": 0.04, "stroke-dasharray": "0.16 0.12", opacity: 0.75 }));
    const next = current.poses[state.t + 1];
    if (next && next.slice(0, 3).join() !== pose.slice(0, 3).join()) svg.append(drawAgent(next[0], next[1], next[2], true));
    svg.append(drawAgent(pose[0], pose[1], pose[2], false));
    svg.setAttribute("aria-label", `Grid of ${width} by ${height}. Agent at ${pose[0]}, ${pose[1]}, facing ${DIRECTIONS[pose[2]]}. ${objects.join("; ") || "No objects"}.`);
  } else {
    svg = shape("svg", { viewBox: "0 0 7 7" });
    gridLines(svg, 7, 7);
    for (let column = 0; column < 7; column += 1) {
      for (let row = 0; row < 7; row += 1) {
        const cell = cellAt(view, 7 * column + row);
        if (cell.kind === "unseen") svg.append(shape("rect", { x: column, y: row, width: 1.01, height: 1.01, fill: "#1c2733" }));
        else if (!(column === 3 && row === 6)) svg.append(drawCell(cell, column, row, true));
      }
    }
    svg.append(drawAgent(3, 6, 3, false));
    svg.setAttribute("aria-label", "The agent's own view of 7 by 7 cells; the agent is at the bottom, looking up.");
  }
  svg.setAttribute("role", "img");
  $("frame").replaceChildren(svg);
  const carried = cellAt(view, 7 * 3 + 6);
  const hand = ["empty", "unseen"].includes(carried.kind) ? "" : ` It carries a ${describeCell(carried)}.`;
  const kind = pose ? "Lit: what it sees; dashed: its field of view, and where the action leads." : "Its own view; the whole grid could not be rebuilt.";
  $("caption").textContent = `The agent faces ${DIRECTIONS[now.direction]}.${hand} ${kind}`;
}

// --- the strip of signs ----------------------------------------------------------------------------------------------------------

function drawStrip() {
  const steps = episode().steps, n = steps.length, pane = here;
  const svg = shape("svg", { viewBox: `0 0 ${n} 34`, preserveAspectRatio: "none", role: "img" });
  const sent = steps.some((one) => known(one.signal));
  const height = (one) => sent ? one.signal : one.error;
  const largest = Math.max(sent ? 1 : 1e-9, ...steps.map((one) => Math.abs(height(one) ?? 0)));
  const count = { plus: 0, minus: 0, none: 0 };
  svg.append(shape("rect", { x: state.t, y: 0, width: 1, height: 34, fill: "var(--ink)", opacity: 0.22, id: `cursor${here.suffix}` }));
  svg.append(shape("path", { d: `M0 17H${n}`, stroke: "var(--mix)", "stroke-width": 1, "vector-effect": "non-scaling-stroke" }));
  steps.forEach((one, place) => {
    const value = height(one), sign = signOf(value);
    if (known(value)) {
      count[sign] += 1;
      const tall = value === 0 ? 2 : Math.max(1.5, 14 * Math.abs(value) / largest);
      const colour = sent ? { plus: "var(--up)", minus: "var(--down)", none: "var(--zero)" }[sign] : "var(--zero)";
      svg.append(shape("rect", { x: place + 0.17, width: 0.66, height: tall, fill: colour, y: value > 0 ? 17 - tall : value < 0 ? 17 : 16 }));
    }
    if (one.reward > 0) svg.append(shape("rect", { x: place + 0.05, y: 30, width: 0.9, height: 4, fill: "var(--good)" }));
    else if (one.end) svg.append(shape("rect", { x: place + 0.05, y: 30, width: 0.9, height: 4, fill: "var(--zero)" }));
  });
  const counted = `${count.plus} positive, ${count.minus} negative, ${count.none} zero`;
  svg.setAttribute("aria-label", `${n} steps; ${sent ? "signs f" : "no signs; TD errors"}: ${counted}. A mark below stands for a reward, or the end.`);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    within(pane, () => go(Math.floor(n * (event.clientX - box.left) / box.width)));
  });
  const name = sent ? "f, step by step" : "no f in this arm; A′, step by step";
  $("strip").replaceChildren(svg, element("p", { class: "name" }, `${name}; green below: reward, grey: an end without one`));
}

// --- parts of the cards ------------------------------------------------------------------------------------------------------------

/** Horizontal bars. Each row: name, chosen, number, and parts of the track as [class, kind, share]. */
function bars(rows, label) {
  const long = rows.some((row) => row.name.length > 18);
  return element("div", { class: long ? "bars long" : "bars", role: "list", "aria-label": label }, ...rows.map((row) => {
    const track = element("div", { class: "track", "aria-hidden": "true" });
    for (const [kind, share] of row.parts) {
      if (!known(share)) continue;
      const part = element("span", { class: kind });
      const place = `${Math.min(100, Math.max(0, 100 * share))}%`;
      if (kind.startsWith("tick")) part.style.left = place; else part.style.width = place;
      track.append(part);
    }
    return element("div", { class: row.chosen ? "bar chosen" : "bar", role: "listitem", "aria-label": row.spoken },
      element("span", {}, row.name), track, element("span", { class: "number" }, row.number));
  }));
}

function legend(...entries) {
  return element("p", { class: "legend" }, ...entries.filter(Boolean).map(([kind, words]) => {
    const sample = element("i", { "aria-hidden": "true" }), part = element("span", { class: kind });
    if (kind.startsWith("tick")) part.style.left = "50%"; else part.style.width = "100%";
    sample.append(part);
    return element("span", {}, sample, words);
  }));
}

function facts(rows) {
  return element("table", {}, ...rows.filter(Boolean).map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))));
}

const note = (words) => element("p", { class: "note" }, words);
const fill = (id, ...parts) => $(id).querySelector(".body").replaceChildren(...parts.filter((part) => part));

// --- the four cards -------------------------------------------------------------------------------------------------------------------

function drawTeacher(now) {
  const { llm, guidance } = now, names = now.offered ?? episode().candidates;
  if (!llm && !guidance) {
    fill("teacher", element("p", { class: "big" }, "Nobody says anything"), note(`${AGENTS[run().facts.agent] ?? ""}.`));
    return;
  }
  const said = text((llm ?? guidance).text);
  const head = element("p", { class: "big" }, quoted(said));
  if (llm && isFree()) {
    fill("teacher", head, note(`Text that the LLM wrote. ${hinted(guidance)} There is no list of candidates, so no distribution to show.`));
    return;
  }
  const probs = llm ? known(llm.before) ? softmax(llm.before) : null : guidance.teacher;
  if (!probs || !names) { fill("teacher", head); return; }
  const after = llm && known(llm.after) ? softmax(llm.after) : null;
  const later = llm && known(llm.later) ? softmax(llm.later) : null;
  const chosen = llm ? llm.chosen : names.findIndex((place) => text(place) === said);
  const rows = names.map((place, i) => ({
    name: text(place), chosen: i === chosen, number: percent(probs[i]),
    spoken: `${text(place)}: ${percent(probs[i])}${after ? `, after the update ${percent(after[i])}` : ""}${i === chosen ? ", said" : ""}`,
    parts: [[i === chosen ? "fill chosen" : "fill", probs[i]], ["tick", after && after[i]], ["tick hollow", later && later[i]]],
  }));
  const who = isPolicy() ? "The LLM is the policy: guidance and action are one." : isOwn() ? "The distribution from which the agent drew x."
    : llm ? "M(x | s), from which x was drawn." : run().facts.teacher === "oracle" ? "The BabyAI bot's action." : "Uniformly random.";
  fill("teacher", head, bars(rows, "Distribution over candidates"),
    legend(["fill", "when it was drawn"], after && ["tick", "after the feedback's update"], later && ["tick hollow", laterName()]), note(`${who} ${hinted(guidance)}`));
}

const laterName = () => isPolicy() ? "after PPO" : "after the method's update";

const hinted = (guidance) => guidance ? known(guidance.hint) ? `The student hears the hint “${actionName(guidance.hint)}”.` : "It hints at no particular action." : "";

function drawStudent(now) {
  const head = element("p", { class: "big" }, actionName(now.action));
  if (!now.policy) {
    const probs = now.llm && known(now.llm.before) && run().facts.agent !== "own" ? softmax(now.llm.before) : null;
    fill("student", head, note(probs ? `The LLM acts itself: P(a | s) = M(x | s), ${percent(probs[now.action])} for this action. There is no student, so no policy without guidance.`
      : `P(a | s) = ${percent(now.probability)} for this action.`));
    return;
  }
  const { heard, silent, mixed } = now.policy;
  const rows = actionTexts().map((name, action) => ({
    name, chosen: action === now.action, number: percent(heard[action]),
    spoken: `${name}: ${percent(heard[action])}${known(mixed) ? `, averaged over guidance ${percent(mixed[action])}` : ""}${known(silent) ? `, without guidance ${percent(silent[action])}` : ""}${action === now.action ? ", taken" : ""}`,
    parts: [[action === now.action ? "fill chosen" : "fill", heard[action]], ["thin", mixed && mixed[action]], ["tick", silent && silent[action]]],
  }));
  const taught = known(silent);
  fill("student", head, bars(rows, "The policy"),
    legend(["fill", taught ? "P(a | xₜ, sₜ), this guidance heard" : "P(a | sₜ)"], known(mixed) && ["thin", "averaged over what the teacher says: Σ M(x | s) P(a | x, s)"],
      taught && ["tick", "no guidance heard"]),
    taught ? note(`“No guidance” is the student's own input for silence (code zero, no hint), which it never meets in training in this arm${known(mixed) ? "; the average is what it does on the whole" : ""}.`) : null);
}

function explain(now) {
  const { signal, sign, channel } = run().facts, f = now.signal;
  if (signal === "none") return "There is no feedback edge in this arm.";
  if (!known(f)) return "No feedback for this step: the critic is still warming up.";
  const compare = now.previous > now.error ? `A = ${number(now.previous)} is above A′ = ${number(now.error)}: worse than the step before.`
    : `A = ${number(now.previous)} is not above A′ = ${number(now.error)}: no worse than the step before.`;
  const rule = {
    previous: !known(now.previous) ? "The episode's first step: there is nothing to compare A′ with." : f === 0 ? "A tie, or nothing remembered to compare A′ with." : compare,
    td: "f is the sign of A′.",
    gae: `f is the sign of the ${isPolicy() ? "policy" : "student"}'s GAE advantage.`,
    state: f === 0 ? "The first visit to this prompt: there is nothing to compare A′ with." : `A′ is ${f > 0 ? "above" : "below"} the mean of A′ at this prompt so far (which is not recorded).`,
    weighted: "f is the GAE advantage, normalised over the rollout.",
    constant: "f is always 1, whatever came of it.",
  }[signal] ?? `f follows the rule ${signal}.`;
  const control = {
    random: "A control: a fair coin decides the sign of f.", shuffled: "A control: f of other steps, permuted.",
    positive: "A control: the sign of f is always plus.", inverted: "A control: f is turned around.",
  }[sign === "own" ? signal : sign];  // before there were signs, a control was a signal of its own
  return `${control ?? rule} ${channel === "prompt" ? "It is said in the next prompt." : channel === "both" ? "It is sent to the LLM's servers and said in the next prompt." : ""}`;
}

function drawOutcome(now) {
  const f = now.signal, word = known(f) ? signWord(f) : "–";
  const badge = element("span", { class: `sign ${known(f) ? signOf(f) : ""}${word.length > 2 ? " wide" : ""}`, role: "img", "aria-label": `f = ${signWord(f)}` }, word);
  const ends = { terminated: won(now) === false ? "the task ended without success" : won(now) ? "the task is solved" : "the task ended",
    truncated: won(now) ? "the step limit, with success" : "the step limit" };
  const by = run().facts.signal;
  fill("outcome", element("div", { class: "verdict" }, badge, element("p", {}, explain(now))), facts([
    ["reward", `${number(now.reward)}${now.end ? `, end: ${ends[now.end] ?? now.end}` : ""}`],
    ["value V(sₜ)", number(now.value)],
    ["A, error of the step before", number(now.previous)],
    ["A′, this step's TD error", signed(now.error)],
    [by === "gae" || by === "weighted" ? "GAE advantage: the signal" : "GAE advantage", signed(now.advantage)],
  ]));
}

function drawLearning(now) {
  const { llm } = now;
  if (!llm) { fill("learning", element("p", { class: "big" }, "No text of an LLM"), note("Nothing was said, so there is no probability of it to change.")); return; }
  if (llm.text !== undefined && text(llm.text) === "") { fill("learning", note("The LLM said nothing: the empty text has no probability to change.")); return; }
  const stages = [["before", "before", likelihood(llm, llm.before)], ["after feedback", "fill chosen", likelihood(llm, llm.after)],
    [laterName(), "later", likelihood(llm, llm.later)]].filter(([, , found]) => found);
  const still = run().facts.signal === "none" || run().facts.channel === "prompt" ? "The LLM's weights do not change here." : "No update contained this step.";
  if (!stages.length) { fill("learning", note(`${still} Text that the LLM wrote is scored with an update alone.`)); return; }
  const whose = isOwn() ? " p(xₜ) when x was drawn is of the distribution from which the agent drew it, which need not be the LLM's." : "";
  const first = stages[0][2], end = stages[stages.length - 1][2], fed = likelihood(llm, llm.after);
  if (stages.length === 1) {
    fill("learning", element("p", { class: "big" }, `p(xₜ) = ${percent(first.p)}`), facts([["log p(xₜ)", number(first.log)], isFree() ? null : ["summed over its tokens", number(first.sum)]]),
      note(still + whose));
    return;
  }
  const change = (fed ?? end).log - first.log;
  const rows = stages.map(([name, kind, found]) => ({ name, number: percent(found.p), spoken: `${name}: ${percent(found.p)}`,
    parts: [[kind === "before" || kind === "later" ? `fill ${kind}` : kind, found.p]] }));
  const update = known(llm.update) ? rollout().updates[llm.update] : null;
  const size = update && known(update.stats.grad_norm) ? `, gradient norm ${number(update.stats.grad_norm, 2)} before clipping` : "";
  fill("learning", element("p", { class: "big" }, `Δ log p(xₜ) = `, element("span", { class: signOf(change) }, signed(change, 4)), fed ? "" : isPolicy() ? " through PPO" : " through the method"),
    bars(rows, "Probability of what was said"),
    facts([
      ["log p(xₜ)", stages.map(([, , found]) => number(found.log, 4)).join(" → ")],
      isFree() ? null : ["summed over its tokens, nats", stages.map(([, , found]) => number(found.sum, 3)).join(" → ")],
    ]),
    note((update ? `Update ${llm.update + 1} of ${rollout().updates.length} in this rollout, with ${update.samples} sample${update.samples === 1 ? "" : "s"}${size}. Other samples move p too: it need not follow its own sign.`
      : `There is no feedback edge; ${isPolicy() ? "PPO's" : "the method's"} update moves p.`) + whose));
}

/** What method and agent noted at this step, and of the rollout as a whole. */
function drawNotes(now) {
  const own = now.notes ?? [], whole = rollout().notes;
  $("notes").hidden = own.length + whole.length === 0;
  const told = (one) => [["asked", one.asked], ["answered", one.answered], ["changed", one.changed]].filter(([, place]) => text(place))
    .map(([name, place]) => element("p", { class: "told" }, element("small", {}, name), text(place)));
  const open = $("notes").querySelector("details")?.open ?? own.length === 0;
  fill("notes", ...own.flatMap(told), own.length || !whole.length ? null : note("Nothing at this step."), whole.length
    ? element("details", open ? { open: "" } : {}, element("summary", {}, `Of the rollout as a whole: ${whole.length}`), ...whole.flatMap(told)) : null);
}

function drawChain(now) {
  const said = now.llm ?? now.guidance;
  const before = now.llm ? likelihood(now.llm, now.llm.before) : null;
  const after = now.llm ? likelihood(now.llm, now.llm.after ?? now.llm.later) : null;
  const parts = [
    said && !isPolicy() ? ["teacher says", quoted(text(said.text)), ""] : null,
    [isPolicy() ? "LLM does" : run().facts.agent === "student" ? "student does" : "done is", actionName(now.action), ""],
    ["reward", number(now.reward, 2), ""],
    { previous: ["A → A′", `${number(now.previous)} → ${number(now.error)}`, ""], gae: ["GAE advantage", signed(now.advantage), ""],
      weighted: ["GAE advantage", signed(now.advantage), ""], none: null }[run().facts.signal] ?? (run().facts.signal === "none" ? null : ["A′", signed(now.error), ""]),
    run().facts.signal === "none" ? null : ["f", signWord(now.signal), known(now.signal) ? signOf(now.signal) : "none"],
    before && after ? [`p(x) ${now.llm.after ? "after feedback" : laterName()}`, `${percent(before.p)} → ${percent(after.p)}`, ""] : null,
  ].filter(Boolean);
  $("chain").replaceChildren(...parts.map(([name, value, kind]) => element("li", {}, element("span", { class: kind }, element("small", {}, name), value))));
}

function drawObservation(now) {
  const sentences = now.sentences.map((place) => element("li", {}, text(place)));
  const open = $("observation").querySelector("details")?.open ?? false;
  const details = element("details", open ? { open: "" } : {}, element("summary", {}, now.llm ? "The prompt, as the LLM read it" : "The prompt of this state"), element("pre", {}, text(now.prompt)));
  $("observation").replaceChildren(element("span", { class: "name" }, "Observation"), sentences.length ? element("ul", {}, ...sentences) : element("p", {}, "(nothing in sight)"), details);
}

// --- putting it on the page --------------------------------------------------------------------------------------------------------

function show(t) {
  const steps = episode().steps;
  state.t = Math.min(steps.length - 1, Math.max(0, t));
  const now = step(), began = episode().before;
  drawFrame();
  drawChain(now);
  drawTeacher(now);
  drawStudent(now);
  drawOutcome(now);
  drawLearning(now);
  drawNotes(now);
  drawObservation(now);
  $("slider").value = state.t;
  $("cursor").setAttribute("x", state.t);
  // Not "disabled": a button that is switched off under the finger loses the focus, and the keys with it.
  for (const id of ["first", "back"]) $(id).setAttribute("aria-disabled", state.t === 0);
  for (const id of ["forward", "last"]) $(id).setAttribute("aria-disabled", state.t === steps.length - 1);
  $("where").textContent = `Step ${state.t + 1} of ${steps.length}${began ? `, t = ${began + state.t} of its episode` : ""}`;
  $("slider").setAttribute("aria-valuetext", `step ${state.t + 1} of ${steps.length}: ${actionName(now.action)}, f ${signWord(now.signal)}`);
  const chosen = (id) => $(id).selectedOptions[0]?.textContent ?? "";
  $("printed").textContent = `Arm ${chosen("arm")}, seed ${chosen("seed")}; rollout ${chosen("rollout")}; episode ${chosen("episode")}; ${$("where").textContent}`;
  document.body.dataset.step = panes[0].state.t;
  const address = new URLSearchParams(panes.flatMap((pane, place) => CHOSEN.map((key) => [`${key}${place ? place + 1 : ""}`, pane.state[key]])));
  for (const pane of panes) within(pane, () => { $("link").href = `#${address}`; });
}

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name, place) => element("option", { value: place, ...(place === chosen ? { selected: "" } : {}) }, name)));
  select.value = chosen;
  select.disabled = names.length < 2;
}

const CHOSEN = ["run", "rollout", "episode", "t"];
const arms = [...new Set(DATA.runs.map((one) => one.label))];
const seedsOf = (label) => DATA.runs.flatMap((one, place) => one.label === label ? [place] : []);

function episodeName(one, place) {
  const last = one.steps[one.steps.length - 1];
  const end = !last.end ? "goes on" : won(last) ? "success" : last.end === "truncated" ? "out of time" : won(last) === false ? "failed" : "over";
  return `${known(one.number) ? one.number : `no. ${place + 1}`}: ${one.steps.length} steps${one.before ? `, from t = ${one.before}` : ""}, ${end}`;
}

/** Everything anew, after another run, rollout or episode was chosen. */
function choose(chosen, t) {
  pause();
  const within = (value, list) => Math.min(list.length - 1, Math.max(0, Number.isInteger(value) ? value : 0));
  state.run = within(chosen.run, DATA.runs);
  state.rollout = within(chosen.rollout, run().rollouts);
  state.episode = within(chosen.episode, rollout().episodes);
  options($("arm"), arms, arms.indexOf(run().label));
  const places = seedsOf(run().label);
  options($("seed"), places.map((place) => DATA.runs[place].seed), places.indexOf(state.run));
  options($("rollout"), run().rollouts.map((one) => one.env_steps === 0 ? "0 steps: untrained" : `${one.env_steps} steps trained`), state.rollout);
  options($("episode"), rollout().episodes.map(episodeName), state.episode);
  const own = run().facts;
  $("facts").textContent = [rollout().level, own.agent === "llm_policy" ? "the LLM is the policy" : { llm: "an LLM teaches a student", none: "a student alone", random: "random guidance", oracle: "the BabyAI bot teaches a student" }[own.teacher] ?? AGENTS[own.agent] ?? "",
    own.signal === "none" ? "no feedback" : `signal ${own.signal}${own.sign === "own" ? "" : ` with its sign ${own.sign}`}, loss ${own.loss}, channel ${own.channel}, ${own.every === "rollout" ? "one update per rollout" : `an update every ${own.every === 1 ? "step" : `${own.every} steps`}`}`,
    own.method ? `method ${own.method}` : "", rollout().left_out ? `${rollout().left_out} later steps of this rollout were not recorded` : ""].filter(Boolean).join(" · ");
  $("mission").textContent = text(episode().mission);
  $("slider").max = episode().steps.length - 1;
  drawStrip();
  show(Number.isInteger(t) ? t : 0);
}

/** Show a step here and, where both sides go together, the same on the other. */
function move(t) {
  show(t);
  if (page("together").checked) for (const pane of panes) if (pane !== here) within(pane, () => show(t));
}

function play() {
  const pane = here, atEnd = () => state.t === episode().steps.length - 1;
  for (const other of panes) within(other, pause);
  if (atEnd()) move(0);
  state.timer = setInterval(() => within(pane, () => { if (atEnd()) pause(); else move(state.t + 1); }), 1000 / Number($("speed").value));
  label();
}

function pause() {
  clearInterval(state.timer);
  state.timer = null;
  label();
}

function label() {
  $("play").textContent = state.timer ? "❚❚ Pause" : "▶ Play";
  $("play").setAttribute("aria-label", state.timer ? "Pause" : "Play");
}

function go(t) {
  for (const pane of panes) within(pane, pause);
  move(t);
}

// --- two sides ----------------------------------------------------------------------------------------------------------------

/** A second side: at first the same run at another step of training, or else the next run. */
function openBeside(chosen) {
  const root = BLANK.cloneNode(true);
  for (const one of [root, ...root.querySelectorAll("[id]")]) one.id += "-2";
  for (const name of ["for", "aria-labelledby"]) for (const one of root.querySelectorAll(`[${name}]`)) one.setAttribute(name, `${one.getAttribute(name)}-2`);
  for (const one of [root, ...root.querySelectorAll("section, ol")]) one.setAttribute("aria-label", `${one.getAttribute("aria-label")}, second side`);
  document.querySelector("main").append(root);
  const { rollout: at, run: of } = panes[0].state, last = DATA.runs[of].rollouts.length - 1;
  const other = last > 0 ? { run: of, rollout: at === last ? 0 : last } : { run: (of + 1) % DATA.runs.length };
  const pane = { suffix: "-2", root, state: { run: 0, rollout: 0, episode: 0, t: 0, timer: null } };
  panes.push(pane);
  within(pane, () => { listen(); choose(chosen ?? { episode: 0, ...other }, chosen?.t ?? panes[0].state.t); });
  sides();
}

function closeBeside() {
  const pane = panes.pop();
  within(pane, pause);
  pane.root.remove();
  focused = panes[0];
  show(state.t);
  sides();
}

function sides() {
  page("beside").setAttribute("aria-pressed", panes.length > 1);
  page("joined").hidden = panes.length < 2;
}

/** The first run with a feedback edge that is no control; then any with an edge; then the first. */
function opensOn() {
  const controls = ["none", "random", "shuffled", "positive", "inverted"];
  const edge = DATA.runs.findIndex((one) => !controls.includes(one.facts.signal) && one.facts.sign === "own");
  return edge >= 0 ? edge : Math.max(0, DATA.runs.findIndex((one) => one.facts.signal !== "none"));
}

function fromAddress() {
  const asked = new URLSearchParams(location.search);
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) asked.set(key, value);
  const whole = (key) => /^\d{1,6}$/.test(asked.get(key) ?? "") ? Number(asked.get(key)) : undefined;
  choose({ run: whole("run") ?? opensOn(), rollout: whole("rollout"), episode: whole("episode") }, whole("t"));
  const second = Object.fromEntries(CHOSEN.map((key) => [key, whole(`${key}2`)]));
  if (second.run === undefined) return;
  if (panes.length < 2) openBeside(second); else within(panes[1], () => choose(second, second.t));
}

/** What the controls of this side do. */
function listen() {
  const pane = here;
  const on = (id, kind, act) => $(id).addEventListener(kind, (event) => within(pane, () => act(event)));
  on("arm", "change", (event) => {
    const places = seedsOf(arms[event.target.value]);
    choose({ ...state, run: places.find((place) => DATA.runs[place].seed === run().seed) ?? places[0], episode: 0 });
  });
  on("seed", "change", (event) => choose({ ...state, run: seedsOf(run().label)[event.target.value], episode: 0 }));
  on("rollout", "change", (event) => choose({ ...state, rollout: Number(event.target.value), episode: 0 }));
  on("episode", "change", (event) => choose({ ...state, episode: Number(event.target.value) }));
  on("first", "click", () => go(0));
  on("back", "click", () => go(state.t - 1));
  on("forward", "click", () => go(state.t + 1));
  on("last", "click", () => go(episode().steps.length - 1));
  on("play", "click", () => state.timer ? pause() : play());
  on("speed", "change", () => { if (state.timer) { pause(); play(); } });
  on("slider", "input", (event) => go(Number(event.target.value)));
  for (const kind of ["focusin", "pointerdown"]) pane.root.addEventListener(kind, () => { focused = pane; });
}

listen();
page("beside").addEventListener("click", () => panes.length > 1 ? closeBeside() : openBeside());
document.addEventListener("keydown", (event) => {
  // Brackets are typed with AltGr on many keyboards, which some systems report as Ctrl and Alt.
  const shortcut = !event.getModifierState("AltGraph") && (event.altKey || event.ctrlKey || event.metaKey);
  const own = event.target.closest("select, summary, a, input[type=checkbox]") || shortcut;
  const pressed = event.key === " " && event.target.closest("button");
  if (own || pressed) return;
  const moves = {
    ArrowLeft: () => go(state.t - 1), ArrowRight: () => go(state.t + 1), Home: () => go(0), End: () => go(episode().steps.length - 1),
    " ": () => state.timer ? pause() : play(),
    "[": () => choose({ ...state, episode: state.episode - 1 }), "]": () => choose({ ...state, episode: state.episode + 1 }),
  };
  if (moves[event.key]) {
    event.preventDefault();
    within(focused, moves[event.key]);
  }
});
window.addEventListener("hashchange", fromAddress);
if (DATA.pages.length > 1) {
  page("pages").hidden = false;
  options(page("page"), DATA.pages.map((one, place) => `${place + 1}: ${one.name}`), DATA.page);
  // Not at once: with the arrow keys one passes through pages that one does not want.
  page("open").addEventListener("click", () => { location.href = encodeURIComponent(DATA.pages[page("page").value].file); });
}
fromAddress();
