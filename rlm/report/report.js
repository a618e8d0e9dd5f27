"use strict";
// The rollout browser. All that a model wrote goes through textContent: none of it is markup.
let data = { questions: [] };
const at = (id) => document.getElementById(id);
const LIMITS = [0.9, 0.5, 0.1, 0.01]; // below each of these a token's colour is a step stronger
const SVG = "http://www.w3.org/2000/svg";
const WHY = {
  no_close: "the reasoning was never closed", no_tag: "no answer tag", empty: "nothing stated",
  repeated: "a tag or a statement too often", several_values: "two values",
  unparsable: "not one plain number", too_long: "an answer of more than 400 characters",
  cut_off: "cut off: it may be the beginning of an answer only",
};
const FAILED = {
  malformed: "could not be read", unknown_tool: "no such tool", bad_arguments: "wrong arguments",
  error: "an error", timeout: "past its deadline", died: "its process ended",
  cut: "result cut", too_many: "no calls were left",
};
let question = 0, step = 0, painted = "";

function make(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

const number = (value, digits = 3) =>
  typeof value === "number" ? String(+value.toFixed(digits)) : String(value);
const signed = (value) => (value > 0 ? "+" : "") + number(value).replace("-", "−");
const chance = (logprob) => Math.exp(logprob);
const percent = (p) => (p >= 0.0995 ? Math.round(100 * p) : +(100 * p).toPrecision(2)) + " %";
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The texts of the tokens, or null where the record has none. By characters, as Python counts.
function pieces(record) {
  const lengths = record.token_lengths, logprobs = record.logprobs;
  if (!Array.isArray(lengths) || !Array.isArray(logprobs)) return null;
  const characters = Array.from(record.text);
  const total = lengths.reduce((sum, length) => sum + length, 0);
  let place = record.cut ? 0 : Math.max(0, characters.length - total); // after a prefill
  const found = place ? [{ text: characters.slice(0, place).join(""), logprob: null }] : [];
  lengths.forEach((length, i) => {
    const text = characters.slice(place, place + length).join("");
    place += length;
    if (!record.cut || place <= characters.length || text) found.push({ text, logprob: logprobs[i] });
  });
  return found;
}

function verdict(record) {
  if (record.reason) return ["unreadable", "unreadable: " + (WHY[record.reason] || record.reason)];
  const right = record.parts && record.parts.correctness;
  if (right === undefined) return ["read", "the answer could be read"];
  return right > 0 ? ["right", "right: the known answer"]
    : ["wrong", "wrong: not the known answer"];
}

function strength(advantage) {
  const size = Math.abs(advantage);
  return size === 0 ? 0 : size < 0.5 ? 1 : size < 1.5 ? 2 : 3;
}

const calls = (record) => (Array.isArray(record.calls) ? record.calls : [])
  .filter((call) => call && typeof call === "object");

// The text from character `from` on, in pieces where a call or a result of a tool begins or ends.
function parted(record, text, from) {
  if (!calls(record).length) return [{ text, kind: "" }];
  const characters = Array.from(text), found = [];
  const marks = calls(record).flatMap((call) => [[call.start, "call"], [call.written, "result"], [call.end, ""]]);
  let kind = (marks.filter(([place]) => place <= from).pop() || [0, ""])[1], last = 0;
  for (const [place, next] of [...marks.filter(([place]) => place > from && place < from + characters.length),
    [from + characters.length, ""]]) {
    found.push({ text: characters.slice(last, place - from).join(""), kind });
    last = place - from;
    kind = next;
  }
  return found;
}

function written(record, by) {
  const box = make("pre", "", "text");
  let place = 0;
  const add = (text, style = null, title = "") => { // no style: plain text, but for calls
    for (const part of parted(record, text, place)) {
      const result = part.kind === "result"; // nobody sampled it
      if (!part.text) continue;
      const span = make("span", part.text, `${result ? "" : style ?? ""} ${part.kind}`.trim());
      span.title = result ? "a tool wrote this" : title;
      box.append(style !== null || part.kind ? span : part.text);
    }
    place += Array.from(text).length;
  };
  const tokens = pieces(record);
  const level = strength(record.advantage);
  if (by === "advantage" && level) {
    add(record.text, (record.advantage > 0 ? "u" : "d") + level,
      "advantage " + signed(record.advantage) + " at each token");
  } else if (by === "logprob" && tokens) {
    for (const token of tokens) {
      if (!token.text) continue;
      const p = token.logprob === null ? 1 : chance(token.logprob);
      const weight = LIMITS.filter((limit) => p < limit).length;
      add(token.text, weight ? "p" + weight : "", token.logprob === null ? ""
        : percent(p) + ", log-probability " + number(token.logprob, 2).replace("-", "−"));
    }
  } else add(record.text);
  if (record.cut) box.append(make("span", ` … (the first ${Array.from(record.text).length} of ${record.cut} characters)`, "small"));
  return box;
}

function unlikely(record) {
  const tokens = (pieces(record) || []).filter((t) => t.logprob !== null && t.text && chance(t.logprob) < 0.5);
  tokens.sort((one, other) => one.logprob - other.logprob);
  const told = tokens.slice(0, 5).map((t) => JSON.stringify(t.text) + " " + percent(chance(t.logprob)));
  return told.length ? "least likely tokens: " + told.join(", ") : "";
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// How many agents stand before each one; in a circle the count stops.
function levels(agents) {
  const level = new Map(agents.map((agent) => [agent.id, 0]));
  for (let round = 1; round < agents.length; round++) {
    for (const agent of agents) {
      const before = (agent.reads || []).filter((id) => level.has(id) && id !== agent.id);
      const next = Math.max(-1, ...before.map((id) => level.get(id))) + 1;
      level.set(agent.id, Math.min(agents.length - 1, next));
    }
  }
  return level;
}

function drawn(agents) {
  const level = levels(agents), rows = new Map(), places = new Map();
  for (const agent of agents) {
    const x = level.get(agent.id), y = rows.get(x) || 0;
    rows.set(x, y + 1);
    places.set(agent.id, { x: 4 + x * 170, y: 4 + y * 52 });
  }
  const width = 8 + 130 + 170 * Math.max(...level.values());
  const height = 8 + 52 * Math.max(...rows.values()) - 16;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.setAttribute("aria-label", agents.map((agent) =>
    agent.id + " reads " + ((agent.reads || []).join(", ") || "the question")).join("; "));
  for (const agent of agents) {
    const to = places.get(agent.id);
    for (const id of agent.reads || []) {
      const from = places.get(id);
      if (!from || id === agent.id) continue;
      const [x1, y1, x2, y2] = [from.x + 130, from.y + 18, to.x - 7, to.y + 18];
      svg.append(shape("path", { class: "edge", d: `M${x1} ${y1}C${x1 + 22} ${y1} ${x2 - 22} ${y2} ${x2} ${y2}` }));
      svg.append(shape("path", { class: "tip", d: `M${x2} ${y2 - 4}l7 4l-7 4z` }));
    }
    svg.append(shape("rect", { x: to.x, y: to.y, width: 130, height: 36, rx: 6 }));
    const name = shape("text", { x: to.x + 65, y: to.y + 22, "text-anchor": "middle" });
    name.textContent = String(agent.id).length > 18 ? String(agent.id).slice(0, 17) + "…" : agent.id;
    svg.append(name);
  }
  return svg;
}

function graph(record) {
  const agents = record.agents.filter((agent) => agent && typeof agent === "object");
  const box = make("div", "", "agents");
  if (!agents.length) return box;
  const title = typeof record.graph === "string" ? "Agents: " + record.graph : "Agents";
  box.append(make("h3", title), drawn(agents));
  for (const agent of agents) {
    const fold = make("details"), list = make("dl");
    const reads = (agent.reads || []).join(", ");
    fold.append(make("summary", agent.id + (reads ? " reads " + reads : "")), list);
    for (const name of ["prompt", "output"]) list.append(make("dt", name), make("dd", agent[name] || ""));
    box.append(fold);
  }
  return box;
}

// The calls of tools, folded: what was called with what, and what came back.
function called(record) {
  const fold = make("details", "", "calls"), list = make("ol");
  const failed = calls(record).filter((call) => call.failure).length;
  const count = calls(record).length;
  fold.append(make("summary", `${count} call${count === 1 ? "" : "s"} of tools` + (failed ? `, ${failed} failed` : "")), list);
  for (const call of calls(record)) {
    const item = make("li");
    const why = call.failure ? ` (${FAILED[call.failure] || call.failure})` : "";
    item.append(make("b", call.name || "?"), ` ${call.arguments} → `, make("span", String(call.result), "result"), why);
    list.append(item);
  }
  return fold;
}

function card(record, index, by) {
  const item = make("li"), head = make("div", "", "head");
  const [kind, told] = verdict(record);
  item.dataset.verdict = kind;
  head.append(make("b", "#" + (index + 1)), make("b", "reward " + number(record.reward)));
  if (record.advantage !== undefined) head.append(make("span", "advantage " + signed(record.advantage)));
  head.append(make("span", told));
  const parts = Object.entries(record.parts || {});
  if (parts.length > 1) head.append(make("span", parts.map(([name, value]) => name + " " + number(value)).join(", ")));
  if (record.tokens !== undefined) head.append(make("span", record.tokens + " tokens" + (record.finish === "length" ? ", cut off" : "")));
  item.append(head, written(record, by));
  const rare = unlikely(record);
  if (rare) item.append(make("p", rare, "small"));
  if (calls(record).length) item.append(called(record));
  if (Array.isArray(record.agents)) item.append(graph(record));
  return item;
}

function legend(by) {
  const keys = {
    logprob: [["p1", "below 90 %"], ["p2", "below 50 %"], ["p3", "below 10 %"], ["p4", "below 1 %"]],
    advantage: [["u3", "better than its group"], ["d3", "worse than its group"]],
    none: [],
  };
  at("legend").replaceChildren(...keys[by].map(([name, text]) => {
    const key = make("span");
    key.append(make("span", "token", name), " " + text);
    return key;
  }));
}

function show() {
  const chosen = data.questions[question];
  step = Math.min(step, chosen.steps.length - 1);
  const by = document.querySelector("#colours input:checked").value;
  const records = chosen.steps[step].completions;
  at("question").value = question;
  at("back").disabled = question === 0;
  at("on").disabled = question === data.questions.length - 1;
  at("asked").textContent = chosen.question;
  const focused = [...at("steps").children].indexOf(document.activeElement);
  at("steps").replaceChildren(...chosen.steps.map((each, i) => {
    const rewards = each.completions.map((record) => Number(record.reward));
    const button = make("button", `step ${each.step}: ${number(mean(rewards), 2)}`);
    button.type = "button";
    button.title = "mean reward of its completions";
    button.setAttribute("aria-pressed", i === step);
    button.addEventListener("click", () => { step = i; show(); at("steps").children[i].focus(); });
    return button;
  }));
  if (focused >= 0) at("steps").children[Math.min(focused, chosen.steps.length - 1)].focus();
  const right = records.filter((record) => verdict(record)[0] === "right").length;
  at("group").textContent = `Known answer ${chosen.gold}. Step ${chosen.steps[step].step}: `
    + `${records.length} completions, ${right} right, mean reward ${number(mean(records.map((r) => Number(r.reward))), 2)}.`;
  const content = JSON.stringify([by, chosen.id, records]);
  if (content === painted) return; // what is being read stays as it is
  painted = content;
  at("completions").replaceChildren(...records.map((record, i) => card(record, i, by)));
  legend(by);
}

// Show these rollouts; the chosen question and step stay chosen where they are still there.
function take(fresh) {
  const before = data.questions[question];
  const last = before && before.steps[step].step;
  data = fresh;
  at("browser").hidden = !data.questions.length;
  if (!data.questions.length) return;
  data.questions.sort((one, other) => other.steps.length - one.steps.length || one.steps[0].step - other.steps[0].step);
  question = before ? Math.max(0, data.questions.findIndex((each) => each.id === before.id)) : 0;
  step = Math.max(0, data.questions[question].steps.findIndex((each) => each.step === last));
  at("question").replaceChildren(...data.questions.map((each, i) => {
    const where = each.steps.length > 1 ? each.steps.length + " steps" : "step " + each.steps[0].step;
    const option = make("option", where + " · " + each.question.slice(0, 100));
    option.value = i;
    return option;
  }));
  at("sampled").textContent = data.shown < data.total
    ? `A sample: ${data.shown.toLocaleString("en")} of ${data.total.toLocaleString("en")} completions, the questions that came at most steps and some of the others. rollouts.jsonl has all.`
    : `All ${data.total.toLocaleString("en")} completions.`;
  show();
}

at("question").addEventListener("change", () => { question = Number(at("question").value); step = 0; show(); });
at("back").addEventListener("click", () => { question -= 1; step = 0; show(); });
at("on").addEventListener("click", () => { question += 1; step = 0; show(); });
at("colours").addEventListener("change", show);
take(JSON.parse(at("data").textContent));
