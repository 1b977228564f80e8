const data = JSON.parse(document.getElementById("data").textContent);
const [frameCount, rows, columns] = data.grid;
const area = rows * columns;
const scores = data.scores ?? new Array(frameCount * area).fill(0);
const highest = scores.reduce((most, score) => Math.max(most, score), 0);
const attention = scores.reduce((sum, score) => sum + score, 0);
// Canvas pixels of a token: sharp on a phone's screen, and small enough for hundreds of frames.
const CELL = Math.max(12, 2 * Math.floor(240 / Math.max(rows, columns)));
// Drawn over pictures of any colour, hence the same in light and dark.
const STAGE_ONE = "#0072b2", STAGE_TWO = "#d55e00";
const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// White space before a word stays outside its mark, so that no mark hangs over a line's end.
function marked(name, className, text) {
  const word = text.trimStart();
  return [text.slice(0, text.length - word.length),
    word && element(name, { className, textContent: word })];
}

function showAnswer() {
  data.rounds.forEach(({ drafted, own }, number) => {
    const count = drafted.length;
    const title = number === 0 ? "prefill: the target's first token"
      : `round ${number}: ${count} draft token${count === 1 ? "" : "s"} accepted`;
    const words = drafted.join("");
    byId("answer").append(element("span", { title }, ...marked("mark", "drafted", words),
      ...marked("strong", "own", own ?? "")));
    const cell = (text, remark) => element("td", {}, text.trim().replaceAll("\n", "\u23ce"),
      element("span", { className: "soft", textContent: remark }));
    byId("rounds").append(element("tr", {},
      element("th", { scope: "row", textContent: number || "prefill" }),
      cell(words, ` (${count})`), cell(own ?? "", own === null ? "(the answer ended)" : "")));
  });
}

function showNumbers() {
  for (const [name, value] of data.numbers) {
    byId("numbers").append(element("div", {},
      element("dt", { textContent: name }), element("dd", { textContent: value })));
  }
}

function makeFrames() {
  byId("frames").style.setProperty("--columns", columns);
  return data.frames.map((frame, number) => {
    const canvas = element("canvas", { width: columns * CELL, height: rows * CELL });
    canvas.setAttribute("aria-hidden", "true");
    const image = element("img", { src: frame.url });
    const caption = element("figcaption", { id: `caption-${number}` });
    const figure = element("figure", { tabIndex: -1 },
      element("div", { className: "picture" }, image, canvas), caption);
    figure.setAttribute("aria-labelledby", caption.id);
    const bar = element("button", { type: "button", tabIndex: number === 0 ? 0 : -1 },
      element("i", { className: "two" }), element("i", { className: "one" }));
    bar.addEventListener("click", () => {
      figure.focus({ preventScroll: true });
      figure.scrollIntoView({ block: "nearest" });
    });
    figure.addEventListener("keydown", (event) => {
      if (event.key === "Escape") bar.focus();
    });
    byId("frames").append(figure);
    byId("timeline").append(bar);
    return { number, time: frame.time, canvas, image, caption, bar };
  });
}

// One tab stop for all bars, however many frames there are; arrow keys move among them.
function moveAmongBars(event) {
  const bars = frames.map((frame) => frame.bar);
  const here = bars.indexOf(event.target);
  const there = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: bars.length - 1 };
  const bar = bars[there[event.key]];
  if (!bar) return;
  event.preventDefault();
  bar.focus();
}

// Dims what is little attended to and lights up the rest: seen on dark and on bright pictures.
function heatColour(share) {
  const grey = Math.round(255 * share * share);
  return `rgba(${grey}, ${grey}, ${grey}, ${0.64 - 0.28 * share})`;
}

// A mark has a dark and a light rim: one of the two stands out from any picture. Whole pixels keep
// both sharp in small cells.
function drawMark(context, stage, x, y) {
  const unit = Math.min(6, Math.floor(CELL / 12));
  const rims = [["#000", 5], ["#fff", 4]];
  for (const [colour, units] of stage === 1 ? [...rims, [STAGE_ONE, 3]]
    : [...rims, [STAGE_TWO, 3], ["#fff", 1]]) {
    const half = units * unit;
    context.fillStyle = colour;
    context.beginPath();
    if (stage === 1) context.arc(x, y, half, 0, 2 * Math.PI);
    else context.rect(x - half, y - half, 2 * half, 2 * half);
    context.fill();
  }
}

function paint(frame, stageOf) {
  const context = frame.canvas.getContext("2d");
  context.clearRect(0, 0, frame.canvas.width, frame.canvas.height);
  const counts = [0, 0, 0];
  let mass = 0;
  for (let cell = 0; cell < area; cell++) {
    const token = frame.number * area + cell;
    const x = (cell % columns) * CELL, y = Math.floor(cell / columns) * CELL;
    mass += scores[token];
    if (byId("heat").checked) {
      context.fillStyle = heatColour(Math.sqrt(scores[token] / highest));
      context.fillRect(x, y, CELL, CELL);
    }
  }
  for (let cell = 0; cell < area; cell++) {
    const stage = stageOf[frame.number * area + cell];
    counts[stage]++;
    if (stage === 0) continue;
    const x = (cell % columns + 0.5) * CELL, y = (Math.floor(cell / columns) + 0.5) * CELL;
    drawMark(context, stage, x, y);
  }
  const [, one, two] = counts;
  const time = `${frame.time.toFixed(1)} s`;
  const kept = `${one} tokens of Stage I and ${two} of Stage II kept out of ${area}`;
  const share = highest > 0 ? `attention ${(100 * mass / attention).toFixed(0)} %` : "";
  frame.image.alt = `Frame at ${time}: ${kept}${share && `, ${share}`}`;
  frame.bar.setAttribute("aria-label", `Show the frame at ${time}: ${kept}`);
  const mark = (name, label) => {
    const made = element("span", { className: `mark ${name}` });
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", label);
    return made;
  };
  frame.caption.replaceChildren(time, mark("one", "Stage I:"), `${one}`,
    mark("two", "Stage II:"), `${two}`, element("div", { textContent: share }));
  return { one, two };
}

const state = {};

function update() {
  // Of a policy that the page cannot compute there is only what was served.
  const fixed = data.served !== null && state.policy === data.policy;
  byId("retention").disabled = fixed;
  const { stageOne, stageTwo } = fixed ? data.served : selectVideoTokens(scores, { ...state,
    topP: data.top_p, grid: data.grid, permutation: data.permutation });
  const stageOf = new Uint8Array(scores.length);
  for (const token of stageOne) stageOf[token] = 1;
  for (const token of stageTwo) stageOf[token] = 2;
  const counts = frames.map((frame) => paint(frame, stageOf));
  const tallest = Math.max(...counts.map(({ one, two }) => one + two));
  counts.forEach(({ one, two }, number) => {
    const [upper, lower] = frames[number].bar.children;
    upper.style.height = `${(100 * two) / tallest}%`;
    lower.style.height = `${(100 * one) / tallest}%`;
  });
  byId("scale").textContent = `Kept tokens of each frame; the tallest bar is ${tallest} of ${area}.`;
  byId("share").textContent = `${+(100 * state.retention).toFixed(2)} %`;
  byId("retention").setAttribute("aria-valuetext", byId("share").textContent);
  const kept = stageOne.length + stageTwo.length;
  byId("summary").textContent = `${kept} of ${scores.length} video tokens kept: ` +
    `${stageOne.length} in Stage I, ${stageTwo.length} in Stage II.`;
}

function serve() {
  Object.assign(state, { retention: data.retention, policy: data.policy });
  byId("retention").value = 100 * data.retention;
  byId("policy").value = data.policy;
  update();
}

byId("question").textContent = data.question;
byId("note").textContent = data.note;
for (const policy of new Set([...data.policies, data.policy])) {
  byId("policy").append(element("option", { textContent: policy }));
}
if (highest === 0) {
  byId("heat").checked = false;
  byId("heat").parentElement.hidden = byId("heat-legend").hidden = true;
}
showNumbers();
showAnswer();
const frames = makeFrames();
serve();
byId("retention").addEventListener("input", (event) => {
  state.retention = event.target.valueAsNumber / 100;
  update();
});
byId("policy").addEventListener("change", (event) => {
  state.policy = event.target.value;
  if (data.served !== null && state.policy === data.policy) serve();
  else update();
});
byId("heat").addEventListener("change", update);
byId("reset").addEventListener("click", serve);
byId("timeline").addEventListener("keydown", moveAmongBars);
byId("timeline").addEventListener("focusin", (event) => {
  for (const { bar } of frames) bar.tabIndex = bar === event.target ? 0 : -1;
});
